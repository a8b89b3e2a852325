"""An implementation whose recurrent matrix is a little wrong."""

from experiments.benchmarks.peers import lax


def make(problem, drawn, dtype, option):
  ((params,),) = drawn.layers
  wrong = params._replace(recurrent=1.01 * params.recurrent)
  return lax.make(problem, drawn._replace(layers=[[wrong]]), dtype, option)
