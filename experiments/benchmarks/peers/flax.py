"""flax.nnx.RNN with an OptimizedLSTMCell, GRUCell or SimpleCell."""

from flax import nnx

from experiments.benchmarks import networks
from recurrent.converters import from_nnx, to_nnx

CELLS = {
  "lstm": nnx.OptimizedLSTMCell,
  "gru": nnx.GRUCell,
  "rnn": nnx.SimpleCell,
}


def make(problem, drawn, dtype, option):
  """Makes one `nnx.RNN` or `nnx.Bidirectional` per layer."""
  del option
  kind = problem.kind

  def fill(params):
    cell = CELLS[kind](
      len(params.kernel), problem.features, dtype=dtype, rngs=nnx.Rngs(0)
    )
    nnx.update(cell, to_nnx(params, optimized=kind == "lstm"))
    return nnx.RNN(cell)

  def build(pair):
    halves = map(fill, pair)
    return nnx.Bidirectional(*halves) if len(pair) == 2 else next(halves)

  def params_of(layer):
    halves = [layer]
    if isinstance(layer, nnx.Bidirectional):
      halves = [layer.forward_rnn, layer.backward_rnn]
    return [from_nnx(nnx.state(half.cell, nnx.Param), kind) for half in halves]

  layers = [build(pair) for pair in drawn.layers]
  run = lambda layer, inputs: layer(inputs)
  return networks.from_modules(drawn, dtype, layers, run, params_of)
