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
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import network, runner, scorer, series
from recurrent import cells, data, nn
from recurrent.data import missing as missing_lib
from recurrent.data import series as series_lib
from recurrent.errors import ConfigError, DataError
from recurrent.metrics import Mean
from recurrent.metrics import forecast as metrics
from recurrent.models import forecaster
from recurrent.types import PRNGKey

NAME = "forecasting"


@dataclasses.dataclass(frozen=True)
class Config(series.SeriesConfig, network.NetworkConfig):
  """Flags of forecasting; the defaults are the recipe for weekly CO2.

  Args:
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
  """

  series_embedding: bool = True
  head: str = "student_t"
  point_loss: str = "mae"
  decoding: str = "parallel"
  segment: int = 4
  normalization: str = "instance"
  output_dropout: float = 0.1
  imputation_weight: float = 1.0
  # Defaults that differ from those of the base classes.
  cell: str = "gru"
  features: int = 32
  steps: int = 1400
  batch_size: int = 64
  eval_every: int = 350
  learning_rate: float = 2e-3
  schedule: str = "cosine"
  ema: float = 0.99

  POSITIVE: typing.ClassVar[frozenset[str]] = frozenset(("segment",))
  BELOW_ONE: typing.ClassVar[frozenset[str]] = frozenset(("output_dropout",))
  CHOICES: typing.ClassVar[dict[str, Sequence[str]]] = {
    "head": forecaster.HEADS,
    "point_loss": forecaster.POINT_LOSSES,
    "decoding": forecaster.DECODINGS,
    "normalization": forecaster.NORMALIZATIONS,
  }
  NEEDS: typing.ClassVar[dict[str, tuple[str, Sequence[Any]]]] = {
    "point_loss": ("head", ("point",)),
    "imputation_weight": ("missing", ("model",)),
  }

  def check(self):
    """Raises ConfigError if a value is wrong."""
    super().check()
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


def make_model(
  config: Config, widths: series.Widths, rngs: nnx.Rngs
) -> forecaster.Forecaster:
  """Makes the model that the flags describe."""
  width = config.features
  stack = lambda: network.make_stack(config, width, rngs=rngs)
  imputer, gap_layer = None, None
  if config.missing == "model":
    imputer = network.make_imputer(config, widths.variables, rngs=rngs)
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


def predict_batch(
  model: forecaster.Forecaster, batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
  """The parameters of the forecast distributions, [batch, H, P]."""
  return {"params": forecast(model, batch).params}


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
  total = sums["forecast_loss"].value()
  if found.imputation is not None:
    seen = batch["observed"] & batch["mask"][..., None]
    seen = seen * batch["weights"][:, None, None]
    sums["imputation_loss"] = Mean.of(found.imputation, seen)
    total += imputation_weight * sums["imputation_loss"].value()
  return total, (carry, sums)


def make_task(config: Config) -> runner.Task:
  """Makes the `Task` of the runner: data, model, loss and evaluation."""
  config.check_device()
  prepared = series.Prepared(config, series.load(config))
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
  scorers = functools.cache(
    lambda split: scorer.Scorer(prepared, places[split], head)
  )
  batches = lambda split: prepared.windows(
    places[split], scored=split == "test"
  ).in_batches(max(config.batch_size, 256))

  def describe(split, scores):
    found = dict(scores.means)
    if not scores.predictions:
      return {f"{split}_{name}": value for name, value in found.items()}
    judge = scorers(split)
    found |= judge.describe(scores.predictions["params"])
    if split == "test":
      naive2 = judge.baseline_errors[scorer.NAIVE2]
      found["owa"] = metrics.owa(found, naive2)
      for name, row in judge.baseline_errors.items():
        found |= {f"{kind}_{name}": value for kind, value in row.items()}
    named = {f"{split}_{name}": value for name, value in found.items()}
    return {"horizon": prepared.horizon, **named} if split == "test" else named

  def report(split, scores, folder, model):
    del model
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
    predict=predict_batch,
    describe=describe,
    report=report,
    data_sha256=hashlib.sha256(inputs.tobytes()).hexdigest(),
    save=prepared.save,
  )


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
    saved = json.loads((Path(workdir) / series.FILE).read_text())
  except (OSError, ValueError) as error:
    raise DataError(
      f"cannot read {series.FILE} of {workdir}", "train the model again"
    ) from error
  widths = series.Widths(**saved["widths"])
  trained = runner.load_params(
    config, functools.partial(make_model, config, widths)
  )
  head = make_head(config)
  given = series.load(config, file, flag="input")
  plain = dataclasses.replace(config, standardized=False)
  prepared = series.Prepared(plain, given, saved)
  if prepared.widths[:3] != widths[:3]:
    raise DataError(
      f"{file} gives the network {prepared.widths.variables} variables and"
      f" {prepared.widths.known} known ones; it was trained on"
      f" {widths.variables} and {widths.known}",
      "give the columns of the training data, and times of the same kind",
    )
  places = np.array(
    [_place(prepared, file, i) for i in range(len(given.names))]
  )
  windows = prepared.windows(places)
  apply = runner.make_predictor(trained, predict_batch)
  batches = windows.in_batches(256, ahead=False)
  params = np.stack(apply(batches)["params"])
  numbers, origins = places.T
  points = prepared.restore(numbers, np.asarray(head.point(params)))
  quantiles = head.quantiles(params)
  if quantiles is not None:
    quantiles = prepared.restore(numbers, quantiles)
  for row, (number, origin) in enumerate(places):
    found: dict[str, Any] = {"series": given.names[number]}
    if given.times is not None:
      steps = origin + np.arange(prepared.horizon)
      times = series_lib.at_steps(given.times, steps)
      found["times"] = (
        times.astype(str) if times.dtype.kind == "M" else times
      ).tolist()
    found["forecast"] = points[row].tolist()
    if quantiles is not None:
      found["quantiles"] = {
        str(level): quantiles[row, :, i].tolist()
        for i, level in enumerate(head.levels)
      }
    yield found


def _place(prepared, file, number):
  """The series and the origin of the forecast after the end of a series."""
  read, config = prepared.series, prepared.config
  values = prepared.given[number]
  origin = len(values)
  if read.known.shape[1]:
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
      f"{file}: {read.names[number]!r} has {origin} time steps, and the"
      f" network reads {config.context}",
      "give a longer history",
    )
  return number, origin


def run(config: Config) -> dict[str, Any]:
  """Trains; returns the final metrics."""
  return runner.train(config, make_task)


if __name__ == "__main__":
  runner.main(run, Config)
