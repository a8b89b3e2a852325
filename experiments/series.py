"""Series in experiments: their flags, and how a network reads them."""

import dataclasses
import json
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import missing
from recurrent import files
from recurrent.data import missing as missing_lib
from recurrent.data import series as series_lib
from recurrent.errors import ConfigError, DataError

FILE = "series.json"
SEASONS = {"sunspots": 11}


@dataclasses.dataclass(frozen=True)
class SeriesConfig(missing.MissingConfig):
  """Flags of the series: where they come from, and what is read of them.

  Args:
    dataset: series to forecast: co2 (weekly, with gaps) or sunspots (yearly),
      which come with statsmodels.
    csv_file: path of a CSV file to read instead of a dataset.
    layout: layout of the CSV file. wide has a header, a first column with the
      time, and one column a series; rows has one series a row, first its name.
    target: columns to forecast, separated by commas; by default all but those
      of --known_future. Other columns are read up to the origin.
    known_future: columns whose values are known for the future too.
    splits: shares of train, valid and test in percent, in the order of time; or
      three numbers of time steps, of which the first may be 0 for the rest.
    horizon: number of time steps to forecast; 0: one season.
    context: number of time steps that the network reads before an origin.
    season: time steps of a season, for baselines and MASE; 0: a day, week or
      year, depending on the times.
    calendar: read the phase of the day, the week and the year.
    standardized: give all errors in standard deviations of the train split, as
      is usual for ETT.
    eval_stride: number of time steps between the origins of the valid split.
    remove: percentage of the values to remove from all splits, to see what gaps
      cost; the test split is scored on all values.
    seed: seed of the initial parameters, the windows, the dropout, and of what
      is removed.
    remove_blocks: remove blocks of 5 to 50 time steps instead of single values.
  """

  dataset: str = "co2"
  csv_file: str = ""
  layout: str = "wide"
  target: str = ""
  known_future: str = ""
  splits: str = "90,5,5"
  horizon: int = 0
  context: int = 104
  season: int = 0
  calendar: bool = True
  standardized: bool = False
  eval_stride: int = 1
  remove: float = 0.0
  remove_blocks: bool = False
  seed: int = 0
  # A default that differs from that of the base class.
  missing: str = "linear"

  POSITIVE: typing.ClassVar[frozenset[str]] = frozenset(
    "context eval_stride".split()
  )
  CHOICES: typing.ClassVar[dict[str, Sequence[str]]] = {
    "dataset": series_lib.DATASETS,
    "layout": series_lib.LAYOUTS,
  }
  SMOKE: typing.ClassVar[dict[str, Any]] = {"eval_stride": 20}
  NEEDS: typing.ClassVar[dict[str, tuple[str, Sequence[Any]]]] = {
    "dataset": ("csv_file", ("",)),
    "target": ("layout", ("wide",)),
    "known_future": ("layout", ("wide",)),
    # Here it is the window of every cell, not only of a transformer.
    "context": ("layout", series_lib.LAYOUTS),
  }

  def check(self):
    """Raises ConfigError if a value is wrong."""
    super().check()
    if not self.csv_file and (self.target or self.known_future):
      raise ConfigError(
        "--target and --known_future name columns of a --csv_file",
        "leave them out, or add --csv_file=FILE",
      )
    if self.remove >= 100:
      raise ConfigError(
        f"--remove={self.remove} leaves nothing", "use a number below 100"
      )


class Widths(NamedTuple):
  """The sizes of a network that the data determine."""

  horizon: int
  variables: int
  known: int
  series: int


