r"""Trains a network that forecasts time series, with intervals.

  python -m experiments.forecasting --workdir=runs/co2
  python -m experiments.forecasting --workdir=runs/mine --csv_file=mine.csv \
    --horizon=24 --context=168

A network reads a window of a series and forecasts the `horizon` time steps
after it. All series share the network. It is scored at every origin of the test
split, beside a naive forecast, a seasonal one without and with drift,
Holt-Winters smoothing and a linear model.
"""

import dataclasses
import functools
import hashlib
import json
import math
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import figures, missing, network, runner
from recurrent import cells, data, nn
from recurrent.data import missing as missing_lib
from recurrent.data import series as series_lib
from recurrent.errors import ConfigError, DataError
from recurrent.metrics import Mean
from recurrent.metrics import forecast as metrics
from recurrent.models import baselines, forecaster
from recurrent.types import PRNGKey

NAME = "forecasting"
DATA = "series.json"
SEASONS = {"sunspots": 11}
NAIVE2 = "naive2"  # the yardstick of OWA
BASELINES: dict[str, baselines.Forecast] = {
  "naive": baselines.naive,
  "seasonal_naive": baselines.seasonal_naive,
  "seasonal_naive_drift": baselines.seasonal_naive_drift,
  "holt_winters": baselines.holt_winters,
  NAIVE2: baselines.naive2,
}


