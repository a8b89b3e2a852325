"""Metrics of forecasts, in NumPy. NaN among the targets is not scored.

Forecasts and targets are [N, H]: N windows, each with a horizon H.
"""

from collections.abc import Sequence

import numpy as np


def errors(
  forecast: np.ndarray, targets: np.ndarray, scale: np.ndarray
) -> dict[str, float]:
  """Errors of point forecasts.

  - `mae`, `mse`: the means of |e| and e^2.
  - `smape`: the mean of 200 |e| / (|y| + |f|), in percent, as in M4. It is 0
    where both are zero.
  - `mase`: the mean of |e| / scale.

  Args:
    forecast: [N, H].
    targets: [N, H], NaN where missing.
    scale: [N], from `naive_scale`, that of each window's series.

  Returns:
    The errors by name; NaN if there is no target.

  Reference:
    Hyndman & Koehler, "Another look at measures of forecast accuracy", 2006;
    Makridakis, Spiliotis & Assimakopoulos, "The M4 competition", 2020.
  """
  given = ~np.isnan(targets)
  if not given.any():
    return dict.fromkeys(("mae", "mse", "smape", "mase"), float("nan"))
  error = np.abs(forecast - targets)[given]
  size = (np.abs(forecast) + np.abs(targets))[given]
  relative = np.divide(error, size, out=np.zeros_like(error), where=size > 0)
  scales = np.broadcast_to(np.asarray(scale)[:, None], targets.shape)[given]
  return {
    "mae": float(error.mean()),
    "mse": float((error**2).mean()),
    "smape": float(200 * relative.mean()),
    "mase": float((error / scales).mean()),
  }


def naive_scale(history: np.ndarray, season: int) -> float:
  """The error of the seasonal naive forecast one season ahead, for MASE.

  MASE divides the error of a forecast by this: the mean of
  |y_t - y_{t - season}| over the history of the series.

  Args:
    history: [time], NaN where missing.
    season: time steps in a season; 1 is used if the history is no longer.

  Returns:
    The mean, or 1 for a series that never changes.
  """
  season = season if len(history) > season else 1
  changes = np.abs(history[season:] - history[:-season])
  changes = changes[~np.isnan(changes)]
  scale = float(changes.mean()) if len(changes) else 0.0
  return scale or 1.0


def owa(found: dict[str, float], naive2: dict[str, float]) -> float:
  """Overall weighted average of M4: the mean ratio of sMAPE and MASE to Naive2.

  Args:
    found: errors of a forecast, from `errors`.
    naive2: errors of Naive2 on the same targets.
  """
  ratios = [found[name] / naive2[name] for name in ("smape", "mase")]
  return float(np.mean(ratios))


def interval_scores(
  quantiles: np.ndarray, targets: np.ndarray, levels: Sequence[float]
) -> dict[str, float]:
  """Scores of quantile forecasts.

  - `pinball`: the mean pinball loss over the levels.
  - `crps`: the continuous ranked probability score, as twice that mean, which
    is exact for infinitely many levels.
  - `coverage`, `width`: the share of the targets between the lowest and the
    highest quantile, and the mean distance of these two.

  Args:
    quantiles: [N, H, Q], ascending.
    targets: [N, H], NaN where missing.
    levels: the Q levels, ascending.

  Reference:
    Gneiting & Raftery, "Strictly proper scoring rules, prediction, and
    estimation", 2007.
  """
  given = ~np.isnan(targets)
  if not given.any():
    return dict.fromkeys(("pinball", "crps", "coverage", "width"), float("nan"))
  error = (targets[..., None] - quantiles)[given]
  level = np.asarray(levels)
  loss = np.maximum(level * error, (level - 1) * error)
  low, high = quantiles[given][:, 0], quantiles[given][:, -1]
  y = targets[given]
  return {
    "pinball": float(loss.mean()),
    "crps": float(2 * loss.mean()),
    "coverage": float(((low <= y) & (y <= high)).mean()),
    "width": float((high - low).mean()),
  }
