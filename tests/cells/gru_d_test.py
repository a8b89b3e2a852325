import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recurrent import unroll
from recurrent.cells import (
  GRUD,
  GRUDCarry,
  GRUDParams,
  GRUParams,
  GRUResetBefore,
  Observations,
  elapsed_since_observed,
)
from tests.cells.cases import assert_close, assert_same_bits

BATCH, TIME, D, H = 3, 6, 2, 4
CELL = GRUD(H)


def drawn(dtype=np.float32):
  """Parameters of which none is zero, and observations with gaps."""
  random = np.random.default_rng(0)
  normal = lambda *shape: random.normal(size=shape).astype(dtype)
  params = jax.tree.map(
    lambda x: np.asarray(x) + 0.3 * normal(*x.shape),
    CELL.init(jax.random.key(0), D),
  )
  observed = random.random((BATCH, TIME, D)) < 0.5
  times = np.cumsum(random.random((BATCH, TIME)), axis=1).astype(dtype)
  elapsed = elapsed_since_observed(times, observed)
  value = normal(BATCH, TIME, D)
  return params, Observations(value, observed, elapsed)


# Time.


def test_elapsed_time_is_the_recursion_of_the_paper(x64):
  random = np.random.default_rng(0)
  times = np.cumsum(random.random((20, 30)), axis=1) - 3
  observed = random.random((20, 30, 4)) < random.random((20, 1, 4))
  want = np.zeros(observed.shape)
  for row, t, d in np.ndindex(observed.shape):
    if t:
      step = times[row, t] - times[row, t - 1]
      before = 0 if observed[row, t - 1, d] else want[row, t - 1, d]
      want[row, t, d] = step + before
  got = elapsed_since_observed(times, observed)
  # A difference of times against a sum of up to 29 of them.
  assert_close(got, want, 1e-14)
  # Some variable is observed all the time, and some never.
  assert observed.all(axis=1).any() and not observed.any(axis=1).all()


@pytest.mark.parametrize(
  ("times", "observed", "words"),
  [
    (np.ones(3, "f4"), np.ones((3, 2), bool), "times must be"),
    (np.ones((1, 3), "i4"), np.ones((1, 3, 2), bool), "times must be .*int32"),
    (np.ones((1, 3), "f4"), np.ones((1, 4, 2), bool), "observed must be"),
    (np.ones((1, 3), "f4"), np.ones((1, 3), bool), "observed must be"),
    (np.ones((1, 3), "f4"), np.ones((1, 3, 2), "f4"), "observed .*float32"),
  ],
)
def test_wrong_times_are_refused(times, observed, words):
  with pytest.raises(ValueError, match=words):
    elapsed_since_observed(times, observed)


# Missing values.


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e38])
def test_what_stands_where_nothing_is_observed_changes_no_bit(garbage):
  params, inputs = drawn()

  @jax.jit
  def both_passes(params, value, elapsed):
    def run(params, value, elapsed):
      given = Observations(value, inputs.observed, elapsed)
      carry, outputs = unroll(CELL, params, None, given)
      return outputs.sum() + carry.last.sum(), (carry, outputs)

    return jax.value_and_grad(run, (0, 1, 2), has_aux=True)(
      params, value, elapsed
    )

  value = np.where(inputs.observed, inputs.value, np.float32(garbage))
  want = both_passes(params, inputs.value, inputs.elapsed)
  got = both_passes(params, value, inputs.elapsed)
  assert_same_bits(got, want)
  assert not np.asarray(got[1][1])[~inputs.observed].any()
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))


def test_without_gaps_and_decay_it_is_the_gru_with_its_reset_before(x64):
  params, inputs = drawn(np.float64)
  inputs = inputs._replace(observed=np.ones_like(inputs.observed))
  zero = np.zeros_like
  params = params._replace(
    hidden_decay=zero(params.hidden_decay),
    hidden_decay_bias=zero(params.hidden_decay_bias) - 1,
  )
  # With all observed the mask adds a constant.
  bias = params.bias + params.observed_kernel.sum(0)
  gru = GRUParams(params.kernel, params.recurrent, bias, np.zeros(H))
  carry, outputs = unroll(CELL, params, None, inputs)
  want_carry, want = unroll(GRUResetBefore(H), gru, None, inputs.value)
  assert_close((outputs, carry.hidden), (want, want_carry.hidden), 1e-14)
  assert_same_bits(carry.last, inputs.value[:, -1])


def test_a_missing_value_goes_from_the_last_one_to_the_mean():
  # What the cell sees, through a candidate that is nearly linear.
  zero = CELL.init(jax.random.key(0), 1)
  zero = jax.tree.map(jnp.zeros_like, zero)
  small = 1e-3
  params = zero._replace(
    kernel=zero.kernel.at[0, 2 * H :].set(small),
    bias=zero.bias.at[H : 2 * H].set(-30),  # z = 0: h is the candidate
    input_decay=jnp.ones(1) * 0.5,
    input_decay_bias=-jnp.ones(1),
    mean=jnp.ones(1) * 3,
  )
  elapsed = np.array([0, 1, 2, 4, 100], np.float32)[None, :, None]
  value = np.array([7, 0, 0, 0, 0], np.float32)[None, :, None]
  for first, known in ((True, 7.0), (False, 3.0)):
    observed = np.zeros((1, 5, 1), bool)
    observed[:, 0] = first
    inputs = Observations(value, observed, elapsed)
    _, outputs = unroll(CELL, params, None, inputs)
    keep = np.exp(-np.maximum(0, 0.5 * elapsed - 1))
    want = keep * known + (1 - keep) * 3
    # tanh leaves a third of its argument squared: 7e-3 squared, of 7.
    np.testing.assert_allclose(outputs[..., :1] / small, want, rtol=2e-5)


def test_before_the_first_time_step_the_last_value_is_the_mean(x64):
  params, _ = drawn(np.float64)
  carry = CELL.initial_carry(params, (2, 3))
  assert type(carry) is GRUDCarry and not carry.hidden.any()
  assert carry.hidden.shape == (2, 3, H)
  assert_same_bits(carry.last, np.broadcast_to(params.mean, (2, 3, D)))


def test_the_parameters_have_the_promised_shapes_and_decays_begin_on():
  params = CELL.init(jax.random.key(0), D)
  assert type(params) is GRUDParams
  assert {k: v.shape for k, v in params._asdict().items()} == {
    "kernel": (D, 3 * H),
    "observed_kernel": (D, 3 * H),
    "recurrent": (H, 3 * H),
    "bias": (3 * H,),
    "input_decay": (D,),
    "input_decay_bias": (D,),
    "hidden_decay": (D, H),
    "hidden_decay_bias": (H,),
    "mean": (D,),
  }
  # Rates from 0 to 1 when every time is one.
  for rate in (params.input_decay, params.hidden_decay.sum(axis=0)):
    assert (rate > 0).all() and (rate < 1).all()
  assert not params.mean.any()


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("wide", ["value", "elapsed"])
def test_values_and_times_may_differ_in_dtype(wide):
  params, inputs = drawn()
  narrow = {"value", "elapsed"} - {wide}
  inputs = inputs._replace(
    **{k: jnp.asarray(getattr(inputs, k), jnp.bfloat16) for k in narrow}
  )
  _, outputs = unroll(CELL, params, None, inputs)
  assert outputs.dtype == jnp.float32
