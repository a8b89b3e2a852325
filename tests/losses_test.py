import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recurrent.losses import (
  activation_penalty,
  coverage,
  cross_entropy,
  temporal_activation_penalty,
)

RNG = np.random.default_rng(0)


def log_softmax(logits):
  """In NumPy and float64."""
  logits = np.asarray(logits, np.float64)
  logits = logits - logits.max(axis=-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def draw(batch, time, vocabulary, scale=1.0):
  shape = batch, time, vocabulary
  logits = scale * RNG.normal(size=shape).astype(np.float32)
  targets = RNG.integers(0, vocabulary, shape[:2]).astype(np.int32)
  return jnp.asarray(logits), jnp.asarray(targets)


@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 5, 7), (2, 1, 1000)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_it_is_minus_the_log_softmax_at_the_target(shape, scale):
  logits, targets = draw(*shape, scale)
  expected = -np.take_along_axis(
    log_softmax(logits), np.asarray(targets)[..., None], axis=-1
  )[..., 0]
  # float32: relative to the logits for large ones, to log V for small ones.
  np.testing.assert_allclose(
    cross_entropy(logits, targets), expected, rtol=2e-6, atol=2e-6
  )


def test_equal_logits_cost_log_of_the_vocabulary():
  loss = cross_entropy(jnp.full((1, 2, 8), 3.0), jnp.array([[0, 7]]))
  np.testing.assert_allclose(loss, [[2.0794415, 2.0794415]], rtol=1e-6)


def test_a_vocabulary_of_one_costs_nothing():
  logits, targets = draw(2, 3, 1)
  assert (cross_entropy(logits, targets) == 0).all()


def test_a_token_that_cannot_be_costs_nothing_to_the_others():
  logits = jnp.array([[[0.0, -jnp.inf, 0.0]]])
  loss = cross_entropy(logits, jnp.array([[2]]))
  np.testing.assert_allclose(loss, [[0.6931472]], rtol=1e-6)


def test_a_target_that_cannot_be_costs_infinity():
  logits = jnp.array([[[0.0, -jnp.inf, 0.0]]])
  assert cross_entropy(logits, jnp.array([[1]]))[0, 0] == jnp.inf


def test_the_gradient_is_the_softmax_less_the_target():
  logits, targets = draw(2, 3, 5)
  grads = jax.grad(lambda x: cross_entropy(x, targets).sum())(logits)
  expected = np.exp(log_softmax(logits)) - np.eye(5)[np.asarray(targets)]
  np.testing.assert_allclose(grads, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int16, jnp.int32])
def test_targets_may_be_integers_of_any_size(dtype):
  logits, targets = draw(2, 3, 5)
  expected = cross_entropy(logits, targets)
  assert (cross_entropy(logits, targets.astype(dtype)) == expected).all()


# Activation penalties, against loops in float64.

OUTPUTS = RNG.normal(size=(3, 6, 4)).astype(np.float32)
MASK = np.array([[1, 1, 1, 0, 1, 1], [0] * 6, [1, 1, 1, 1, 0, 0]], bool)
RESETS = np.array([[0, 0, 1, 0, 0, 0], [0] * 6, [1, 0, 0, 1, 0, 0]], bool)


def test_the_activation_penalty_is_the_mean_square_of_what_is_real():
  squares = OUTPUTS.astype(np.float64) ** 2
  np.testing.assert_allclose(
    activation_penalty(OUTPUTS), squares.mean(), rtol=1e-6
  )
  np.testing.assert_allclose(
    activation_penalty(OUTPUTS, MASK), squares[MASK].mean(), rtol=1e-6
  )


def test_the_temporal_penalty_is_the_mean_square_of_changes():
  pairs = {
    (b, t)
    for b in range(3)
    for t in range(1, 6)
    if MASK[b, t] and MASK[b, t - 1] and not RESETS[b, t]
  }
  wide = OUTPUTS.astype(np.float64)
  want = np.mean([(wide[b, t] - wide[b, t - 1]) ** 2 for b, t in pairs])
  got = temporal_activation_penalty(OUTPUTS, MASK, RESETS)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  want = np.mean(np.diff(wide, axis=1) ** 2)
  got = temporal_activation_penalty(OUTPUTS)
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_penalties_of_nothing_are_zero_and_garbage_stays_out():
  garbage = np.where(MASK[..., None], OUTPUTS, np.float32(np.nan))
  nothing = np.zeros_like(MASK)
  for penalty in (activation_penalty, temporal_activation_penalty):
    assert penalty(garbage, nothing) == 0
    assert penalty(garbage, MASK) == penalty(OUTPUTS, MASK)
    slope = jax.grad(penalty)(jnp.asarray(OUTPUTS), MASK)
    assert np.isfinite(slope).all()
    assert not slope[~MASK].any()


def test_penalties_are_summed_in_float32():
  outputs = jnp.ones((1, 2000, 4), jnp.bfloat16)
  assert activation_penalty(outputs) == 1
  assert activation_penalty(outputs).dtype == jnp.float32


def test_label_smoothing_is_the_cross_entropy_of_a_smoothed_target():
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32)
  targets = jnp.asarray(rng.integers(0, 5, (2, 3)))
  smooth = 0.9 * np.eye(5)[np.asarray(targets)] + 0.1 / 5
  want = -(smooth * np.asarray(jax.nn.log_softmax(logits))).sum(axis=-1)
  got = cross_entropy(logits, targets, label_smoothing=0.1)
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_coverage_is_the_attention_to_what_was_attended_to_before():
  weights = np.random.default_rng(0).dirichlet(np.ones(5), (2, 4))
  want, seen = np.zeros((2, 4)), np.zeros((2, 5))
  for t in range(4):
    want[:, t] = np.minimum(weights[:, t], seen).sum(axis=-1)
    seen += weights[:, t]
  found = coverage(jnp.asarray(weights, jnp.float32))
  np.testing.assert_allclose(found, want, rtol=1e-5)
