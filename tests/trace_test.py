import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import recurrent
from recurrent import trace, unroll
from recurrent.cells import CELLS, LSTM
from tests.cells.cases import (
  Case,
  assert_close,
  assert_same_bits,
  cases,
  everything,
  floats,
  jit,
  joined,
  law,
  one_case,
)

FEATURES, SHAPE = 4, (3, 7, 2)


def arguments(case):
  args = case.params, case.carry, case.inputs
  return args, {"mask": case.mask, "resets": case.resets}


@functools.lru_cache
def both(cell, reverse):
  """The function from a `Case` to what `trace` and `unroll` give."""

  def run(case):
    args, flags = arguments(case)
    flags["reverse"] = reverse
    return (
      trace(cell, *args, **flags),
      unroll(cell, *args, **flags, method="scan"),
    )

  return jit(run)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("name", CELLS)
@settings(law, max_examples=4)
@given(data=st.data())
def test_outputs_and_last_carry_are_those_of_unroll(x64, name, reverse, data):
  cell = CELLS[name](FEATURES)
  case = data.draw(cases(cell, (SHAPE,)))
  (carries, outputs), want = both(cell, reverse)(case)
  last = jax.tree.map(lambda x: x[:, 0 if reverse else -1], carries)
  assert_close((last, outputs), want, 1e-12)


@pytest.mark.parametrize("name", ["lstm", "gru_d"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_each_carry_is_where_unroll_over_a_part_ends(x64, name, reverse):
  cell = CELLS[name](FEATURES)
  case = one_case(cell, SHAPE)
  (carries, _), _ = both(cell, reverse)(case)
  for now in range(SHAPE[1]):
    times = np.arange(SHAPE[1])
    met = times >= now if reverse else times <= now
    # A time step that is masked does not take place.
    _, (carry, _) = both(cell, reverse)(case._replace(mask=case.mask & met))
    assert_close(jax.tree.map(lambda x, t=now: x[:, t], carries), carry, 1e-12)


def test_a_masked_time_step_holds_the_carry_to_the_bit():
  cell = LSTM(FEATURES)
  case = jax.tree.map(
    lambda x: x.astype(np.float32) if x.dtype == np.float64 else x,
    one_case(cell, SHAPE),  # of which time step 1 is masked
  )
  case.inputs[:, 1] = np.nan
  (carries, outputs), _ = both(cell, False)(case)
  at = lambda t: jax.tree.map(lambda x: x[:, t], carries)
  assert_same_bits(at(1), at(0))
  assert not np.asarray(outputs)[:, 1].any()
  assert all(np.isfinite(x).all() for x in carries)


@pytest.mark.parametrize("name", ["lstm", "gru_d"])
def test_gradients_are_those_of_unroll(x64, name):
  cell = CELLS[name](FEATURES)
  case = one_case(cell, SHAPE)
  weights = case.weights

  @jit
  @functools.partial(jax.grad, argnums=(0, 1, 2))
  def gradients(params, carry, reals):
    inputs = joined(reals, case.inputs)
    _, flags = arguments(case)
    carries, outputs = trace(cell, params, carry, inputs, **flags)
    last = jax.tree.map(lambda x: x[:, -1], carries)
    leaves = zip(
      jax.tree.leaves((outputs, last)), jax.tree.leaves(weights), strict=True
    )
    return sum(jnp.sum(x * w) for x, w in leaves)

  got = gradients(case.params, case.carry, floats(case.inputs))
  want = everything(cell, method="scan")(case)
  assert_close(got, (want.d_params, want.d_carry, want.d_inputs), 1e-12)


def test_a_cell_in_bfloat16_keeps_a_float32_carry():
  cell = LSTM(FEATURES)
  params = cell.init(jax.random.key(0), 2)
  inputs = jnp.ones((2, 3, 2), jnp.bfloat16)
  carries, outputs = jax.eval_shape(lambda: trace(cell, params, None, inputs))
  assert outputs.dtype == jnp.bfloat16
  assert {x.dtype for x in carries} == {np.dtype("float32")}


def test_it_starts_from_the_carry_given_and_resets_to_the_initial_one():
  cell = LSTM(FEATURES)
  case: Case = jax.tree.map(
    lambda x: jnp.asarray(x, "float32" if x.dtype == np.float64 else x.dtype),
    one_case(cell, SHAPE),
  )
  initial = jax.tree.map(lambda x: x + 1, case.carry)
  args, _ = arguments(case)
  resets = jnp.zeros(SHAPE[:2], bool).at[:, 3].set(True)
  carries, _ = trace(cell, *args, resets=resets, initial=initial)
  rest, _ = trace(cell, case.params, initial, case.inputs[:, 3:])
  assert_close(jax.tree.map(lambda x: x[:, 3:], carries), rest, 1e-6)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"inputs": np.ones((3, 5), np.float32)}, r"inputs must be \[batch, time"),
    ({"inputs": np.ones((2, 3, 5), np.int32)}, "inputs must be floating"),
    ({"mask": np.ones((3, 2), bool)}, "mask must be .* transpose"),
    ({"resets": np.ones((2, 3), np.int32)}, "resets must be Boolean"),
    ({"carry": (np.zeros((2, 4)),)}, "carry must be"),
  ],
)
def test_it_refuses_what_unroll_refuses(change, message):
  cell = LSTM(4)
  arguments = {
    "params": cell.init(jax.random.key(0), 5),
    "carry": None,
    "inputs": np.ones((2, 3, 5), np.float32),
    **change,
  }
  for run in (recurrent.trace, recurrent.unroll):
    with pytest.raises(ValueError, match=message):
      run(cell, **arguments)
