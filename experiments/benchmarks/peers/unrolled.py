"""`ours` with several time steps in each iteration of a loop over time.

The option is a method and the number of time steps, "fused,4". It replaces
`jax.lax.scan` in the whole process, which must therefore be its own.
"""

import functools

import jax

from experiments.benchmarks.peers import ours

SCAN = jax.lax.scan


def make(problem, drawn, dtype, option):
  """Makes the layers of `ours`."""
  method, unroll = option.split(",")
  jax.lax.scan = functools.partial(SCAN, unroll=int(unroll))
  return ours.make(problem, drawn, dtype, method)
