"""haiku.LSTM under haiku.dynamic_unroll."""

import haiku as hk
import jax

from experiments.benchmarks import networks
from recurrent import cells, converters
from recurrent.converters.arrays import reorder


def make(problem, drawn, dtype, option):
  """Makes one unrolled LSTM per layer and direction."""
  del option

  def unroll(inputs, reverse):
    core = hk.LSTM(problem.features)
    start = core.initial_state(problem.batch)
    start = jax.tree.map(lambda x: x.astype(dtype), start)
    return hk.dynamic_unroll(
      core, inputs, start, time_major=False, reverse=reverse
    )[0]

  module = hk.without_apply_rng(hk.transform(unroll))

  def back(gradients):
    # Not `from_haiku`, which would add 1 to the gradient of the forget bias.
    (found,) = gradients.values()
    both, bias = (reorder(found[k], (0, 2, 1, 3)) for k in "wb")
    h = problem.features
    return cells.LSTMParams(both[:-h], both[-h:], bias)

  return networks.from_cells(
    drawn,
    dtype,
    module.apply,
    lambda params: {"lstm/linear": converters.to_haiku(params)},
    back,
  )
