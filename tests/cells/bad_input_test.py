"""Tests that `unroll` refuses wrong arguments, for every cell in `CELLS`.

Other tests for every cell: unknown names in `base_test.py`, widths of cells in
`laws_test.py`, methods that a cell does not support in `support_test.py`.
"""

import re

import jax
import numpy as np
import pytest

from recurrent import cells, unroll
from recurrent.cells import CELLS, GRUD, LSTM, ConvLSTM, Observations
from tests.cells.cases import inputs_for

BATCH, TIME, D, H = 2, 3, 5, 8
SHAPE = (BATCH, TIME, D)
each_cell = pytest.mark.parametrize("name", CELLS)


def run(name, shape=SHAPE, change=lambda leaf: leaf, **options):
  """`unroll` with inputs of a shape, each array of them changed."""
  cell = CELLS[name](H)
  inputs = inputs_for(cell, np.random.default_rng(0), *shape)
  inputs = jax.tree.map(change, inputs)
  # Under `eval_shape`, since arguments are checked before anything is computed.
  return jax.eval_shape(
    lambda: unroll(
      cell,
      cell.init(jax.random.key(0), D),
      options.pop("carry", None),
      inputs,
      **options,
    )
  )


def refused(words, *args, **kwargs):
  with pytest.raises(ValueError, match=words):
    run(*args, **kwargs)


@each_cell
def test_right_arguments_are_taken(name):
  flags = np.ones((BATCH, TIME), bool)
  carry, _ = run(name, mask=flags, resets=flags)
  given = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), carry)
  assert jax.tree.map(np.shape, run(name, carry=given)[0]) == jax.tree.map(
    np.shape, carry
  )


@each_cell
@pytest.mark.parametrize("shape", [(D,), (TIME, D), (4, BATCH, TIME, D)])
def test_inputs_of_another_rank(name, shape):
  refused(r"inputs.* must be \[batch, time.*got \(", name, shape)


@each_cell
@pytest.mark.parametrize("width", [1, D + 1])
def test_inputs_of_another_width(name, width):
  refused(rf"inputs.* must be.*{D}.*got.*{width}", name, (BATCH, TIME, width))


@each_cell
def test_inputs_without_time_steps(name):
  refused("inputs must have at least one time step", name, (BATCH, 0, D))


@each_cell
@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.complex64])
def test_inputs_of_another_dtype(name, dtype):
  words = f"inputs.* must be floating-point, got .*{np.dtype(dtype)}"
  refused(words, name, change=lambda leaf: leaf.astype(dtype))


@each_cell
@pytest.mark.parametrize("flag", ["mask", "resets"])
@pytest.mark.parametrize(
  ("wrong", "words"),
  [
    (np.ones((TIME, BATCH), bool), r"\[batch, time\] = \(2, 3\)"),
    (np.ones((BATCH, TIME), np.float32), "Boolean, got float32"),
  ],
)
def test_flags_of_another_shape_or_dtype(name, flag, wrong, words):
  refused(rf"{flag} must be .*{words}", name, **{flag: wrong})


@each_cell
@pytest.mark.parametrize(
  "change",
  [
    lambda carry: jax.tree.map(lambda x: x[:1], carry),
    lambda carry: jax.tree.map(lambda x: x[..., :-1], carry),
    lambda carry: jax.tree.map(lambda x: x.astype(np.float16), carry),
    lambda carry: tuple(carry),
    lambda carry: {},
  ],
  ids=["batch", "width", "dtype", "tuple", "nothing"],
)
def test_another_carry(name, change):
  cell = CELLS[name](H)
  params = jax.eval_shape(lambda: cell.init(jax.random.key(0), D))
  carry = jax.eval_shape(lambda p: cell.initial_carry(p, (BATCH,)), params)
  carry = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), carry)
  refused("carry must be .*got", name, carry=change(carry))


@each_cell
@pytest.mark.parametrize("method", ["Scan", None])
def test_a_method_that_there_is_not(name, method):
  refused("method must be one of .*'scan'.*got", name, method=method)


# What only some cells take.


def test_the_cells_that_take_no_vectors_are_these():
  assert set(CELLS) - set(cells.vector_cells()) == {"gru_d", "conv_lstm"}


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda o: o.value, "inputs must be Observations"),
    (tuple, "inputs must be Observations"),
    (
      lambda o: o._replace(observed=o.observed.astype(np.float32)),
      "inputs.observed must be Boolean, got float32",
    ),
    (
      lambda o: o._replace(elapsed=o.elapsed.astype(np.int32)),
      "inputs.elapsed must be floating-point, got int32",
    ),
    (
      lambda o: o._replace(elapsed=o.elapsed[..., :1]),
      r"inputs.elapsed must be \[batch, time, 5\], got \(2, 3, 1\)",
    ),
    (
      lambda o: o._replace(observed=o.observed[..., 0]),
      r"inputs.observed must be \[batch, time, 5\], got \(2, 3\)",
    ),
  ],
)
def test_observations_that_are_none(change, words):
  cell = GRUD(H)
  inputs = change(inputs_for(cell, np.random.default_rng(0), *SHAPE))
  with pytest.raises(ValueError, match=words):
    unroll(cell, cell.init(jax.random.key(0), D), None, inputs)


def test_a_picture_of_another_size():
  cell = ConvLSTM(H, spatial=(4, 6))
  params = cell.init(jax.random.key(0), D)
  words = "inputs must be [batch, time, 4, 6, 5], got (2, 3, 6, 4, 5)"
  with pytest.raises(ValueError, match=re.escape(words)):
    unroll(cell, params, None, np.ones((2, 3, 6, 4, 5), np.float32))


@pytest.mark.parametrize(
  "wrong",
  [
    {"spatial": ()},
    {"spatial": (2, 2, 2, 2)},
    {"spatial": 4},
    {"spatial": [4, 4]},
    {"spatial": (4, 0)},
    {"spatial": (4, 2.0)},
    {"kernel_size": 0},
    {"kernel_size": (3, 3)},
  ],
)
def test_a_convolution_that_is_none(wrong):
  [name] = wrong
  with pytest.raises(ValueError, match=f"{name} must be"):
    ConvLSTM(H, **wrong)


def test_params_of_another_width_are_not_the_inputs_fault():
  params = LSTM(H + 1).init(jax.random.key(0), D)
  inputs = np.ones(SHAPE, np.float32)
  words = r"params.kernel must be \(5, 32\) for LSTM.*got \(5, 36\)"
  with pytest.raises(ValueError, match=words):
    unroll(LSTM(H), params, None, inputs)


def test_params_of_another_cell_are_refused_without_their_numbers():
  params = cells.GRU(H).init(jax.random.key(0), D)
  inputs = np.ones(SHAPE, np.float32)
  with pytest.raises(ValueError, match="params must be .*LSTMParams") as error:
    unroll(LSTM(H), params, None, inputs)
  assert "got PyTreeDef" in str(error.value) and "array" not in str(error.value)


def test_inputs_without_features():
  params = LSTM(H).init(jax.random.key(0), D)
  with pytest.raises(ValueError, match="at least one feature"):
    unroll(LSTM(H), params, None, np.ones((BATCH, TIME, 0), np.float32))


def test_observations_are_for_a_cell_that_takes_them():
  inputs = Observations(*[np.ones(SHAPE, np.float32)] * 3)
  params = LSTM(H).init(jax.random.key(0), D)
  with pytest.raises(ValueError, match="inputs must be .*got Observations"):
    unroll(LSTM(H), params, None, inputs)
