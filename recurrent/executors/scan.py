"""`"scan"` runs any cell by `jax.lax.scan`, differentiated by JAX.

It is the reference that all other executors are tested against.
"""

import jax

from recurrent.masking import blank, hold, restart


def scan(cell, reverse, params, initial, carry, time_steps):
  """Runs the cell; `params` is a function that returns the parameters."""
  step = lambda carry, now: time_step(cell, params(), initial, carry, now)
  return jax.lax.scan(step, carry, time_steps, reverse=reverse)


def time_step(cell, params, initial, carry, now):
  """Computes one time step, with its mask and its resets."""
  carry = restart(now.resets, initial, carry)
  stepped, outputs = cell.step(params, carry, now.projected)
  return hold(now.mask, stepped, carry), blank(now.mask, outputs)
