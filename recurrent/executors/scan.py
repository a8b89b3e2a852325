"""`"scan"`: the specification. `jax.lax.scan`, differentiated by JAX."""

import jax

from recurrent.masking import blank, hold, restart


def scan(cell, reverse, params, initial, carry, time_steps):
  """The specification; params is a function that gives them."""
  step = lambda carry, now: time_step(cell, params(), initial, carry, now)
  return jax.lax.scan(step, carry, time_steps, reverse=reverse)


def time_step(cell, params, initial, carry, now):
  """One time step, with its flags."""
  carry = restart(now.resets, initial, carry)
  stepped, outputs = cell.step(params, carry, now.projected)
  return hold(now.mask, stepped, carry), blank(now.mask, outputs)
