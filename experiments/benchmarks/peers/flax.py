"""flax.nnx.RNN over OptimizedLSTMCell, GRUCell or SimpleCell."""

import jax.numpy as jnp
from flax import nnx

from experiments.benchmarks import networks as entries

CELLS = {
  "lstm": nnx.OptimizedLSTMCell,
  "gru": nnx.GRUCell,
  "rnn": nnx.SimpleCell,
}


def make(problem, drawn, dtype, option):
  """An `nnx.RNN` or `nnx.Bidirectional` a layer; parameters stay float32."""
  del option
  # The LSTM has its one bias at the recurrent product, the others not.
  biased = "dense_h" if problem.kind == "lstm" else "dense_i"

  def fill(cell, params):
    cell.dense_i.kernel[...] = jnp.asarray(params.kernel)
    cell.dense_h.kernel[...] = jnp.asarray(params.recurrent)
    getattr(cell, biased).bias[...] = jnp.asarray(params.bias)
    return nnx.RNN(cell)

  layers = []
  for pair in drawn.layers:
    width = pair[0].kernel.shape[0]
    halves = [
      fill(
        CELLS[problem.kind](
          width, problem.features, dtype=dtype, rngs=nnx.Rngs(0)
        ),
        params,
      )
      for params in pair
    ]
    layers.append(
      nnx.Bidirectional(*halves) if problem.bidirectional else halves[0]
    )
  graphdef, *parts = nnx.split(nnx.List(layers), nnx.Param, ...)
  params, rest = map(nnx.as_pure, parts)

  def apply(variables, inputs):
    for layer in nnx.merge(graphdef, variables, rest):
      inputs = layer(inputs)
    return inputs

  def to_params(gradients):
    return [
      [
        like._replace(
          kernel=half.cell.dense_i.kernel[...],
          recurrent=half.cell.dense_h.kernel[...],
          bias=getattr(half.cell, biased).bias[...],
        )
        for half, like in zip(_directions(layer), pair, strict=True)
      ]
      for layer, pair in zip(
        nnx.merge(graphdef, gradients, rest), drawn.layers, strict=True
      )
    ]

  network = entries.Network(params, apply, to_params)
  return entries.from_jax(network, drawn, dtype)


def _directions(layer):
  if isinstance(layer, nnx.Bidirectional):
    return [layer.forward_rnn, layer.backward_rnn]
  return [layer]
