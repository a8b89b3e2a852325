"""A new cell of a few lines satisfies all laws of the cells."""

import dataclasses
import inspect
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from recurrent import initializers, numerics
from recurrent.cells import CELLS, GatedCell, RNNCarry
from tests.cells import laws_test
from tests.cells.cases import methods


# The cell begins.
class UGRNNParams(NamedTuple):
  kernel: Any
  recurrent: Any
  bias: Any


@dataclasses.dataclass(frozen=True)
class UGRNN(GatedCell):
  def init(self, key, in_features):
    keys, h = jax.random.split(key), self.features
    kernel = initializers.lecun_uniform(keys[0], (in_features, 2 * h))
    recurrent = initializers.orthogonal_blocks(keys[1], h, 2)
    return UGRNNParams(kernel, recurrent, jnp.zeros((2 * h,), jnp.float32))

  def initial_carry(self, params, batch_shape):
    return RNNCarry(numerics.zeros(params, batch_shape, self.features))

  def project(self, params, inputs):
    return numerics.affine(inputs, params.kernel, params.bias)

  def recur(self, params, carry):
    return numerics.hidden_product(carry.hidden, params.recurrent)

  def gate(self, params, carry, projected, mixed):
    g, c = numerics.split_gates(numerics.as_carry(projected + mixed, carry), 2)
    keep = jax.nn.sigmoid(g)
    hidden = keep * carry.hidden + (1 - keep) * jnp.tanh(c)
    return RNNCarry(hidden), hidden.astype(projected.dtype)


# The cell ends.


def laws():
  """Every law that is parametrized by a cell, with its other parameters."""
  for name, law in vars(laws_test).items():
    marks = getattr(law, "pytestmark", [])
    taken = {
      mark.args[0]: mark.args[1] for mark in marks if mark.name == "parametrize"
    }
    if not any("name" in names for names in taken):
      continue
    wide = any("x64" in m.args for m in marks if m.name == "usefixtures")
    wide = wide or "x64" in inspect.signature(law).parameters
    rest = {
      names: values for names, values in taken.items() if "name" not in names
    }
    for names in taken:
      if "name" in names and "method" in names:
        rest["method"] = methods(UGRNN(1))
      if "name" in names and "way" in names:
        rest["way"] = laws_test.DERIVATIVES
    for values in itertools.product(*rest.values()):
      chosen = dict(zip(rest, values, strict=True))
      label = "-".join([name, *map(str, values)])
      yield pytest.param(law, chosen, wide, id=label)


@pytest.mark.parametrize(("law", "chosen", "wide"), list(laws()))
def test_a_new_cell_obeys(law, chosen, wide, monkeypatch):
  monkeypatch.setitem(CELLS, "ugrnn", UGRNN)
  extra = {"x64": None} if "x64" in inspect.signature(law).parameters else {}
  with jax.enable_x64(wide):
    law(name="ugrnn", **chosen, **extra)


def test_it_took_at_most_25_lines():
  source = inspect.getsource(inspect.getmodule(UGRNN))
  cell = source.split("# The cell begins.")[1].split("# The cell ends.")[0]
  lines = [line for line in cell.splitlines() if line.strip()]
  assert len(lines) <= 25, len(lines)
