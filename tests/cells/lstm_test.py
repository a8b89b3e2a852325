import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurrent.cells import LSTM, LSTMCarry, LSTMParams
from tests.cells import reference
from tests.cells.cases import assert_close, cases, forward, law


@pytest.mark.usefixtures("x64")
@law
@given(data=st.data(), reverse=st.booleans())
def test_it_is_the_formula(data, reverse):
  cell = LSTM(4)
  case = data.draw(cases(cell))
  gates = reference.split(*case.params, names="ifgo")
  want = reference.unroll(
    lambda carry, x: reference.lstm(gates, carry, x),
    case.carry,
    jax.tree.map(np.zeros_like, case.carry),
    case.inputs,
    case.mask,
    case.resets,
    reverse,
  )
  outputs, carry = forward(cell, reverse=reverse)(case)
  # The sums run in another order: some ten roundings of 1e-16.
  assert_close((outputs, tuple(carry)), want, 1e-12)


def test_the_parameters_have_the_promised_names_and_shapes():
  params = LSTM(4).init(jax.random.key(0), 3)
  assert type(params) is LSTMParams
  assert {k: v.shape for k, v in params._asdict().items()} == {
    "kernel": (3, 16),
    "recurrent": (4, 16),
    "bias": (16,),
  }
  assert {x.dtype for x in params} == {jnp.dtype(jnp.float32)}
  gates = np.split(np.asarray(params.recurrent), 4, axis=1)
  for gate in gates:
    # Orthogonal to float32's 6e-8 and the few roundings of a QR.
    np.testing.assert_allclose(gate.T @ gate, np.eye(4), atol=1e-6)
  assert len({gate.tobytes() for gate in gates}) == 4
  # Uniform with variance 1 / fan_in, so bounded by its root times root 3.
  assert (np.abs(params.kernel) <= 1).all()


@pytest.mark.parametrize("forget_bias", [1.0, 0.0, -2.5])
def test_the_forget_bias_is_a_value_in_the_bias(forget_bias):
  cell = LSTM(4, forget_bias=forget_bias)
  params = cell.init(jax.random.key(0), 3)
  i, f, g, o = np.split(np.asarray(params.bias), 4)
  assert (f == forget_bias).all()
  assert not np.concatenate([i, g, o]).any()
  assert LSTM(4).forget_bias == 1.0


@pytest.mark.parametrize("forget_bias", [1.0, 0.0, -2.5])
def test_a_step_adds_no_forget_bias_of_its_own(forget_bias):
  cell = LSTM(1, forget_bias=forget_bias)
  params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 1))
  carry = LSTMCarry(hidden=jnp.zeros((1, 1)), cell=jnp.ones((1, 1)))
  projected = cell.project(params, jnp.zeros((1, 1)))
  carry, outputs = cell.step(params, carry, projected)
  # sigmoid(0) * 1 + sigmoid(0) * tanh(0).
  assert carry.cell == 0.5
  # sigmoid(0) * tanh(0.5), to float32's 6e-8.
  assert float(outputs[0, 0]) == pytest.approx(0.2310585786, rel=3e-7)


def test_the_output_is_the_hidden_state_and_not_the_cell():
  cell = LSTM(4)
  params = cell.init(jax.random.key(0), 3)
  carry = cell.initial_carry(params, (2,))
  assert type(carry) is LSTMCarry
  assert not carry.hidden.any() and not carry.cell.any()
  carry, outputs = cell.step(params, carry, jnp.ones((2, 16)))
  assert (carry.hidden == outputs).all() and (carry.cell != outputs).all()