@dataclasses.dataclass(frozen=True)
class Config(missing.MissingConfig, network.NetworkConfig):
  """Flags of forecasting; the defaults are the recipe for weekly CO2.

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
    series_embedding: read which series it is, if there are several.
    head: what is forecast: point, quantiles, gaussian or student_t.
    point_loss: loss of the head point: mae, mse or huber.
    decoding: how the horizon is forecast: direct (all at once), parallel (one
      step from the last carry for each segment), recursive, or encoder_decoder.
    segment: number of time steps that the network reads, and forecasts, at
      once; it divides --context.
    normalization: what is subtracted from each window, and added to its
      forecast: none, last (the last value) or instance (the mean; the window is
      also divided by its standard deviation).
    output_dropout: dropout rate before the output layer.
    imputation_weight: weight of the error of the predicted inputs in the loss,
      with --missing=model.
    standardized: give all errors in standard deviations of the train split, as
      is usual for ETT.
    eval_stride: number of time steps between the origins of the valid split.
    remove: percentage of the values to remove from all splits, to see what gaps
      cost; the test split is scored on all values.
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
  series_embedding: bool = True
  head: str = "quantiles"
  point_loss: str = "mae"
  decoding: str = "parallel"
  segment: int = 4
  normalization: str = "last"
  output_dropout: float = 0.2
  imputation_weight: float = 1.0
  standardized: bool = False
  eval_stride: int = 1
  remove: float = 0.0
  remove_blocks: bool = False
  # Defaults that differ from those of the base classes.
  missing: str = "linear"
  cell: str = "gru"
  features: int = 32
  steps: int = 600
  batch_size: int = 64
  eval_every: int = 200
  learning_rate: float = 2e-3
  schedule: str = "cosine"
  ema: float = 0.99

  POSITIVE: typing.ClassVar[frozenset[str]] = frozenset(
    "segment eval_stride".split()
  )
  BELOW_ONE: typing.ClassVar[frozenset[str]] = frozenset(("output_dropout",))
  CHOICES: typing.ClassVar[dict[str, Sequence[str]]] = {
    "dataset": series_lib.DATASETS,
    "layout": series_lib.LAYOUTS,
    "head": forecaster.HEADS,
    "point_loss": forecaster.POINT_LOSSES,
    "decoding": forecaster.DECODINGS,
    "normalization": forecaster.NORMALIZATIONS,
  }
  SMOKE: typing.ClassVar[dict[str, Any]] = {"eval_stride": 20}
  NEEDS: typing.ClassVar[dict[str, tuple[str, Sequence[Any]]]] = {
    "dataset": ("csv_file", ("",)),
    "target": ("layout", ("wide",)),
    "known_future": ("layout", ("wide",)),
    "point_loss": ("head", ("point",)),
    "imputation_weight": ("missing", ("model",)),
    # Here it is the window of every cell.
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
    if self.context % self.segment:
      raise ConfigError(
        f"--segment={self.segment} does not divide --context={self.context}",
        "change one of the two",
      )
    if self.missing == "decay" and self.segment > 1:
      raise ConfigError(
        f"--missing=decay reads time steps, not --segment={self.segment}",
        "add --segment=1, or choose another --missing",
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


def make_model(
  config: Config, widths: Widths, rngs: nnx.Rngs
) -> forecaster.Forecaster:
  """Makes the model that the flags describe."""
  width = config.features
  stack = lambda: network.make_stack(config, width, rngs=rngs)
  imputer, gap_layer = None, None
  if config.missing == "model":
    one = dataclasses.replace(config, layers=1)
    layer = network.make_stack(one, 2 * widths.variables, rngs=rngs)
    imputer = nn.Imputer(layer, widths.variables, rngs=rngs)
  if config.missing == "decay":
    gap_layer = nn.Recurrent(cells.GRUD(width), widths.variables, rngs=rngs)
  several = config.series_embedding and widths.series > 1
  return forecaster.Forecaster(
    stack(),
    horizon=widths.horizon,
    head=make_head(config),
    decoding=config.decoding,
    segment=config.segment,
    normalization=config.normalization,
    variables=widths.variables,
    known=widths.known,
    series=widths.series if several else 0,
    shows_gaps=config.missing in missing_lib.LEARNT,
    decoder=stack() if config.decoding == "encoder_decoder" else None,
    imputer=imputer,
    gap_layer=gap_layer,
    dropout=config.output_dropout,
    dtype=jnp.dtype(config.dtype),
    rngs=rngs,
  )


def make_head(config: Config) -> forecaster.Head:
  """Makes the head that the flags describe."""
  return forecaster.Head(config.head, loss=config.point_loss)


def forecast(
  model: forecaster.Forecaster, batch: dict[str, jax.Array], key=None
) -> forecaster.Forecast:
  """The forecast of a batch of `Windows.gather`."""
  names = "observed mask known times series".split()
  window = forecaster.Window(batch["inputs"], *(batch[n] for n in names))
  return model(window, key=key)


def loss(
  model: forecaster.Forecaster,
  carry: tuple[()],
  batch: dict[str, jax.Array],
  key: PRNGKey | None,
  *,
  imputation_weight: float = 1.0,
) -> tuple[jax.Array, tuple[tuple[()], dict[str, Mean]]]:
  """Mean loss of the head over all given targets, plus that of the imputer.

  Args:
    model: the model.
    carry: ().
    batch: from `Windows.gather`.
    key: PRNG key of the dropout masks; None for evaluation.
    imputation_weight: weight of the squared error of the predicted inputs.
  """
  found = forecast(model, batch, key)
  weights = batch["target_mask"] * batch["weights"][:, None]
  each = model.head.losses(found.params, batch["targets"])
  sums = {"forecast_loss": Mean.of(each, weights)}
  if found.imputation is not None:
    seen = batch["observed"] & batch["mask"][..., None]
    seen = seen * batch["weights"][:, None, None]
    sums["imputation_loss"] = Mean.of(found.imputation, seen)
  mean = lambda m: m.total / jnp.where(m.weight == 0, 1.0, m.weight)
  total = mean(sums["forecast_loss"])
  if found.imputation is not None:
    total += imputation_weight * mean(sums["imputation_loss"])
  return total, (carry, sums)


class Prepared:
  """Series as the network reads them, and the windows of each split.

  Args:
    config: the flags.
    series: the series.
    saved: what `save` has written, so that a forecast of new data is made as in
      training; None: it is measured on the train split.
  """

  def __init__(
    self, config: Config, series: series_lib.Series, saved: dict | None = None
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
    (path / DATA).write_text(json.dumps(saved) + "\n")


def _scale(values) -> list[float]:
  """Mean and standard deviation of a series; 0 and 1 if there is none."""
  seen = values[~np.isnan(values)]
  if not len(seen):
    return [0.0, 1.0]
  return [float(seen.mean()), float(seen.std()) or 1.0]


def load(config: Config, file: str = "", flag: str = "csv_file"):
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


class Scorer:
  """Scores forecasts of a split, beside the baselines.

  Args:
    prepared: the series.
    places: [N, 2], the windows of the split.
    head: head of the network.
  """

  def __init__(
    self, prepared: Prepared, places: np.ndarray, head: forecaster.Head
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
        with _needs_statsmodels(name):
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


class _needs_statsmodels:
  """Logs that a baseline is left out if statsmodels is not installed."""

  def __init__(self, name):
    self.name = name

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    if kind is not None and issubclass(kind, ImportError):
      runner.LOG.warning("%s needs statsmodels; it is left out.", self.name)
      return True
    return False


def make_task(config: Config) -> runner.Task:
  """Makes the `Task` of the runner: data, model, loss and evaluation."""
  config.check_device()
  prepared = Prepared(config, load(config))
  head = make_head(config)
  places = {
    "train": prepared.places("train"),
    "valid": prepared.places("valid", config.eval_stride),
    "test": prepared.places("test"),
  }
  train = prepared.windows(places["train"])
  draw = lambda rng: train.gather(
    rng.integers(len(train), size=config.batch_size)
  )
  scorers = functools.cache(lambda split: Scorer(prepared, places[split], head))
  batches = lambda split: prepared.windows(
    places[split], scored=split == "test"
  ).in_batches(max(config.batch_size, 256))

  def describe(split, scores):
    found = dict(scores.means)
    if not scores.predictions:
      return {f"{split}_{name}": value for name, value in found.items()}
    scorer = scorers(split)
    found |= scorer.describe(scores.predictions["params"])
    if split == "test":
      naive2 = scorer.baseline_errors[NAIVE2]
      found["owa"] = metrics.owa(found, naive2)
      for name, row in scorer.baseline_errors.items():
        found |= {f"{kind}_{name}": value for kind, value in row.items()}
    named = {f"{split}_{name}": _finite(v) for name, v in found.items()}
    return {"horizon": prepared.horizon, **named} if split == "test" else named

  def report(split, scores, folder):
    params = scores.predictions["params"]
    scorers(split).draw(params, folder / "forecast.png")
    return f"{split}, {len(params)} forecasts:\n{scorers(split).table(params)}"

  inputs = np.concatenate(prepared.inputs)
  return runner.Task(
    name=NAME,
    make_model=functools.partial(make_model, config, prepared.widths),
    loss=functools.partial(loss, imputation_weight=config.imputation_weight),
    batches=data.DrawnBatches(draw, config.seed),
    units=("windows", lambda batch: len(batch["inputs"])),
    splits={name: batches(name) for name in places},
    objective="valid_forecast_loss",
    predict=lambda model, batch: {"params": forecast(model, batch).params},
    describe=describe,
    report=report,
    data_sha256=hashlib.sha256(inputs.tobytes()).hexdigest(),
    save=prepared.save,
  )


def _finite(value: float) -> float | None:
  return value if math.isfinite(value) else None


def predict(workdir: str, file: str) -> Iterator[dict[str, Any]]:
  """Forecasts the `horizon` time steps after the end of every series of a file.

  Args:
    workdir: directory of the run.
    file: path of a file in the format of --csv_file. With --known_future it
      has rows for the time to be forecast, with empty targets.

  Yields:
    For each series its name, as `series`; `times` of the time steps to be
    forecast, if the file has times; `forecast`, the median; and `quantiles` by
    their level, unless the head is a point.

  Raises:
    UserError: if the workdir has no model, or the file is not as it should be.
  """
  config = runner.read_config(workdir, NAME, Config)
  try:
    saved = json.loads((Path(workdir) / DATA).read_text())
  except (OSError, ValueError) as error:
    raise DataError(
      f"cannot read {DATA} of {workdir}", "train the model again"
    ) from error
  widths = Widths(**saved["widths"])
  trained = runner.load_params(
    config, functools.partial(make_model, config, widths)
  )
  head = make_head(config)
  series = load(config, file, flag="input")
  plain = dataclasses.replace(config, standardized=False)
  prepared = Prepared(plain, series, saved)
  if prepared.widths[:3] != widths[:3]:
    raise DataError(
      f"{file} gives the network {prepared.widths.variables} variables and"
      f" {prepared.widths.known} known ones; it was trained on"
      f" {widths.variables} and {widths.known}",
      "give the columns of the training data, and times of the same kind",
    )
  places = np.array(
    [_place(prepared, file, i) for i in range(len(series.names))]
  )
  windows = prepared.windows(places)
  model = nnx.merge(trained.graphdef, trained.params)
  apply = jax.jit(lambda batch: forecast(model, batch).params)
  for start in range(0, len(places), 256):
    rows = np.arange(start, min(start + 256, len(places)))
    batch = windows.gather(rows, ahead=False)
    params = np.asarray(apply(batch))
    numbers = places[rows, 0]
    points = prepared.restore(numbers, np.asarray(head.point(params)))
    quantiles = head.quantiles(params)
    for row, number in enumerate(numbers):
      found: dict[str, Any] = {"series": series.names[number]}
      if series.times is not None:
        steps = places[rows[row], 1] + np.arange(prepared.horizon)
        times = series_lib.at_steps(series.times, steps)
        found["times"] = (
          times.astype(str).tolist()
          if (times.dtype.kind == "M")
          else times.tolist()
        )
      found["forecast"] = points[row].tolist()
      if quantiles is not None:
        values = prepared.restore(numbers, quantiles)[row]
        found["quantiles"] = {
          str(level): values[:, i].tolist()
          for i, level in enumerate(head.levels)
        }
      yield found


def _place(prepared, file, number):
  """The series and the origin of the forecast after the end of a series."""
  series, config = prepared.series, prepared.config
  values = prepared.given[number]
  origin = len(values)
  if series.known.shape[1]:
    every = np.stack(prepared.given)
    origin = int(np.flatnonzero(~np.isnan(every).all(axis=0))[-1]) + 1
    if len(values) < origin + prepared.horizon:
      raise DataError(
        f"{file}: --known_future ends {len(values) - origin} time steps after"
        f" the last target, and the horizon is {prepared.horizon}",
        "add rows with the known values, and empty cells for the targets",
      )
  if origin < config.context:
    raise DataError(
      f"{file}: {series.names[number]!r} has {origin} time steps, and the"
      f" network reads {config.context}",
      "give a longer history",
    )
  return number, origin


def run(config: Config) -> dict[str, Any]:
  """Trains; returns the final metrics."""
  return runner.train(config, make_task)


if __name__ == "__main__":
  runner.main(run, Config)