class Prepared:
  """Series as the network reads them, and the windows of each split.

  Args:
    config: the flags.
    series: the series.
    saved: what `save` has written, so that a forecast of new data is made as in
      training; None: it is measured on the train split.
  """

  def __init__(
    self,
    config: SeriesConfig,
    series: series_lib.Series,
    saved: dict | None = None,
  ):
    self.config, self.series = config, series
    season = config.season or SEASONS.get(
      "" if config.csv_file else config.dataset,
      series_lib.guess_season(series.times),
    )
    saved = saved or {}
    self.season = saved.get("season", season)
    self.horizon = config.horizon or (season if season > 1 else 12)
    self.horizon = saved.get("horizon", self.horizon)
    self.seconds = saved.get("seconds", series_lib.step_seconds(series.times))
    self.known_names = saved.get("known", {})
    self.past_names = saved.get("past", {})
    rng = np.random.default_rng((config.seed, 0x6A9))
    self.given = [
      series_lib.remove(values, config.remove / 100, config.remove_blocks, rng)
      if config.remove and not saved
      else values
      for values in series.values
    ]
    self.names = saved.get("series", {})
    self.ends = (
      [self._ends(name, v) for name, v in self._all()] if not saved else []
    )
    scales = [
      self.names.get(name) or _scale(values[: self._train_end(i)])
      for i, (name, values) in enumerate(self._all())
    ]
    self.mean, self.std = np.array([s[:2] for s in scales]).T
    past_scale = [
      self.past_names.get(name) or _scale(column[: self._train_end(0)])
      for name, column in zip(series.columns[0], series.past.T, strict=True)
    ]
    self.past_scale = np.array([s[:2] for s in past_scale]).reshape(-1, 2)
    known_scale = [
      self.known_names.get(name) or _scale(column[: self._train_end(0)])
      for name, column in zip(series.columns[1], series.known.T, strict=True)
    ]
    self.known_scale = np.array([s[:2] for s in known_scale]).reshape(-1, 2)
    past = (series.past - self.past_scale[:, 0]) / self.past_scale[:, 1]
    self.inputs = [
      np.concatenate([self.standardise(i, v)[:, None], past[: len(v)]], axis=1)
      for i, (_, v) in enumerate(self._all())
    ]
    if saved:
      self.statistics = [
        missing_lib.Statistics(*map(np.array, saved["statistics"].get(name)))
        if name in saved["statistics"]
        else missing_lib.measure([values])
        for name, values in zip(series.names, self.inputs, strict=True)
      ]
    else:
      self.statistics = [
        missing_lib.measure([values[: self._train_end(i)]])
        for i, values in enumerate(self.inputs)
      ]

  def _all(self):
    return zip(self.series.names, self.given, strict=True)

  def _train_end(self, number):
    return self.ends[number][0] if self.ends else None

  def _ends(self, name, values):
    try:
      ends = series_lib.split_ends(
        len(values), self.config.splits, self.horizon
      )
    except DataError as error:
      raise DataError(f"{name!r}: {error.cause}", error.remedy) from error
    need = self.config.context + self.horizon
    if ends[0] < need:
      raise DataError(
        f"{name!r} has {ends[0]} time steps to train on, of {len(values)};"
        f" --context={self.config.context} and --horizon={self.horizon} need"
        f" {need}",
        "give longer series, or a smaller --context or --horizon",
      )
    return ends

  @property
  def widths(self) -> Widths:
    """The sizes that the network must have."""
    known = self.known(1).shape[1]
    return Widths(
      self.horizon, self.inputs[0].shape[1], known, len(self.series.names)
    )

  def standardise(self, number: int, values: np.ndarray) -> np.ndarray:
    """Values of a series in standard deviations of its train split."""
    return (values - self.mean[number]) / self.std[number]

  def restore(self, numbers: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Standardised values [N, ...] of series in their units, or as they are."""
    if self.config.standardized:
      return values
    shape = (-1,) + (1,) * (values.ndim - 1)
    std, mean = self.std[numbers], self.mean[numbers]
    return values * std.reshape(shape) + mean.reshape(shape)

  def known(self, length: int) -> np.ndarray:
    """The calendar and the known covariates, [length, K]."""
    steps = np.arange(length)
    times = self.series.times
    waves = np.empty((length, 0), np.float32)
    if self.config.calendar and times is not None:
      longer = times[:length]
      if length > len(times):
        more = series_lib.at_steps(times, steps[len(times) :])
        longer = np.concatenate([times, more])
      waves = series_lib.calendar(longer, self.seconds)
    covariates = (self.series.known[:length] - self.known_scale[:, 0]) / (
      self.known_scale[:, 1]
    )
    if len(covariates) < length:
      covariates = np.resize(covariates, (length, covariates.shape[1]))
    return np.concatenate([waves, covariates.astype(np.float32)], axis=1)

  def windows(
    self, places: np.ndarray, *, scored: bool = False, strategy: str = ""
  ) -> series_lib.Windows:
    """Windows at given places; their targets are all values if `scored`."""
    times = self.series.times
    length = max(map(len, self.inputs))
    steps = np.arange(length, dtype=np.float64)
    if times is not None:
      unit = max(self.seconds, 1.0) if times.dtype.kind == "M" else 1.0
      steps = (times - times[0]).astype(np.float64) / unit
    targets = self.series.values if scored else self.given
    numbers = (
      [
        list(self.names).index(n) + 1 if n in self.names else 0
        for n in self.series.names
      ]
      if self.names
      else range(1, 1 + len(targets))
    )
    return series_lib.Windows(
      inputs=self.inputs,
      targets=[self.standardise(i, v) for i, v in enumerate(targets)],
      known=self.known(length + self.horizon),
      times=steps,
      places=places,
      context=self.config.context,
      horizon=self.horizon,
      strategy=strategy or self.config.missing,
      statistics=self.statistics,
      numbers=np.array(numbers),
    )

  def places(self, split: str, stride: int = 1) -> np.ndarray:
    """The series and the origin of each window of a split, [N, 2]."""
    part = ("train", "valid", "test").index(split)
    spans = [(0, *ends)[part : part + 2] for ends in self.ends]
    return series_lib.origins(spans, self.config.context, self.horizon, stride)

  def save(self, path: Path) -> None:
    """Writes what a forecast of new data needs, as JSON."""
    pairs = lambda names, scales: dict(
      zip(names, np.asarray(scales).tolist(), strict=True)
    )
    names = self.series.names
    saved = {
      "horizon": self.horizon,
      "season": self.season,
      "seconds": self.seconds,
      "widths": self.widths._asdict(),
      "series": pairs(names, np.stack([self.mean, self.std], axis=1)),
      "past": pairs(self.series.columns[0], self.past_scale),
      "known": pairs(self.series.columns[1], self.known_scale),
      "statistics": {
        name: [column.tolist() for column in statistics]
        for name, statistics in zip(names, self.statistics, strict=True)
      },
    }
    files.write_text(path / FILE, json.dumps(saved) + "\n")


def _scale(values) -> list[float]:
  """Mean and standard deviation of a series; 0 and 1 if there is none."""
  seen = values[~np.isnan(values)]
  if not len(seen):
    return [0.0, 1.0]
  return [float(seen.mean()), float(seen.std()) or 1.0]


def load(config: SeriesConfig, file: str = "", flag: str = "csv_file"):
  """Loads the series that the flags describe, or those of another file."""
  if not (file or config.csv_file):
    return series_lib.load_series(config.dataset)
  return series_lib.read_series(
    file or config.csv_file,
    layout=config.layout,
    target=_names(config.target),
    known_future=_names(config.known_future),
    flag=flag,
  )


def _names(text: str) -> list[str]:
  return [name.strip() for name in text.split(",") if name.strip()]
