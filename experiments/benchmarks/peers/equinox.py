"""equinox.nn.LSTMCell or GRUCell: a scan of one row, mapped over the rows."""

import equinox as eqx
import jax
import jax.numpy as jnp

from experiments.benchmarks import networks as entries
from recurrent import cells

CELLS = {"lstm": eqx.nn.LSTMCell, "gru": eqx.nn.GRUCell}


def make(problem, drawn, dtype, option):
  """As Equinox's documentation has it; parameters stay float32."""
  del option
  zeros = jnp.zeros(problem.features, dtype)
  start = (zeros, zeros) if problem.kind == "lstm" else zeros

  def fill(params):
    cell = CELLS[problem.kind](
      params.kernel.shape[0], problem.features, key=jax.random.key(0)
    )
    arrays = [params.kernel.T, params.recurrent.T, params.bias]
    where = lambda c: [c.weight_ih, c.weight_hh, c.bias]
    cell = eqx.tree_at(where, cell, [jnp.asarray(x) for x in arrays])
    if problem.kind == "gru":
      inner = jnp.asarray(params.recurrent_bias)
      cell = eqx.tree_at(lambda c: c.bias_n, cell, inner)
    return cell

  def run(cell, inputs, reverse):
    cell = jax.tree.map(lambda x: x.astype(dtype), cell)

    def tick(carry, x):
      carry = cell(x, carry)
      return carry, carry[0] if problem.kind == "lstm" else carry

    row = lambda xs: jax.lax.scan(tick, start, xs, reverse=reverse)[1]
    return jax.vmap(row)(inputs)

  def apply(variables, inputs):
    for pair in variables:
      halves = [run(cell, inputs, bool(k)) for k, cell in enumerate(pair)]
      inputs = jnp.concatenate(halves, axis=-1)
    return inputs

  def back(cell):
    # Only these three are compared, whatever the kind.
    return cells.LSTMParams(cell.weight_ih.T, cell.weight_hh.T, cell.bias)

  network = entries.Network(
    [[fill(params) for params in pair] for pair in drawn.layers],
    apply,
    lambda gradients: [[back(cell) for cell in pair] for pair in gradients],
  )
  return entries.from_jax(network, drawn, dtype)
