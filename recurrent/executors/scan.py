"""`"scan"`: the specification. `jax.lax.scan`, differentiated by JAX."""

import jax

from recurrent.executors.ticks import blank, hold, restart


def scan(cell, reverse, params, initial, carry, ticks):
  """The specification; params is a function that gives them."""
  step = lambda carry, now: tick(cell, params(), initial, carry, now)
  return jax.lax.scan(step, carry, ticks, reverse=reverse)


def tick(cell, params, initial, carry, now):
  """One tick, with its flags."""
  carry = restart(now.resets, initial, carry)
  stepped, outputs = cell.step(params, carry, now.projected)
  return hold(now.mask, stepped, carry), blank(now.mask, outputs)
