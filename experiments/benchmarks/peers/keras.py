"""keras.layers.LSTM, GRU and SimpleRNN; the option names Keras's back end."""

import keras
import numpy as np

from experiments.benchmarks import networks
from recurrent import converters

LAYERS = {
  "lstm": keras.layers.LSTM,
  "gru": keras.layers.GRU,
  "rnn": keras.layers.SimpleRNN,
}


def make(problem, drawn, dtype, option):
  """Makes a `Sequential`, under Keras's policy of float32 parameters."""
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
  cells = [params for pair in drawn.layers for params in pair]
  model.set_weights([x for c in cells for x in converters.to_keras(c)])
  optimizer = keras.optimizers.Adam(networks.RATE, epsilon=networks.EPSILON)
  optimizer.build(model.trainable_variables)
  values = lambda variables: [v.value for v in variables]

  def name_gradients(gradients):
    gradients = iter(map(np.array, gradients))
    return networks.name_layers(
      [[back(gradients) for _ in pair] for pair in drawn.layers]
    )

  def back(gradients):
    kernel, recurrent, bias = (next(gradients) for _ in range(3))
    if problem.kind == "gru":
      # Two biases that are only added have the same gradient. The converter
      # adds them, so one is set to zero.
      bias[1] = 0
    return converters.from_keras([kernel, recurrent, bias], problem.kind)

  learned = values(model.trainable_variables)
  if option == "torch":
    from experiments.benchmarks.peers import torch  # noqa: PLC0415

    return torch.from_torch(
      model, learned, optimizer.apply, name_gradients, drawn, dtype
    )
  others = values(model.non_trainable_variables)
  network = networks.Network(
    learned,
    lambda variables, x: model.stateless_call(variables, others, x)[0],
    name_gradients,
    (
      values(optimizer.variables),
      lambda gradients, state, variables: optimizer.stateless_apply(
        state, gradients, variables
      ),
    ),
  )
  return networks.from_jax(network, drawn, dtype)
