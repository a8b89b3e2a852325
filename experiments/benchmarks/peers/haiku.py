"""haiku.LSTM under haiku.dynamic_unroll."""

import haiku as hk
import jax
import jax.numpy as jnp

from experiments.benchmarks import networks as entries
from recurrent import cells, converters
from recurrent.converters.arrays import reorder


def make(problem, drawn, dtype, option):
  """An unroll a layer and direction; parameters stay float32."""
  del option

  def run(inputs):
    for layer, pair in enumerate(drawn.layers):
      halves = []
      for direction in range(len(pair)):
        core = hk.LSTM(problem.features, name=f"l{layer}d{direction}")
        start = jax.tree.map(
          lambda x: x.astype(dtype), core.initial_state(problem.batch)
        )
        outputs, _ = hk.dynamic_unroll(
          core, inputs, start, time_major=False, reverse=bool(direction)
        )
        halves.append(outputs)
      inputs = jnp.concatenate(halves, axis=-1)
    return inputs

  module = hk.without_apply_rng(hk.transform(run))
  name = "l{}d{}/linear".format
  variables = {
    name(layer, direction): converters.to_haiku(params)
    for layer, pair in enumerate(drawn.layers)
    for direction, params in enumerate(pair)
  }

  def apply(variables, inputs):
    narrow = jax.tree.map(lambda x: x.astype(dtype), variables)
    return module.apply(narrow, inputs)

  def back(gradient):
    # `from_haiku` adds the forget bias, beside which a gradient is rounded off.
    both, bias = (reorder(gradient[k], (0, 2, 1, 3)) for k in "wb")
    h = problem.features
    return cells.LSTMParams(both[:-h], both[-h:], bias)

  def to_params(gradients):
    return [
      [back(gradients[name(layer, k)]) for k in range(len(pair))]
      for layer, pair in enumerate(drawn.layers)
    ]

  network = entries.Network(variables, apply, to_params)
  return entries.from_jax(network, drawn, dtype)
