import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recurrent.nn import (
  drop_variables,
  dropout,
  embedding_dropout,
  word_dropout,
)

# Of the generators of keys, "rbg" is the one that compiles fastest.
KEY, OTHER_KEY = (jax.random.key(seed, impl="rbg") for seed in (0, 1))
ONES = np.ones((20, 30, 40), np.float32)


def drop(rate=0.5, key=KEY, locked=False, inputs=ONES):
  """Dropout of ones: the mask over 1 - rate."""
  return np.asarray(dropout(key, jnp.asarray(inputs), rate, locked=locked))


def assert_zeroed(dropped, rate, independent):
  """As many zeros as `independent` draws give, to 4 standard deviations."""
  tolerance = 4 * np.sqrt(rate * (1 - rate) / independent)
  np.testing.assert_allclose((dropped == 0).mean(), rate, atol=tolerance)


@pytest.mark.parametrize("locked", [False, True])
def test_without_a_key_inputs_come_back_as_they_are(locked):
  inputs = jnp.asarray(ONES)
  assert dropout(None, inputs, 0.9, locked=locked) is inputs


def test_at_rate_zero_inputs_come_back_as_they_are():
  inputs = jnp.asarray(ONES)
  assert dropout(KEY, inputs, 0.0) is inputs


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_entries_are_zero_with_the_probability_of_the_rate(rate):
  assert_zeroed(drop(rate), rate, ONES.size)


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_number_kept_is_within_the_binomials_999_in_1000(rate, locked):
  kept = drop(rate, locked=locked) != 0
  kept = kept[:, :1] if locked else kept
  spread = np.sqrt(kept.size * rate * (1 - rate))
  assert abs(kept.sum() - kept.size * (1 - rate)) <= 3.29 * spread


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_locked_mask_is_zero_with_the_probability_of_the_rate(rate):
  assert_zeroed(drop(rate, locked=True), rate, 20 * 40)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_what_is_left_is_scaled_to_keep_the_mean(rate):
  dropped = drop(rate)
  np.testing.assert_allclose(dropped[dropped != 0], 1 / (1 - rate), rtol=1e-6)


def test_a_locked_mask_is_one_for_all_time_steps():
  dropped = drop(locked=True)
  np.testing.assert_array_equal(dropped, dropped[:, :1] * ONES)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_fresh_mask_differs_along_every_axis(axis):
  kept = drop() != 0
  agree = (kept == np.roll(kept, 1, axis)).mean()
  # 24,000 pairs that agree with probability 1/2: 5 standard deviations.
  np.testing.assert_allclose(agree, 0.5, atol=0.017)


@pytest.mark.parametrize("axis", [0, 2])
def test_a_locked_mask_differs_across_rows_and_features(axis):
  kept = drop(locked=True)[:, :1] != 0
  agree = (kept == np.roll(kept, 1, axis)).mean()
  # 800 pairs that agree with probability 1/2: 5 standard deviations.
  np.testing.assert_allclose(agree, 0.5, atol=0.09)


@pytest.mark.parametrize("locked", [False, True])
def test_the_mask_is_the_keys(locked):
  again, other = drop(locked=locked), drop(key=OTHER_KEY, locked=locked)
  np.testing.assert_array_equal(drop(locked=locked), again)
  assert (other != again).any()


def test_the_gradient_is_the_mask():
  inputs = jnp.asarray(ONES)
  grads = jax.grad(lambda x: dropout(KEY, x, 0.5).sum())(inputs)
  np.testing.assert_array_equal(grads, drop())


def test_a_dropped_nan_is_zero():
  dropped = drop(inputs=np.nan * ONES)
  np.testing.assert_array_equal(np.isnan(dropped), drop() != 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_dtype_is_kept(dtype):
  assert dropout(KEY, jnp.ones((1, 1, 4), dtype), 0.5).dtype == dtype


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_a_rate_that_is_no_probability_is_refused(rate, key):
  with pytest.raises(ValueError, match="rate"):
    dropout(key, jnp.asarray(ONES), rate)


def test_embedding_dropout_zeroes_whole_rows():
  table = jnp.ones((2000, 3))
  dropped = np.asarray(embedding_dropout(KEY, table, 0.25))
  rows = dropped.any(axis=1)
  np.testing.assert_allclose(dropped[rows], 1 / 0.75, rtol=1e-6)
  assert_zeroed(rows.astype(float), 0.25, 2000)
  assert embedding_dropout(None, table, 0.25) is table


def test_word_dropout_replaces_tokens_each_by_itself():
  tokens = jnp.asarray(np.random.default_rng(0).integers(1, 9, (40, 50)))
  dropped = np.asarray(word_dropout(KEY, tokens, 0.25, unknown=0))
  assert_zeroed(dropped, 0.25, 2000)
  np.testing.assert_array_equal(
    dropped[dropped != 0], np.asarray(tokens)[dropped != 0]
  )
  assert dropped.dtype == tokens.dtype
  assert word_dropout(None, tokens, 0.25, unknown=0) is tokens


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_that_is_none_is_refused_by_all(rate):
  for drops in (
    lambda: embedding_dropout(KEY, jnp.ones((2, 2)), rate),
    lambda: word_dropout(KEY, jnp.ones((2, 2), jnp.int32), rate, 0),
  ):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
      drops()


@pytest.mark.parametrize(
  "shape", [(), (7,), (4, 7), (4, 5, 7), (2, 3, 4, 5, 6)]
)
@pytest.mark.parametrize("locked", [False, True])
def test_any_rank_is_dropped_with_one_mask_in_time_if_locked(shape, locked):
  found = dropout(jax.random.key(0), jnp.ones(shape), 0.5, locked=locked)
  assert found.shape == shape
  assert set(np.unique(found)) <= {0.0, 2.0}
  if len(shape) > 2:
    same = bool((found == found[:, :1]).all())
    assert same == locked


def test_a_dropped_variable_is_missing_in_all_time_steps_of_its_row():
  observed = jax.random.bernoulli(OTHER_KEY, 0.8, (40, 5, 30))
  left = np.asarray(drop_variables(KEY, observed, 0.25))
  gone = ~left.any(axis=1)
  np.testing.assert_array_equal(left, observed & ~gone[:, None])
  assert_zeroed(~gone, 0.25, gone.size)
  assert drop_variables(None, observed, 0.25) is observed
  assert drop_variables(KEY, observed, 0.0) is observed
  with pytest.raises(ValueError, match="rate"):
    drop_variables(KEY, observed, 1.0)
