"""equinox.nn.LSTMCell and GRUCell, in a `lax.scan` under `jax.vmap`."""

import equinox as eqx
import jax
import jax.numpy as jnp

from experiments.benchmarks import networks
from recurrent import cells

CELLS = {"lstm": eqx.nn.LSTMCell, "gru": eqx.nn.GRUCell}


def make(problem, drawn, dtype, option):
  """Scans a cell over time for one row, as Equinox documents, under vmap."""
  del option
  lstm = problem.kind == "lstm"
  zeros = jnp.zeros(problem.features, dtype)

  def fill(params):
    cell = CELLS[problem.kind](
      len(params.kernel), problem.features, key=jax.random.key(0)
    )
    leaves = {"weight_ih": params.kernel.T, "weight_hh": params.recurrent.T}
    leaves["bias"] = params.bias
    if not lstm:
      leaves["bias_n"] = params.recurrent_bias
    where = lambda cell: [getattr(cell, name) for name in leaves]
    return eqx.tree_at(where, cell, list(map(jnp.asarray, leaves.values())))

  def run(cell, inputs, reverse):
    def step(carry, x):
      carry = cell(x, carry)
      return carry, carry[0] if lstm else carry

    start = (zeros, zeros) if lstm else zeros
    row = lambda xs: jax.lax.scan(step, start, xs, reverse=reverse)[1]
    return jax.vmap(row)(inputs)

  def back(cell):
    # Gradients of these three arrays are compared, for a GRU too.
    return cells.LSTMParams(cell.weight_ih.T, cell.weight_hh.T, cell.bias)

  return networks.from_cells(drawn, dtype, run, fill, back)
