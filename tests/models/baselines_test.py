"""Tests of the baselines of forecasting."""

import warnings

import numpy as np
import pytest

from recurrent.models import baselines

NAN = np.nan
METHODS = [
  baselines.naive,
  baselines.seasonal_naive,
  baselines.seasonal_naive_drift,
  baselines.naive2,
  baselines.holt_winters,
]


def run(method, *arguments):
  if method is baselines.holt_winters:
    pytest.importorskip("statsmodels")
  return method(*arguments)


def _series(length=120, season=6, gaps=True):
  rng = np.random.default_rng(0)
  t = np.arange(length)
  values = 50 + 0.2 * t + 5 * np.sin(2 * np.pi * t / season)
  values += rng.normal(size=length)
  if gaps:
    values[rng.permutation(length)[: length // 5]] = NAN
  return values


@pytest.mark.parametrize("method", METHODS)
def test_no_baseline_reads_at_or_after_its_origin(method):
  values = _series()
  origins = np.array([80, 81, 97])
  whole = run(method, values, origins, 9, 6)
  assert whole.shape == (3, 9) and np.isfinite(whole).all()
  for row, origin in enumerate(origins):
    changed = values.copy()
    changed[origin:] = 1e6
    other = run(method, changed, origins, 9, 6)
    np.testing.assert_array_equal(other[row], whole[row])


@pytest.mark.parametrize("method", METHODS)
def test_a_series_at_its_end_can_be_forecast(method):
  values = _series()
  found = run(method, values, np.array([len(values)]), 9, 6)
  assert found.shape == (1, 9) and np.isfinite(found).all()


def test_each_naive_forecast_repeats_what_it_says():
  values = np.array([9.0, 0, 1, 2, 10, 11, 12, NAN])
  at = lambda method: method(values, np.array([8]), 5, 3)[0].tolist()
  assert at(baselines.naive) == [12] * 5
  # The value of a gap is that of its phase one season before.
  assert at(baselines.seasonal_naive) == [11, 12, 10, 11, 12]


def test_drift_continues_a_line_with_seasons_exactly():
  values = _series(gaps=False)
  t = np.arange(200.0)
  values = 3 * t + np.array([5.0, -1, 0, 7, 2, 2])[np.arange(200) % 6]
  gaps = values.copy()
  gaps[[3, 50, 71, 105]] = NAN
  found = baselines.seasonal_naive_drift(gaps, np.array([110]), 20, 6)
  np.testing.assert_allclose(found[0], values[110:130])
  line = baselines.seasonal_naive_drift(t, np.array([50]), 5, 1)
  np.testing.assert_allclose(line[0], t[50:55])


def test_nothing_is_known_before_the_first_value():
  values = np.array([NAN, NAN, 1.0])
  found = baselines.seasonal_naive_drift(values, np.array([0, 2]), 2, 2)
  assert (found == 0).all()


def test_naive2_removes_the_seasons_of_a_seasonal_series_only():
  index = np.array([0.5, 1.5, 1.0, 1.0])
  values = 10 * index[np.arange(80) % 4]
  found = baselines.naive2(values, np.array([70]), 10, 4)
  np.testing.assert_allclose(found[0], values[70:80])
  noise = np.random.default_rng(0).normal(10, 1, 80)
  plain = baselines.naive(noise, np.array([70]), 10, 4)
  np.testing.assert_array_equal(
    baselines.naive2(noise, np.array([70]), 10, 4), plain
  )


def test_holt_winters_is_that_of_statsmodels():
  holtwinters = pytest.importorskip("statsmodels.tsa.holtwinters")
  values = _series(gaps=False)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    model = holtwinters.ExponentialSmoothing(
      values[:100],
      trend="add",
      seasonal="add",
      seasonal_periods=6,
      initialization_method="heuristic",
    ).fit()
  found = baselines.holt_winters(values, np.array([100, 110]), 5, 6)
  np.testing.assert_allclose(found[0], model.forecast(5), rtol=1e-6)


def test_the_linear_model_finds_a_linear_rule():
  rng = np.random.default_rng(0)
  windows = rng.normal(size=(200, 5))
  rule = rng.normal(size=(5, 3))
  rule[-1] = 1 - rule[:-1].sum(axis=0)  # it keeps constants, as the model does
  targets = windows @ rule
  targets[7, 1] = NAN
  model = baselines.fit_linear(
    [(windows[:90], targets[:90]), (windows[90:150], targets[90:150])],
    [(windows[150:], targets[150:])],
    penalties=(1.0, 1e-9),
  )
  np.testing.assert_allclose(model(windows[:7]), targets[:7], atol=1e-4)


def test_a_linear_model_without_a_complete_window_repeats_the_last_value():
  nothing = [(np.ones((2, 3)), np.full((2, 2), NAN))]
  model = baselines.fit_linear(nothing, nothing)
  np.testing.assert_array_equal(model(np.array([[1.0, 2.0, 5.0]])), [[5.0]])
