"""An implementation with slightly wrong values, or whose process ends."""

import os

from experiments.benchmarks.peers import lax


def make(problem, drawn, dtype, option):
  if option == "end":
    os._exit(3)
  ((params,),) = drawn.layers
  wrong = params._replace(recurrent=1.01 * params.recurrent)
  return lax.make(problem, drawn._replace(layers=[[wrong]]), dtype, option)
