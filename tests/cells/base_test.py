import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recurrent import cells, numerics
from recurrent.cells import LSTM


def test_a_name_gives_its_row_of_the_table():
  for name, row in cells.CELLS.items():
    assert cells.get(name) is row


@pytest.mark.parametrize(
  ("wrong", "near"), [("lstn", "lstm"), ("LSTM", None), ("gru_before", None)]
)
def test_an_unknown_name_is_answered_with_the_nearest_and_all(wrong, near):
  with pytest.raises(ValueError, match=f"no cell {wrong!r}") as caught:
    cells.get(wrong)
  message = str(caught.value)
  if near:
    assert f"did you mean {near!r}?" in message
  assert all(name in message for name in cells.CELLS)


def test_a_name_near_none_reads_as_two_sentences():
  with pytest.raises(ValueError) as caught:
    cells.get("zzzz")
  assert str(caught.value).startswith("no cell 'zzzz'. Known: rnn, ")


@pytest.mark.parametrize("wrong", [True, False])
def test_a_boolean_is_no_width(wrong):
  with pytest.raises(ValueError, match="features must be"):
    LSTM(wrong)


def test_a_cast_reaches_every_parameter():
  params = LSTM(4).init(jax.random.key(0), 3)
  narrow = numerics.cast(params, jnp.bfloat16)
  assert type(narrow) is type(params)
  assert {x.dtype for x in narrow} == {jnp.dtype(jnp.bfloat16)}


def test_zeros_are_float32_unless_a_parameter_is_float64(x64):
  narrow, single, double = (
    {"a": np.ones(2, dtype)} for dtype in (jnp.bfloat16, "f4", "f8")
  )
  for params, dtype in ((narrow, "f4"), (single, "f4"), (double, "f8")):
    zeros = numerics.zeros(params, (2, 3), 4)
    assert (zeros.shape, zeros.dtype) == ((2, 3, 4), dtype)
    assert not zeros.any()


def test_gates_are_cut_from_the_last_axis_in_order():
  array = jnp.arange(12).reshape(1, 12)
  r, z, n = numerics.split_gates(array, 3)
  assert r.tolist() == [[0, 1, 2, 3]]
  assert z.tolist() == [[4, 5, 6, 7]]
  assert n.tolist() == [[8, 9, 10, 11]]
