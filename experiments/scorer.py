"""Scores forecasts beside baselines, as numbers, a table and a figure."""

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments import figures, series
from recurrent.metrics import forecast as metrics
from recurrent.models import baselines, forecaster

LOG = logging.getLogger("recurrent")

NAIVE2 = "naive2"  # the yardstick of OWA
BASELINES: dict[str, baselines.Forecast] = {
  "naive": baselines.naive,
  "seasonal_naive": baselines.seasonal_naive,
  "seasonal_naive_drift": baselines.seasonal_naive_drift,
  "holt_winters": baselines.holt_winters,
  NAIVE2: baselines.naive2,
}


class Scorer:
  """Scores forecasts of a split, beside the baselines.

  Args:
    prepared: the series.
    places: [N, 2], the windows of the split.
    head: head of the network.
  """

  def __init__(
    self, prepared: series.Prepared, places: np.ndarray, head: forecaster.Head
  ):
    self.prepared, self.places, self.head = prepared, places, head
    numbers, origins = places.T
    windows = prepared.windows(places, scored=True)
    targets = [
      windows.targets[n][o : o + prepared.horizon]
      for n, o in zip(numbers, origins, strict=True)
    ]
    self.targets = prepared.restore(numbers, np.stack(targets))
    first = [
      int(origins[numbers == n].min()) for n in range(len(prepared.inputs))
    ]
    scales = np.array(
      [
        metrics.naive_scale(values[:end], prepared.season)
        for values, end in zip(prepared.given, first, strict=True)
      ]
    )
    scales = scales / prepared.std if prepared.config.standardized else scales
    self.scale = scales[numbers]

  def forecasts(self, params: Sequence[np.ndarray]):
    """Medians [N, H] and quantiles [N, H, Q] or None, in the reported units."""
    stacked = np.stack(params)
    restore = functools.partial(self.prepared.restore, self.places[:, 0])
    quantiles = self.head.quantiles(stacked)
    point = restore(np.asarray(self.head.point(stacked), np.float64))
    return point, None if quantiles is None else restore(quantiles)

  def describe(self, params: Sequence[np.ndarray]) -> dict[str, float]:
    """The metrics of the network."""
    point, quantiles = self.forecasts(params)
    found = metrics.errors(point, self.targets, self.scale)
    if quantiles is not None:
      levels = self.head.levels
      found |= metrics.interval_scores(quantiles, self.targets, levels)
    return found

  @functools.cached_property
  def baselines(self) -> dict[str, np.ndarray]:
    """The forecasts [N, H] of each baseline, in the reported units."""
    found = {}
    prepared = self.prepared
    numbers, origins = self.places.T
    for name, method in BASELINES.items():
      result = np.full(self.targets.shape, np.nan)
      for number, values in enumerate(prepared.given):
        here = numbers == number
        with _unless_not_installed(name):
          result[here] = method(
            values, origins[here], prepared.horizon, prepared.season
          )
      if prepared.config.standardized:
        result = result - prepared.mean[numbers, None]
        result = result / prepared.std[numbers, None]
      found[name] = result
    return {**found, "linear": self._linear()}

  def _linear(self):
    """The forecast of the linear model."""
    prepared = self.prepared

    def batches(places, scored=False):
      windows = prepared.windows(places, scored=scored, strategy="linear")
      for batch in windows.in_batches(4096):
        blank = np.where(batch["target_mask"], batch["targets"], np.nan)
        yield batch["inputs"][..., 0], blank

    model = baselines.fit_linear(
      batches(prepared.places("train")), batches(prepared.places("valid"))
    )
    parts = [model(inputs) for inputs, _ in batches(self.places)]
    return prepared.restore(self.places[:, 0], np.concatenate(parts))

  @functools.cached_property
  def baseline_errors(self) -> dict[str, dict[str, float]]:
    """The errors of each baseline."""
    return {
      name: metrics.errors(result, self.targets, self.scale)
      for name, result in self.baselines.items()
    }

  def table(self, params: Sequence[np.ndarray]) -> str:
    """A table of the network and all baselines."""
    rows = {"network": self.describe(params), **self.baseline_errors}
    columns = "mae mse smape mase owa coverage crps".split()
    lines = [f"{'':22}" + "".join(f"{name:>10}" for name in columns)]
    for name, row in rows.items():
      row = {**row, "owa": metrics.owa(row, self.baseline_errors[NAIVE2])}
      cells = [
        f"{row[column]:10.4g}" if column in row else " " * 10
        for column in columns
      ]
      lines.append(f"{name:22}" + "".join(cells))
    return "\n".join(lines)

  def draw(self, params: Sequence[np.ndarray], path: Path) -> None:
    """Draws the last forecast of up to four series."""
    point, quantiles = self.forecasts(params)
    panels = []
    for number in range(min(4, len(self.prepared.inputs))):
      row = int(np.flatnonzero(self.places[:, 0] == number)[-1])
      origin = int(self.places[row, 1])
      start = max(0, origin - 3 * self.prepared.horizon)
      values = self.prepared.series.values[number]
      if self.prepared.config.standardized:
        values = self.prepared.standardise(number, values)
      end = origin + self.prepared.horizon
      times = self.prepared.series.times
      times = np.arange(end) if times is None else times[:end]
      lines = {
        name.replace("_", " "): result[row]
        for name, result in self.baselines.items()
        if name not in (NAIVE2, "naive")
      }
      panels.append(
        figures.ForecastPanel(
          self.prepared.series.names[number],
          times[start:end],
          values[start:end],
          point[row],
          None if quantiles is None else quantiles[row][:, [0, -1]],
          lines,
        )
      )
    figures.forecasts(path, panels)


@contextlib.contextmanager
def _unless_not_installed(name: str) -> Iterator[None]:
  """Leaves a baseline out, with a warning, if its library is missing."""
  try:
    yield
  except ImportError as error:
    LOG.warning("%s is left out: %s.", name, error)
