"""`"associative"` and `"linear_scan"`: a `LinearCell` without a step by step loop.

All of a linear cell's arithmetic is bulk but for one elementwise recurrence.
Masks and resets go into its decay and drive.
"""

import functools

import jax.numpy as jnp

from recurrent import kernels
from recurrent.executors.ticks import blank, hold, select


def linear(scan, cell, reverse, params, initial, carry, ticks):
  """Folds flags into decay and drive, scans, reads out."""
  decay, drive, skip = cell.terms(ticks.projected)
  start, fresh = cell.pack(carry), cell.pack(initial)
  shape = (len(drive), *start.shape)
  decay, drive = (
    jnp.broadcast_to(x.astype(start.dtype), shape) for x in (decay, drive)
  )
  resets = None
  if ticks.resets is not None:
    fresh = jnp.broadcast_to(fresh, shape)
    drive = select(ticks.resets, drive + decay * fresh, drive)
    resets = ticks.resets.reshape(*ticks.resets.shape, *[1] * (start.ndim - 1))
  if ticks.mask is not None:
    decay = hold(ticks.mask, decay, jnp.ones_like(decay))
    drive = blank(ticks.mask, drive)
  hidden = scan(decay, drive, start, resets=resets, reverse=reverse)
  outputs = cell.readout(params(), hidden, skip)
  last = hidden[0 if reverse else -1]
  return cell.unpack(last), blank(ticks.mask, outputs)


associative = functools.partial(linear, kernels.associative_scan)
linear_scan = functools.partial(linear, kernels.linear_scan)
