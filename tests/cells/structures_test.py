import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurrent.cells import (
  CELLS,
  GRU,
  LSTM,
  RNN,
  Dense,
  Diagonal,
  GRUResetBefore,
  Heads,
  LowRank,
  parameter_budget,
)
from tests.cells.cases import assert_close, cases, everything, law, methods

STRUCTURES = (Heads(2), Diagonal(), LowRank(3))
FEATURES, GATES = 4, 3


def as_dense(structure, weights):
  """The [H, G*H] matrix with the same product, from the definition."""
  out = np.zeros((FEATURES, GATES, FEATURES))
  if isinstance(structure, Heads):
    size = FEATURES // structure.heads
    for head, block in enumerate(np.asarray(weights)):
      at = slice(head * size, (head + 1) * size)
      out[at, :, at] = block
  elif isinstance(structure, Diagonal):
    for gate, row in enumerate(np.asarray(weights)):
      out[:, gate] = np.diag(row)
  else:
    out = np.asarray(weights.down) @ np.asarray(weights.up)
  return out.reshape(FEATURES, -1)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("structure", [Dense(), *STRUCTURES], ids=str)
def test_a_product_is_that_of_a_matrix_with_zeros(structure):
  weights = structure.init(jax.random.key(0), FEATURES, GATES)
  weights = jax.tree.map(lambda x: x.astype(jnp.float64), weights)
  hidden = np.random.default_rng(0).normal(size=(2, 5, FEATURES))
  dense = (
    np.asarray(weights)
    if structure == Dense()
    else as_dense(structure, weights)
  )
  got = structure.product(jnp.asarray(hidden), weights)
  assert_close(got, hidden @ dense, 1e-13)
  some = structure.take(weights, slice(1, 3))
  got = structure.product(jnp.asarray(hidden), some)
  assert_close(got, hidden @ dense[:, FEATURES:], 1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
@pytest.mark.parametrize(
  "kind", [RNN, LSTM, GRU, GRUResetBefore], ids=lambda kind: kind.__name__
)
@settings(law, max_examples=3)
@given(data=st.data())
def test_every_method_agrees_on_every_structure(kind, structure, data):
  cell = kind(FEATURES, structure=structure)
  case = data.draw(cases(cell, ((3, 5, 2),)))
  want = everything(cell, method="scan")(case)
  for method in methods(cell)[1:]:
    assert_close(everything(cell, method=method)(case), want, 1e-12)


@pytest.mark.parametrize(
  ("structure", "words"),
  [(Heads(3), "heads"), (Heads(0), "heads"), (LowRank(5), "rank")],
)
def test_a_structure_that_does_not_fit_is_refused(structure, words):
  with pytest.raises(ValueError, match=words):
    LSTM(FEATURES, structure=structure)


def count(cell, in_features):
  params = jax.eval_shape(lambda: cell.init(jax.random.key(0), in_features))
  return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", CELLS)
def test_the_budget_is_met_and_no_wider_cell_meets_it(name):
  width = parameter_budget(CELLS[name], 16, 5000)
  assert (
    count(CELLS[name](width), 16) <= 5000 < count(CELLS[name](width + 1), 16)
  )


def test_the_budget_keeps_what_the_cell_has():
  cell = LSTM(8, structure=Heads(8))
  width = parameter_budget(cell, 16, 5000)
  assert width % 8 == 0
  sizes = [count(LSTM(w, structure=Heads(8)), 16) for w in (width, width + 8)]
  assert sizes[0] <= 5000 < sizes[1]


def test_a_budget_too_small_is_refused():
  with pytest.raises(ValueError, match="at most 10 parameters"):
    parameter_budget(LSTM(1), 16, 10)


def test_the_budget_counts_a_layer_on_top_if_it_is_told_of_one():
  width = parameter_budget(LSTM, 16, 5000, outputs=50)
  sizes = [count(LSTM(w), 16) + 50 * (w + 1) for w in (width, width + 1)]
  assert sizes[0] <= 5000 < sizes[1]
