"""Tests of the train step, and of steps that are skipped."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from recurrent import sharding
from recurrent.errors import ConfigError
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
  # Nothing of what was before training; then 9/11 and 9/12 of the new ones.
  want = weights[0]
  for weight, part in zip(weights[1:], (9 / 11, 9 / 12), strict=True):
    want = want + part * (weight - want)
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


class Normalised(nnx.Module):
  """One weight, with variables that are no parameters."""

  def __init__(self):
    self.weight = nnx.Param(jnp.ones((2,)))
    self.norm = nnx.BatchNorm(2, momentum=0.5, rngs=nnx.Rngs(0))
    self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))


def make_normalised(ema=False):
  def loss(model, carry, batch, key):
    outputs = model.dropout(model.norm(batch["inputs"] * model.weight[...]))
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", DeprecationWarning)
      model.sow(nnx.Intermediate, "outputs", outputs)
    return (outputs**2).sum(), (carry, {"drawn": Mean.of(outputs)})

  optimizer = optax.with_extra_args_support(optax.sgd(0.1))
  graphdef, state = create(
    Normalised(), optimizer, (), ["drawn", "grad_norm"], ema=ema
  )
  return (
    graphdef,
    state,
    step_lib.make_train_step(
      graphdef,
      loss,
      optimizer,
      sharding.make_mesh(1),
      seed=0,
      ema_decay=0.9 * ema,
    ),
  )


def rows(*values):
  return {"inputs": jnp.array(values, jnp.float32)}


def test_variables_that_are_no_parameters_go_from_step_to_step():
  _, state, step = make_normalised()
  params = state.params
  for _ in range(2):
    state, _ = step(state, rows([1, 2], [3, 6]))
  # Means 2 and 4, momentum a half: 3/4 of the way from 0.
  np.testing.assert_allclose(
    state.variables["norm"]["mean"], [1.5, 3.0], rtol=1e-4
  )
  assert int(state.variables["dropout"]["rngs"]["count"]) == 2
  assert jax.tree.structure(state.params) == jax.tree.structure(params)


def test_a_step_that_is_not_finite_leaves_the_variables_alone():
  _, state, step = make_normalised()
  state, _ = step(state, rows([1, 2], [3, 6]))
  before = jax.device_get(state.variables["norm"])
  state, status = step(state, rows([np.nan, 2], [3, 6]))
  assert int(status.skipped) == 1
  after = jax.device_get(state.variables["norm"])
  jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.parametrize("ema", [False, True])
def test_what_is_evaluated_merges_into_the_whole_model(ema):
  graphdef, state, step = make_normalised(ema)
  state, _ = step(state, rows([1, 2], [3, 6]))
  model = nnx.merge(graphdef, state.evaluated)
  model.eval()
  assert model.norm.mean[...].tolist() == [1.0, 2.0]
  again = model.dropout(model.norm(jnp.ones((1, 2))))
  np.testing.assert_array_equal(
    again, model.dropout(model.norm(jnp.ones((1, 2))))
  )


def test_a_loss_that_measures_other_things_is_refused_by_name():
  optimizer = optax.with_extra_args_support(optax.sgd(0.1))
  graphdef, state = create(
    Scale(), optimizer, jnp.zeros(2), ["nats", "grad_norm"], ema=False
  )
  step = step_lib.make_train_step(
    graphdef, loss, optimizer, sharding.make_mesh(1), seed=0
  )
  with pytest.raises(ConfigError, match=r"\['nats'\].*\['squares'\]"):
    step(state, batch())


def test_the_average_of_a_short_run_does_not_lag_behind():
  state, step = make(optax.sgd(0.01), ema_decay=0.999)
  for _ in range(100):
    state, _ = step(state, batch(targets=(5.0, 10.0)))
  # After 100 steps the sum of the weights is 5; a plain mean is still away.
  assert float(state.params["weight"].sum()) == pytest.approx(5, abs=1e-3)
  assert float(state.ema["weight"].sum()) == pytest.approx(5, abs=1e-3)
