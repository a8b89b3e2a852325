import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurrent.cells import CELLS, RNN, RNNCarry, RNNParams
from tests.cells import reference
from tests.cells.cases import assert_close, cases, forward, law

ACTIVATIONS = {
  "tanh": np.tanh,
  "relu": reference.relu,
  "sigmoid": reference.sigmoid,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.usefixtures("x64")
@law
@given(data=st.data(), reverse=st.booleans())
def test_it_is_the_formula(activation, data, reverse):
  cell = RNN(4, activation=activation)
  case = data.draw(cases(cell))
  gates = reference.split(*case.params, names="h")
  want = reference.unroll(
    lambda carry, x: reference.rnn(
      ACTIVATIONS[activation], gates["h"], carry, x
    ),
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
  params = RNN(4).init(jax.random.key(0), 3)
  assert type(params) is RNNParams
  assert {k: v.shape for k, v in params._asdict().items()} == {
    "kernel": (3, 4),
    "recurrent": (4, 4),
    "bias": (4,),
  }
  assert {x.dtype for x in params} == {jnp.dtype(jnp.float32)}
  # Orthogonal to float32's 6e-8 and the few roundings of a QR.
  np.testing.assert_allclose(
    params.recurrent.T @ params.recurrent, np.eye(4), atol=1e-6
  )
  assert not params.bias.any()
  # Uniform with variance 1 / fan_in, so bounded by its root times root 3.
  assert (np.abs(params.kernel) <= 1).all()


def test_the_carry_is_the_hidden_state_and_the_output():
  cell = RNN(4)
  params = cell.init(jax.random.key(0), 3)
  carry = cell.initial_carry(params, (2,))
  assert type(carry) is RNNCarry and not carry.hidden.any()
  carry, outputs = cell.step(params, carry, jnp.ones((2, 4)))
  assert (carry.hidden == outputs).all()


def test_the_table_has_a_row_for_every_activation():
  assert CELLS["rnn"](4) == RNN(4, activation="tanh")
  assert CELLS["rnn_relu"](4) == RNN(4, activation="relu")
  assert CELLS["rnn_sigmoid"](4) == RNN(4, activation="sigmoid")


@pytest.mark.parametrize("wrong", ["Tanh", "gelu", "", None, jnp.tanh])
def test_an_unknown_activation_is_refused_with_those_there_are(wrong):
  with pytest.raises(ValueError, match="activation must be one of") as caught:
    RNN(4, activation=wrong)
  for part in (repr(wrong), "'relu'", "'sigmoid'", "'tanh'"):
    assert part in str(caught.value)
