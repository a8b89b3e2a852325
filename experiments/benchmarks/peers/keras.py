"""keras.layers.LSTM, GRU and SimpleRNN; the option is Keras's back end."""

import keras
import numpy as np

from experiments.benchmarks import networks as entries
from recurrent import converters

LAYERS = {
  "lstm": keras.layers.LSTM,
  "gru": keras.layers.GRU,
  "rnn": keras.layers.SimpleRNN,
}


def make(problem, drawn, dtype, option):
  """A `Sequential`; parameters stay float32, as Keras's policies have it."""
  if keras.backend.backend() != option:
    raise RuntimeError(f"Keras runs on {keras.backend.backend()}")
  policy = "float32" if dtype == "float32" else f"mixed_{dtype}"

  def layer():
    one = LAYERS[problem.kind](
      problem.features, return_sequences=True, dtype=policy
    )
    if problem.bidirectional:
      return keras.layers.Bidirectional(one, dtype=policy)
    return one

  model = keras.Sequential([layer() for _ in drawn.layers])
  model.build(drawn.inputs.shape)
  model.set_weights(
    [
      array
      for pair in drawn.layers
      for params in pair
      for array in converters.to_keras(params)
    ]
  )
  optimizer = keras.optimizers.Adam(entries.RATE, epsilon=entries.EPSILON)
  optimizer.build(model.trainable_variables)

  def to_params(gradients):
    gradients = iter(map(np.array, gradients))
    return [[back(gradients) for _ in pair] for pair in drawn.layers]

  def back(gradients):
    kernel, recurrent, bias = (next(gradients) for _ in range(3))
    if problem.kind == "gru":
      # Two biases that are only added have one gradient; the converter adds it.
      bias[1] = 0
    return converters.from_keras([kernel, recurrent, bias], problem.kind)

  if option == "torch":
    from experiments.benchmarks.peers import torch  # noqa: PLC0415

    return torch.from_torch(
      model,
      [v.value for v in model.trainable_variables],
      lambda gradients: optimizer.apply(gradients),
      to_params,
      drawn,
      dtype,
    )
  others = [v.value for v in model.non_trainable_variables]

  def update(gradients, state, variables):
    return optimizer.stateless_apply(state, gradients, variables)

  network = entries.Network(
    [v.value for v in model.trainable_variables],
    lambda variables, inputs: model.stateless_call(variables, others, inputs)[
      0
    ],
    to_params,
    ([v.value for v in optimizer.variables], update),
  )
  return entries.from_jax(network, drawn, dtype)
