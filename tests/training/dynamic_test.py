"""Dynamic evaluation, on a model of one weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from recurrent.metrics import Mean
from recurrent.training import dynamic


class Guess(nnx.Module):
  """Predicts one number for ever."""

  def __init__(self):
    self.weight = nnx.Param(jnp.zeros((1,)))


def loss(model, carry, batch, key):
  assert key is None
  error = (model.weight[...] - batch["targets"]) ** 2
  return error.sum(), (carry + 1, {"squares": Mean.of(error)})


@pytest.fixture
def guess():
  graphdef, variables = nnx.split(Guess())
  return graphdef, nnx.as_pure(variables)


def windows(*targets):
  return {"targets": jnp.array(targets, jnp.float32)[:, None]}


def score(guess, targets, rate, decay=0.0, rms=1.0):
  graphdef, params = guess
  found = dynamic.score(
    graphdef,
    loss,
    params,
    jnp.zeros(()),
    windows(*targets),
    jax.tree.map(lambda p: jnp.full_like(p, rms), params),
    rate,
    decay,
  )
  return found["squares"].compute()


def test_the_statistic_is_the_root_mean_square_of_the_gradient(guess):
  graphdef, params = guess
  rms = dynamic.gradient_rms(
    graphdef, loss, params, jnp.zeros(()), windows(1, 2, 3)
  )
  # The gradient at 0 is -2 t.
  want = np.sqrt((4 + 16 + 36) / 3)
  np.testing.assert_allclose(rms["weight"], [want], rtol=1e-6)


def test_without_a_rate_it_is_the_static_score(guess):
  assert score(guess, [1, 2, 3], rate=0.0) == pytest.approx((1 + 4 + 9) / 3)


def test_a_window_is_scored_before_it_is_learnt_from(guess):
  # Scale 1 / sqrt(rms (rms + 0.1 rms)) is 1 / sqrt(1.1); half of 2 errors.
  rate = 0.5 * np.sqrt(1.1)
  assert score(guess, [1, 1, 1], rate) == pytest.approx(1 / 3, rel=1e-5)


def test_decay_goes_back_to_the_trained_parameters(guess):
  rate = 0.5 * np.sqrt(1.1)
  # After the first window the weight is 1, less a quarter of what it was
  # away: nothing yet. After the second, 1 - 0.25.
  found = score(guess, [1, 1, 1], rate, decay=0.25)
  assert found == pytest.approx((1 + 0 + 0.25**2) / 3, rel=1e-4)


def test_no_parameter_goes_back_more_than_a_third_at_once(guess):
  rate = 0.5 * np.sqrt(1.1)
  found = score(guess, [1, 1, 1], rate, decay=100.0)
  assert found == pytest.approx((1 + 0 + 1 / 9) / 3, rel=1e-4)
