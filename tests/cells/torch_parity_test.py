"""The cells against `torch.nn`: both directions, ragged rows, all gradients.

The golden files were made by `make_golden.py`. If torch can be imported, other
sizes are compared with it directly.
"""

import jax
import numpy as np
import pytest

from recurrent.cells import GRU, LSTM, RNN
from tests.cells import make_golden
from tests.cells.cases import Case, assert_close, everything

CELLS = {
  "rnn_tanh": RNN,
  "rnn_relu": lambda features: RNN(features, activation="relu"),
  "lstm": LSTM,
  "gru": GRU,
}
each_kind = pytest.mark.parametrize("kind", make_golden.KINDS)


def named(arrays, direction, prefix=""):
  """One direction's parameters or gradients, under torch's short names."""
  return {
    name: arrays[f"{prefix}{name}_l0{direction}"]
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
  }


def as_params(cell, weight_ih, weight_hh, bias_ih, bias_hh):
  """Converts torch's parameters; gates have the same order as in a cell.

  Torch has two biases per gate. A cell has their sum, except for the candidate
  of the GRU, whose second bias is multiplied by the reset gate.
  """
  inner = {}
  if isinstance(cell, GRU):
    inner = {"recurrent_bias": bias_hh[-cell.features :]}
    bias_hh = bias_hh.copy()
    bias_hh[-cell.features :] = 0
  params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 1))
  return type(params)(weight_ih.T, weight_hh.T, bias_ih + bias_hh, **inner)


def as_gradients(cell, weight_ih, weight_hh, bias_ih, bias_hh):
  """Their gradients: of two biases that add up each has the sum's."""
  inner = {}
  if isinstance(cell, GRU):
    inner = {"recurrent_bias": bias_hh[-cell.features :]}
  params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 1))
  return type(params)(weight_ih.T, weight_hh.T, bias_ih, **inner)


def compare(kind, arrays, dtype, method, forward, backward):
  """Compares outputs, last carry and every gradient with torch's."""
  arrays = {
    name: value.astype(dtype) if value.dtype.kind == "f" else value
    for name, value in arrays.items()
  }
  batch, time, _ = arrays["inputs"].shape
  features = arrays["outputs"].shape[-1] // 2
  cell = CELLS[kind](features)
  parts = range(make_golden.KINDS[kind][1])
  carry_type = type(cell.initial_carry(np.ones(1, dtype), (1,)))
  d_inputs = np.zeros_like(arrays["inputs"])
  for side, (direction, reverse) in enumerate(make_golden.DIRECTIONS.items()):
    half = slice(side * features, (side + 1) * features)
    carries = lambda name, side=side: carry_type(
      *(arrays[f"{name}_{part}"][side] for part in parts)
    )
    case = Case(
      params=as_params(cell, **named(arrays, direction)),
      carry=carries("first"),
      inputs=arrays["inputs"],
      mask=np.arange(time) < arrays["lengths"][:, None],
      resets=None,
      weights=(arrays["weight_outputs"][..., half], carries("weight_last")),
    )
    got = everything(cell, method=method, reverse=reverse)(case)
    assert_close(
      (got.outputs, got.carry),
      (arrays["outputs"][..., half], carries("last")),
      forward,
    )
    assert_close(
      (got.d_params, got.d_carry),
      (
        as_gradients(cell, **named(arrays, direction, "d_")),
        carries("d_first"),
      ),
      backward,
    )
    d_inputs = d_inputs + got.d_inputs
  assert_close(d_inputs, arrays["d_inputs"], backward)


def golden(kind):
  with np.load(make_golden.GOLDEN / f"{kind}.npz", allow_pickle=False) as file:
    return dict(file)


@each_kind
@pytest.mark.parametrize("method", ["scan", "fused"])
def test_float64_goldens_are_met(kind, method, x64):
  # The same sums in another order, through six time steps: some 1e-15.
  compare(kind, golden(kind), np.float64, method, 1e-12, 1e-12)


@each_kind
def test_goldens_are_met_in_float32(kind):
  # float32 rounds at 6e-8; a gradient sums over all rows and time steps.
  compare(kind, golden(kind), np.float32, "auto", 1e-5, 1e-4)


@each_kind
def test_the_goldens_say_what_made_them(kind):
  arrays = golden(kind)
  assert str(arrays["torch_version"]).startswith("2.13.0")
  assert str(arrays["numpy_version"]).startswith("2.")
  assert arrays["inputs"].dtype == np.float64
  assert sorted(arrays["lengths"])[0] == 1
  # No bias is zero, and no gradient all zero: that would hide a missing term.
  for name, value in arrays.items():
    assert not name.startswith("bias") or value.all()
    assert not name.startswith("d_") or value.any()


@each_kind
def test_torch_itself_agrees(kind):
  pytest.importorskip("torch")
  arrays = make_golden.run(
    kind,
    batch=3,
    time=20,
    in_features=8,
    features=16,
    seed=100,
    dtype="float32",
  )
  # float32 rounds at 6e-8; a gradient sums over all rows and time steps.
  compare(kind, arrays, np.float32, "auto", 1e-5, 1e-4)
