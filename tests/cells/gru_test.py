import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurrent import unroll
from recurrent.cells import GRU, GatedCell, GRUCarry, GRUParams, GRUResetBefore
from tests.cells import reference
from tests.cells.cases import assert_close, cases, forward, law

both = pytest.mark.parametrize("cell", [GRU(4), GRUResetBefore(4)], ids=repr)


@both
@pytest.mark.usefixtures("x64")
@law
@given(data=st.data(), reverse=st.booleans())
def test_it_is_the_formula(cell, data, reverse):
  case = data.draw(cases(cell))
  kernel, recurrent, bias, inner = case.params
  time_step = functools.partial(
    reference.gru,
    reference.split(kernel, recurrent, bias, names="rzn"),
    inner,
    reset_before=isinstance(cell, GRUResetBefore),
  )
  want = reference.unroll(
    time_step,
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


@both
def test_the_parameters_have_the_promised_names_and_shapes(cell):
  params = cell.init(jax.random.key(0), 3)
  assert type(params) is GRUParams
  assert {k: v.shape for k, v in params._asdict().items()} == {
    "kernel": (3, 12),
    "recurrent": (4, 12),
    "bias": (12,),
    "recurrent_bias": (4,),
  }
  assert {x.dtype for x in params} == {jnp.dtype(jnp.float32)}
  gates = np.split(np.asarray(params.recurrent), 3, axis=1)
  for gate in gates:
    # Orthogonal to float32's 6e-8 and the few roundings of a QR.
    np.testing.assert_allclose(gate.T @ gate, np.eye(4), atol=1e-6)
  assert len({gate.tobytes() for gate in gates}) == 3
  assert not params.bias.any() and not params.recurrent_bias.any()
  # Uniform with variance 1 / fan_in, so bounded by its root times root 3.
  assert (np.abs(params.kernel) <= 1).all()


@both
def test_the_carry_is_the_hidden_state_and_the_output(cell):
  params = cell.init(jax.random.key(0), 3)
  carry = cell.initial_carry(params, (2,))
  assert type(carry) is GRUCarry and not carry.hidden.any()
  carry, outputs = cell.step(params, carry, jnp.ones((2, 12)))
  assert (carry.hidden == outputs).all()


def one_time_step(cell, carry, **biases):
  """The output of one unit whose other parameters are all zero."""
  zero = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 1))
  params = zero._replace(**{k: jnp.array(v) for k, v in biases.items()})
  return float(unroll(cell, params, carry, jnp.zeros((1, 1, 1)))[1][0, 0, 0])


@pytest.mark.parametrize("carry", [None, GRUCarry(jnp.zeros((1, 1)))])
def test_the_inner_bias_counts_from_the_first_time_step_on(carry):
  # Not so in google/flax#5594, which has no such bias, and ml-explore/mlx#3249,
  # which leaves it out where no carry is given. r = z = 1/2.
  got = one_time_step(GRU(1), carry, recurrent_bias=[2.0])
  assert got == pytest.approx(0.5 * np.tanh(0.5 * 2), rel=3e-7)  # float32


def test_the_two_orders_of_reset_and_product_are_two_cells():
  # With h = 0 only the place of the inner bias tells them apart.
  after, before = (
    one_time_step(cell(1), None, recurrent_bias=[2.0])
    for cell in (GRU, GRUResetBefore)
  )
  assert before == pytest.approx(0.5 * np.tanh(2), rel=3e-7)  # float32
  assert after != pytest.approx(before, rel=0.1)
  assert isinstance(GRU(1), GatedCell)
  assert not isinstance(GRUResetBefore(1), GatedCell)


def test_an_open_update_gate_holds_the_hidden_state():
  # z = sigmoid(50) = 1 in float32: torch's z, which is 1 - z in the paper.
  carry = GRUCarry(jnp.full((1, 1), 0.25))
  got = one_time_step(GRU(1), carry, bias=[0.0, 50.0, 3.0])
  assert got == 0.25
