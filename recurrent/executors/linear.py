"""`"associative"` and `"linear_scan"` run a `LinearCell` in parallel over time.

All computations of a linear cell are bulk operations over time, except one
elementwise linear recurrence. The mask and the initial carry of resets are
applied to the decay and the drive of that recurrence.
"""

import functools

import jax
import jax.numpy as jnp

from recurrent import kernels
from recurrent.cells.base import param_shapes
from recurrent.kernels.linear_scan import loop_for
from recurrent.masking import blank, hold, select
from recurrent.numerics import cast


def linear(scan, cell, reverse, params, initial, carry, time_steps):
  """Runs a linear cell, with `scan` as the solver of its recurrence."""
  decay, drive, skip = cell.terms(time_steps.projected)
  start, fresh = cell.pack(carry), cell.pack(initial)
  shape = (len(drive), *start.shape)
  decay, drive = (
    jnp.broadcast_to(x.astype(start.dtype), shape) for x in (decay, drive)
  )
  resets = None
  if time_steps.resets is not None:
    fresh = jnp.broadcast_to(fresh, shape)
    drive = select(time_steps.resets, drive + decay * fresh, drive)
    resets = time_steps.resets.reshape(
      *time_steps.resets.shape, *[1] * (start.ndim - 1)
    )
  if time_steps.mask is not None:
    decay = hold(time_steps.mask, decay, jnp.ones_like(decay))
    drive = blank(time_steps.mask, drive)
  hidden = scan(decay, drive, start, resets=resets, reverse=reverse)
  outputs = cell.readout(params(), hidden, skip)
  last = hidden[0 if reverse else -1]
  return cell.unpack(last), blank(time_steps.mask, outputs)


associative = functools.partial(linear, kernels.associative_scan)
linear_scan = functools.partial(linear, kernels.linear_scan)


def loop_of(cell, setting) -> str:
  """Returns the loop by which `linear_scan` runs, for `recurrent.explain`."""

  def start(params):
    carry = cell.initial_carry(cast(params, setting.carry_dtype), ())
    return cell.pack(carry)

  dtype = jax.eval_shape(start, param_shapes(cell, 1)).dtype
  setting = setting._replace(dtype=dtype, carry_dtype=dtype)
  return loop_for(setting).about
