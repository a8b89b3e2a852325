"""The training step: an update, or nothing at all."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from recurrent import sharding
from recurrent.metrics import Mean
from recurrent.training import step as step_lib
from recurrent.training.state import create

# optax mixes Python numbers and int32 counts.
pytestmark = pytest.mark.usefixtures("standard_promotion")


class Scale(nnx.Module):
  """One weight, so that every number can be worked out by hand."""

  def __init__(self):
    self.weight = nnx.Param(jnp.ones((2,)))


def loss(model, carry, batch, key):
  del key
  error = model.weight[...].sum() * batch["inputs"] - batch["targets"]
  value = (error**2).mean()
  return value, (carry + batch["inputs"], {"squares": Mean.of(error**2)})


def batch(inputs=(1.0, 2.0), targets=(0.0, 0.0)):
  return {"inputs": jnp.array(inputs), "targets": jnp.array(targets)}


def make(optimizer=None, ema_decay=0.0):
  optimizer = optax.with_extra_args_support(optimizer or optax.sgd(0.1))
  graphdef, state = create(
    Scale(),
    optimizer,
    jnp.zeros(2),
    ["squares", "grad_norm"],
    ema=ema_decay > 0,
  )
  step = step_lib.make_train_step(
    graphdef,
    loss,
    optimizer,
    sharding.make_mesh(1),
    seed=0,
    ema_decay=ema_decay,
  )
  return state, step


def test_an_update_is_the_optimizers():
  state, step = make()
  state, status = step(state, batch())
  # d/dw of mean((2x)^2) over x = 1, 2 is 2 * 2 * (1 + 4) / 2 = 10 each.
  np.testing.assert_allclose(state.params["weight"], [0.0, 0.0], atol=1e-6)
  assert float(status.loss) == 10.0
  assert int(state.step) == 1


def test_every_step_has_a_key_of_its_own_and_the_same_after_a_resume():
  drawn = []

  def noisy(model, carry, batch, key):
    noise = jax.random.normal(key, ())
    value = (model.weight[...] ** 2).sum() + noise
    return value, (carry, {"squares": Mean.of(noise[None])})

  for first in (0, 2):
    optimizer = optax.with_extra_args_support(optax.sgd(0.1))
    names = ["squares", "grad_norm"]
    graphdef, state = create(Scale(), optimizer, jnp.zeros(2), names, ema=False)
    step = step_lib.make_train_step(
      graphdef, noisy, optimizer, sharding.make_mesh(1), seed=0
    )
    state = state._replace(step=state.step + first)
    for _ in range(first, 4):
      before = float(state.metrics["squares"].total)
      state, _ = step(state, batch())
      drawn.append(float(state.metrics["squares"].total) - before)
  unbroken, resumed = drawn[:4], drawn[4:]
  assert len(set(unbroken)) == 4
  np.testing.assert_allclose(resumed, unbroken[2:], rtol=1e-5)


def test_metrics_add_up_until_they_are_read():
  state, step = make(optax.sgd(0.0))
  state, _ = step(state, batch())
  state, _ = step(state, batch(inputs=(3.0, 3.0)))
  assert state.metrics["squares"].compute() == (4 + 16 + 36 + 36) / 4
  assert float(state.metrics["squares"].weight) == 4


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_step_that_is_not_finite_changes_nothing_but_counts(bad):
  state, step = make(optax.adam(0.1))
  state, _ = step(state, batch())
  before = jax.device_get(state)
  state, _ = step(state, batch(inputs=(bad, 1.0)))
  after = jax.device_get(state)
  for field in ("params", "opt_state", "carry", "metrics"):
    jax.tree.map(
      np.testing.assert_array_equal,
      getattr(before, field),
      getattr(after, field),
    )
  assert (after.step, after.skipped, after.skipped_in_a_row) == (2, 1, 1)


def test_skips_in_a_row_begin_anew_after_a_good_step():
  state, step = make()
  for inputs in [(np.nan, 1), (np.nan, 1), (0, 0), (np.nan, 1)]:
    state, status = step(state, batch(inputs=inputs))
  assert (int(status.skipped), int(status.skipped_in_a_row)) == (3, 1)


def test_finite_gradients_with_an_infinite_update_are_skipped_too():
  state, step = make(optax.sgd(1e38))
  state, _ = step(state, batch(inputs=(10.0, 10.0)))
  np.testing.assert_array_equal(state.params["weight"], [1.0, 1.0])
  assert int(state.skipped) == 1


def test_the_average_of_parameters_is_corrected_for_its_start():
  state, step = make(optax.sgd(0.1), ema_decay=0.9)
  weights = []
  for _ in range(3):
    state, _ = step(state, batch())
    weights.append(np.asarray(state.params["weight"]))
  # Weights 0.9^2, 0.9, 1 over their sum; none on what was before training.
  want = sum(0.9 ** (2 - k) * w for k, w in enumerate(weights)) / 2.71
  np.testing.assert_allclose(state.ema["weight"], want, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(state.evaluated["weight"], state.ema["weight"])


def test_no_gradient_flows_into_the_carry_of_the_step_before():
  def leaky(model, carry, batch, key):
    value = (model.weight[...].sum() * carry).sum()
    return value, (carry * model.weight[...], {})

  optimizer = optax.with_extra_args_support(optax.sgd(0.1))
  graphdef, state = create(
    Scale(), optimizer, jnp.ones(2), ["grad_norm"], ema=False
  )
  step = step_lib.make_train_step(
    graphdef, leaky, optimizer, sharding.make_mesh(1), seed=0
  )
  state, _ = step(state, batch())
  state, _ = step(state, batch())
  # The gradient is sum(carry) both times: 2, then 2 * 1.
  assert state.metrics["grad_norm"].compute() == pytest.approx(2 * 2**0.5)
