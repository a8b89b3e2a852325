"""Tests of the metrics of forecasts."""

import numpy as np
import pytest
from scipy import stats

from recurrent.metrics import forecast

NAN = np.nan


def test_errors_are_those_of_their_definitions():
  found = forecast.errors(
    np.array([[1.0, 4.0]]), np.array([[2.0, 2.0]]), np.array([2.0])
  )
  assert found == {
    "mae": 1.5,
    "mse": 2.5,
    "smape": pytest.approx(200 / 3),
    "mase": 0.75,
  }


def test_missing_targets_are_not_scored():
  rng = np.random.default_rng(0)
  guess, truth = rng.normal(size=(2, 6, 4))
  truth[::2] = NAN
  scale = np.arange(1.0, 7)
  some = forecast.errors(guess, truth, scale)
  kept = forecast.errors(guess[1::2], truth[1::2], scale[1::2])
  assert some == pytest.approx(kept)
  nothing = forecast.errors(guess, np.full_like(truth, NAN), scale)
  assert np.isnan(list(nothing.values())).all()


def test_smape_of_zero_and_zero_is_zero():
  zero = np.zeros((1, 1))
  assert forecast.errors(zero, zero, np.ones(1))["smape"] == 0


def test_the_seasonal_naive_forecast_has_a_mase_of_one_in_its_own_history():
  rng = np.random.default_rng(0)
  history = rng.normal(size=200)
  scale = forecast.naive_scale(history, 12)
  found = forecast.errors(history[None, :-12], history[None, 12:], [scale])
  assert found["mase"] == pytest.approx(1)
  assert forecast.naive_scale(np.ones(9), 4) == 1
  assert forecast.naive_scale(np.array([1.0, NAN, 4.0, 6.0]), 1) == 2


def test_owa_of_naive2_is_one():
  naive2 = {"smape": 12.0, "mase": 2.0}
  assert forecast.owa(naive2, naive2) == 1
  assert forecast.owa({"smape": 6.0, "mase": 2.0}, naive2) == 0.75


def test_crps_of_many_quantiles_is_that_of_the_distribution():
  """The closed form of a normal distribution: Gneiting & Raftery, 2007."""
  levels = (np.arange(1000) + 0.5) / 1000
  targets = np.array([[-1.0, 0.3, 2.0]])
  quantiles = np.broadcast_to(stats.norm.ppf(levels), (1, 3, 1000))
  y = targets
  wanted = y * (2 * stats.norm.cdf(y) - 1) + 2 * stats.norm.pdf(y)
  wanted = (wanted - 1 / np.sqrt(np.pi)).mean()
  found = forecast.interval_scores(quantiles, targets, levels)
  assert found["crps"] == pytest.approx(wanted, abs=1e-3)
  assert found["crps"] == 2 * found["pinball"]


def test_coverage_is_the_share_between_the_outer_quantiles():
  rng = np.random.default_rng(0)
  targets = rng.normal(size=(500, 40))
  targets[:, :5] = NAN
  levels = (0.1, 0.5, 0.9)
  quantiles = np.broadcast_to(stats.norm.ppf(levels), (500, 40, 3))
  found = forecast.interval_scores(quantiles, targets, levels)
  assert found["coverage"] == pytest.approx(0.8, abs=0.01)
  assert found["width"] == pytest.approx(2 * stats.norm.ppf(0.9))
