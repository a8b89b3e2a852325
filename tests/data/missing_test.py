"""Tests of the filling of missing values."""

import numpy as np
import pytest

from recurrent.data import missing

NAN = np.nan


def _random(shape=(3, 20, 4), share=0.4, seed=0):
  rng = np.random.default_rng(seed)
  values = np.round(rng.normal(size=shape), 1)
  return np.where(rng.random(shape) < share, NAN, values)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(20, 4), (3, 20, 4), (3, 0, 4), (1, 1, 4)])
@pytest.mark.parametrize("strategy", missing.STRATEGIES)
def test_nothing_is_missing_afterwards_and_nothing_known_changes(
  strategy, shape, dtype
):
  values = _random(shape).astype(dtype)
  filled = missing.fill(values, strategy, missing.measure([_random()]))
  known = ~np.isnan(values)
  assert filled.values.dtype == dtype
  assert np.isfinite(filled.values).all()
  np.testing.assert_array_equal(filled.observed, known)
  np.testing.assert_array_equal(filled.values[known], values[known])
  assert filled.keep.shape == shape[:-1]


@pytest.mark.parametrize("strategy", missing.STRATEGIES)
def test_each_sequence_is_filled_by_itself(strategy):
  values, train = _random(), missing.measure(_random(seed=1))
  together = missing.fill(values, strategy, train)
  for row, one in enumerate(values):
    alone = missing.fill(one, strategy, train)
    np.testing.assert_array_equal(together.values[row], alone.values)
    np.testing.assert_array_equal(together.keep[row], alone.keep)


@pytest.mark.parametrize("strategy", sorted({*missing.STRATEGIES} - {"linear"}))
def test_no_strategy_but_linear_reads_later_values(strategy):
  values, train = _random(), missing.measure(_random(seed=1))
  whole = missing.fill(values, strategy, train)
  cut = missing.fill(values[:, :12], strategy, train)
  np.testing.assert_array_equal(whole.values[:, :12], cut.values)


@pytest.mark.parametrize(
  "strategy, wanted",
  {
    "mean": [[5, 5, 1, 5, 4, 5], [0.0] * 6],
    "median": [[2, 2, 1, 2, 4, 2], [0.0] * 6],
    "max": [[15, 15, 1, 15, 4, 15], [0.0] * 6],
    "mode": [[2, 2, 1, 2, 4, 2], [0.0] * 6],
    # A leading gap is filled with the mean, or the first value that follows.
    "forward": [[5, 5, 1, 1, 4, 4], [0.0] * 6],
    "linear": [[1, 1, 1, 2.5, 4, 4], [0.0] * 6],
  }.items(),
)
def test_each_strategy_gives_its_value_in_leading_inner_and_trailing_gaps(
  strategy, wanted
):
  """The second variable is missing everywhere, in train as well."""
  column = lambda *values: np.array([values, [NAN] * len(values)]).T
  train = missing.measure([column(2, 2, 1, 15), column(NAN, 5)])
  found = missing.fill(column(NAN, NAN, 1, NAN, 4, NAN), strategy, train)
  np.testing.assert_allclose(found.values.T, wanted)


@pytest.mark.parametrize("strategy", ["forward", "linear"])
def test_a_variable_missing_in_one_sequence_only_is_filled_with_its_mean(
  strategy,
):
  train = missing.measure([np.array([[1.0], [5.0]])])
  found = missing.fill(np.full((4, 1), NAN), strategy, train)
  assert (found.values == 3).all()


def test_drop_keeps_the_complete_time_steps():
  values = _random()
  values[..., 2] = NAN  # never observed: it does not count
  found = missing.fill(values, "drop", missing.measure(values))
  complete = ~np.isnan(values[..., [0, 1, 3]]).any(-1)
  assert 0 < complete.sum() < complete.size
  np.testing.assert_array_equal(found.keep, complete)


def test_linear_interpolates_in_time_where_time_steps_are_irregular():
  times = np.array([[0.0, 1.0, 10.0, 11.0, 11.0]])
  values = np.array([[0.0, NAN, 20.0, NAN, 30.0]])[..., None]
  train = missing.measure([values])
  found = missing.fill(values, "linear", train, times=times).values[0, :, 0]
  np.testing.assert_allclose(found, [0, 2, 20, 30, 30])


def test_linear_agrees_with_numpys_interpolation():
  values, steps = _random((50, 3)), np.arange(50)
  found = missing.fill(values, "linear", missing.measure([values])).values
  for column, result in zip(values.T, found.T, strict=True):
    known = ~np.isnan(column)
    wanted = np.interp(steps, steps[known], column[known])
    np.testing.assert_allclose(result, wanted)


def test_statistics_are_those_of_all_observed_values_of_ragged_sequences():
  long, short = _random((30, 2)), _random((7, 2), seed=3)
  found = missing.measure([long, short])
  every = np.concatenate([long, short])
  np.testing.assert_allclose(found.mean, np.nanmean(every, axis=0))
  np.testing.assert_allclose(found.median, np.nanmedian(every, axis=0))
  np.testing.assert_allclose(found.max, np.nanmax(every, axis=0))
  np.testing.assert_array_equal(found.number, (~np.isnan(every)).sum(axis=0))
  assert missing.measure(np.stack([long, long])).mean.shape == (2,)


def test_wrong_arguments_are_refused_by_name():
  train = missing.measure([np.ones((2, 3))])
  with pytest.raises(ValueError, match="strategy must be one of.*'guess'"):
    missing.fill(np.ones((2, 3)), "guess", train)
  with pytest.raises(ValueError, match=r"values must be \[..., time, 3\]"):
    missing.fill(np.ones((2, 4)), "mean", train)
  with pytest.raises(ValueError, match=r"times must be \(2,\), got \(3,\)"):
    missing.fill(np.ones((2, 3)), "linear", train, times=np.arange(3))
  with pytest.raises(ValueError, match="sequences must be one or more"):
    missing.measure([])
