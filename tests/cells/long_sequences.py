"""Errors after 100,000 time steps in float32: the table of docs/proofs.md.

  nice python -m tests.cells.long_sequences [--only=CELL] [--time_steps=N]

Parameters are as `init` draws them, one row, four features. Each entry holds
the relative error of the outputs and, after the slash, of the gradient of the
sum of their squares by all parameters, both against `"scan"` in float64. A few
minutes on 2 cores.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from recurrent import newton, unroll
from recurrent.cells import CELLS
from recurrent.executors import EXECUTORS
from tests.cells.cases import methods

FEATURES = 4


@functools.partial(jax.jit, static_argnums=(0, 1))
def both_passes(cell, method, params, inputs):
  """The outputs, and the gradient of the parameters as one vector."""

  def loss(params):
    outputs = unroll(cell, params, None, inputs, method=method)[1]
    return jnp.sum(jnp.square(outputs)), outputs

  gradient, outputs = jax.grad(loss, has_aux=True)(params)
  return outputs, ravel_pytree(gradient)[0]


def error(got, want):
  """The relative norm of the difference, as text."""
  got, want = (np.asarray(x, np.float64) for x in (got, want))
  if not np.isfinite(want).all():
    return "overflow in float64"
  if not np.isfinite(got).all():
    return "overflow"
  return f"{np.linalg.norm(got - want) / np.linalg.norm(want):.0e}"


def row(name, time_steps):
  """The table's row of one cell: the errors of each method."""
  cell = CELLS[name](FEATURES)
  params = cell.init(jax.random.key(0), FEATURES)
  inputs = jax.random.normal(jax.random.key(1), (1, time_steps, FEATURES))
  inputs = inputs.astype(jnp.float32)
  wide = jax.tree.map(lambda x: x.astype(jnp.float64), (params, inputs))
  want = both_passes(cell, "scan", *wide)
  found = dict.fromkeys(EXECUTORS, "")
  for method in methods(cell):
    got = both_passes(cell, method, params, inputs)
    found[method] = " / ".join(map(error, got, want))
    if method == "newton":
      run = jax.jit(functools.partial(newton, cell))
      report = run(params, None, inputs)[2]
      how = "" if report.converged else "the loop, after "
      found[method] += f" ({how}{report.iterations})"
  return f"| `{name}` | {' | '.join(found.values())} |"


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--only", default="", help="cells with this in the name")
  parser.add_argument("--time_steps", type=int, default=100_000)
  args = parser.parse_args()
  print(f"| cell | {' | '.join(EXECUTORS)} |")
  print(f"|---|{'---|' * len(EXECUTORS)}")
  with jax.enable_x64(True):
    for name in CELLS:
      if args.only in name:
        print(row(name, args.time_steps), flush=True)


if __name__ == "__main__":
  main()
