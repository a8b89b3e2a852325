"""`"associative"` and `"linear_scan"`: a `LinearCell` in parallel over time.

All of a linear cell's arithmetic is bulk but for one elementwise recurrence.
Masks and resets go into its decay and drive.
"""

import functools

import jax.numpy as jnp

from recurrent import kernels
from recurrent.masking import blank, hold, select


def linear(scan, cell, reverse, params, initial, carry, time_steps):
  """Folds flags into decay and drive, scans, reads out."""
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
