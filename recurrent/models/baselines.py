"""Forecasts without a network, to compare networks with.

All functions take one series and several origins, and never read a value at or
after an origin: `origins[i] = t` is forecast from `values[:t]`. Missing values
are NaN. A season is `season` time steps long; 1 means that there is none.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence

import numpy as np

_LONGEST_FIT = 2200  # time steps; statsmodels needs a minute for 12,000

Forecast = Callable[[np.ndarray, np.ndarray, int, int], np.ndarray]


def naive(
  values: np.ndarray, origins: np.ndarray, horizon: int, season: int
) -> np.ndarray:
  """Repeats the last observed value.

  Args:
    values: [time], NaN where missing.
    origins: [N], the index of the first time step of each forecast.
    horizon: number of time steps H to forecast.
    season: has no effect.

  Returns:
    [N, H].
  """
  del season
  return seasonal_naive(values, origins, horizon, 1)


def seasonal_naive(
  values: np.ndarray, origins: np.ndarray, horizon: int, season: int
) -> np.ndarray:
  """Repeats the last season: the value of the same phase, observed last.

  The arguments and the result are those of `naive`. Where a phase was never
  observed before an origin, the last observed value stands in, or zero.
  """
  return _last_of_phase(values, origins, horizon, season)[0]


def seasonal_naive_drift(
  values: np.ndarray, origins: np.ndarray, horizon: int, season: int
) -> np.ndarray:
  """Repeats the last season, plus the mean change from season to season.

  The change is the mean of y_t - y_{t - season} over the `season` time steps
  before the origin, that is the latest growth over one season. With a mean over
  the whole history the forecast would lag where the growth changes. The
  arguments and the result are those of `naive`.

  Reference:
    Hyndman & Athanasopoulos, "Forecasting: principles and practice", 2021.
  """
  found, age = _last_of_phase(values, origins, horizon, season)
  change = np.full(len(values), np.nan)
  change[season:] = values[season:] - values[:-season]
  known = ~np.isnan(change)
  total = np.concatenate([[0.0], np.cumsum(np.where(known, change, 0.0))])
  count = np.concatenate([[0], np.cumsum(known)])
  # With a season of one time step the mean is over the whole history: one
  # difference alone is noise.
  start = np.maximum(origins - season, 0) if season > 1 else 0 * origins
  seen = count[origins] - count[start]
  growth = (total[origins] - total[start]) / np.maximum(seen, 1)
  return found + growth[:, None] * age


def _last_of_phase(values, origins, horizon, season):
  """The last observed value of each phase, and its age in seasons, [N, H]."""
  length = len(values)
  steps = np.arange(length)
  place = np.where(np.isnan(values), -1, steps)
  recent = np.maximum.accumulate(place)
  for start in range(season, length):
    if place[start] < 0:
      place[start] = place[start - season]
  ahead = np.arange(horizon)
  back = ahead % season - season
  looked = np.clip(origins[:, None] + back, 0, length - 1)
  found = np.where(origins[:, None] + back >= 0, place[looked], -1)
  last = np.where(origins > 0, recent[np.maximum(origins, 1) - 1], -1)[:, None]
  found = np.where(found < 0, last, found)
  age = (origins[:, None] + ahead - found) / season
  age = np.where(found < 0, 0.0, np.round(age) if season > 1 else age)
  return np.where(found < 0, 0.0, values[np.maximum(found, 0)]), age


def naive2(
  values: np.ndarray, origins: np.ndarray, horizon: int, season: int
) -> np.ndarray:
  """Naive2 of the M competitions: naive on seasonally adjusted values.

  The series before the first origin is tested for seasonality by its
  autocorrelation at the season (90 % level). If it has one, it is divided by
  the indices of a classical multiplicative decomposition, and the forecast is
  multiplied by them. The arguments and the result are those of `naive`.

  Reference:
    Makridakis, Spiliotis & Assimakopoulos, "The M4 competition", 2020.
  """
  history = interpolated(values[: origins.min()])
  index = np.ones(season)
  if _is_seasonal(history, season) and (history > 0).all():
    index = _seasonal_indices(history, season)
  every = index[np.arange(len(values) + horizon) % season]
  flat = naive(values / every[: len(values)], origins, horizon, 1)
  return flat * every[origins[:, None] + np.arange(horizon)]


def _is_seasonal(history, season):
  if season <= 1 or len(history) < 3 * season:
    return False
  centred = history - history.mean()
  total = (centred**2).sum()
  if total == 0:
    return False
  lags = range(1, season + 1)
  r = np.array([(centred[k:] * centred[:-k]).sum() / total for k in lags])
  limit = 1.645 * np.sqrt((1 + 2 * (r[:-1] ** 2).sum()) / len(history))
  return bool(abs(r[-1]) > limit)


def _seasonal_indices(history, season):
  """Indices [season] of a classical decomposition with moving averages."""
  weights = np.ones(season) / season
  if season % 2 == 0:
    weights = np.convolve(weights, [0.5, 0.5])
  trend = np.convolve(history, weights, "valid")
  before = (len(history) - len(trend)) // 2
  ratio = history[before : before + len(trend)] / trend
  phase = np.arange(before, before + len(trend)) % season
  index = np.array([ratio[phase == p].mean() for p in range(season)])
  return index / index.mean()


def interpolated(values: np.ndarray) -> np.ndarray:
  """Fills the gaps of one series [time] on straight lines; zeros if empty."""
  known = np.flatnonzero(~np.isnan(values))
  if not len(known):
    return np.zeros(len(values))
  return np.interp(np.arange(len(values)), known, values[known])


def holt_winters(
  values: np.ndarray, origins: np.ndarray, horizon: int, season: int
) -> np.ndarray:
  """Additive Holt-Winters smoothing with a trend, fitted by statsmodels.

  The smoothing rates and the initial states are fitted once, to the 2,200 time
  steps (or 10 seasons) before the first origin, of which gaps are interpolated.
  The states are then updated up to each origin, except where a value is
  missing. The arguments and the result are those of `naive`.

  Raises:
    ImportError: if statsmodels is not installed.

  Reference:
    Winters, "Forecasting sales by exponentially weighted moving averages",
    1960.
  """
  start = max(0, int(origins.min()) - max(_LONGEST_FIT, 10 * season))
  values, origins = values[start:], origins - start
  history = interpolated(values[: int(origins.min())])
  found = _fit_smoothing(history, season)
  rate = lambda name: float(np.nan_to_num(found.get(name, 0.0)))
  alpha, beta, gamma = (
    rate(f"smoothing_{name}") for name in ("level", "trend", "seasonal")
  )
  level, trend = rate("initial_level"), rate("initial_trend")
  seasonal = list(np.resize(found.get("initial_seasons", 0.0), season))
  wanted, states = set(origins.tolist()), {}
  for t in range(max(wanted) + 1):
    if t in wanted:
      ahead = [seasonal[(t + h) % season] for h in range(min(season, horizon))]
      states[t] = level, trend, np.resize(ahead, horizon)
    if t == len(values):
      break
    expected, phase = level + trend, t % season
    if np.isnan(values[t]):
      level = expected
      continue
    before = level
    level = alpha * (values[t] - seasonal[phase]) + (1 - alpha) * expected
    trend = beta * (level - before) + (1 - beta) * trend
    seasonal[phase] += gamma * (values[t] - expected - seasonal[phase])
  steps = np.arange(1, horizon + 1)
  return np.stack(
    [
      level + trend * steps + ahead
      for level, trend, ahead in (states[int(origin)] for origin in origins)
    ]
  )


def _fit_smoothing(history, season):
  """Parameters of Holt-Winters smoothing, as statsmodels names them."""
  from statsmodels.tools.sm_exceptions import ConvergenceWarning
  from statsmodels.tsa.holtwinters import ExponentialSmoothing

  enough = season > 1 and len(history) >= 2 * season + 10
  if len(history) < 10 or np.ptp(history) == 0:
    return {"smoothing_level": 1.0, "initial_level": history[:1].sum()}
  with warnings.catch_warnings():
    # A fit that stops early is still the baseline.
    warnings.simplefilter("ignore", ConvergenceWarning)
    warnings.simplefilter("ignore", RuntimeWarning)
    model = ExponentialSmoothing(
      history,
      trend="add",
      seasonal="add" if enough else None,
      seasonal_periods=season if enough else None,
      initialization_method="heuristic" if enough else "estimated",
    )
    return model.fit().params


def fit_linear(
  train: Iterable[tuple[np.ndarray, np.ndarray]],
  valid: Iterable[tuple[np.ndarray, np.ndarray]],
  penalties: Sequence[float] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
) -> Callable[[np.ndarray], np.ndarray]:
  """Fits one linear map from a window to its future, shared by all series.

  The last value of a window is subtracted before and added after the map, as in
  NLinear. The map minimises the squared error plus an L2 penalty, in closed
  form; the penalty is that with the least squared error on the valid windows.

  Args:
    train: batches of windows [B, L] without NaN, and targets [B, H]; windows
      with NaN among their targets are left out.
    valid: batches like these, in which NaN among the targets is not scored.
    penalties: to choose from, relative to the mean square of the windows.

  Returns:
    `forecast(windows [N, L]) -> [N, H]`.

  Reference:
    Zeng et al., "Are Transformers effective for time series forecasting?",
    2023 (DLinear, NLinear); Toner & Darlow, "An analysis of linear time series
    forecasting models", 2024 (closed form).
  """
  square, product, count = np.zeros(()), np.zeros(()), 0
  for windows, targets in train:
    kept = ~np.isnan(targets).any(axis=1)
    count += kept.sum()
    read, last = _read_linear(windows[kept])
    square = square + read.T @ read
    product = product + read.T @ (targets[kept] - last)
  if not count:
    return lambda windows: windows[:, -1:]
  scale = np.trace(square)
  eye = np.eye(len(square))
  kernels = [
    np.linalg.solve(square + penalty * scale * eye, product)
    for penalty in penalties
  ]
  error = np.zeros(len(kernels))
  for windows, targets in valid:
    read, last = _read_linear(windows)
    for i, kernel in enumerate(kernels):
      error[i] += np.nansum((read @ kernel + last - targets) ** 2)
  best = kernels[int(np.argmin(error))]

  def forecast(windows):
    read, last = _read_linear(windows)
    return read @ best + last

  return forecast


def _read_linear(windows):
  windows = np.asarray(windows, np.float64)
  last = windows[:, -1:]
  ones = np.ones((len(windows), 1))
  return np.concatenate([windows[:, :-1] - last, ones], axis=1), last
