"""Trains a network on a synthetic task that tests its memory.

  python -m experiments.memory --workdir=runs/memory --task=copy --length=500

The tasks and their definitions are in `recurrent/data/synthetic.py`. Batches
are drawn anew at each step. The test split has sequences of several lengths,
also longer than those of training. The loss is in nats per scored target, or
the mean squared error for `adding`; `baseline_loss` is that of the best
predictor without memory. The accuracy is the share of right targets; a number
is right if its error is below 0.04.
"""

import dataclasses
import functools
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import figures, network, runner
from recurrent import data, losses, models
from recurrent.data import labelled, records, synthetic
from recurrent.errors import ConfigError, DataError
from recurrent.metrics import Mean
from recurrent.training.step import loss_of

NAME = "memory"
TOLERANCE = 0.04  # of the sums of adding (Hochreiter & Schmidhuber, 1997)
STAGES = 5  # of the curriculum


@dataclasses.dataclass(frozen=True)
class Config(network.NetworkConfig):
  """Flags of the memory tasks.

  Args:
    task: name of the task, such as copy, adding, parity, mqar or s5.
    length: length of the training sequences, as the task defines it; 0: the
      task's default.
    test_lengths: lengths of the test sequences, separated by commas, in
      addition to that of training; empty: twice and four times that length.
    curriculum: train on shorter sequences first. In the first half of the
      steps, the length doubles four times, up to --length. Batches of shorter
      sequences have more of them, --batch_size * --length / length.
    symbols: number of different symbols, keys or bracket types; 0: the task's
      default.
    items: number of symbols to copy, or of pairs to recall, or greatest depth
      of brackets; 0: the task's default.
    test_examples: number of sequences of each length that are scored.
  """

  task: str = "parity"
  length: int = 0
  test_lengths: str = ""
  curriculum: bool = False
  symbols: int = 0
  items: int = 0
  test_examples: int = 512
  # Defaults that differ from those of the base classes.
  cell: str = "gru"
  features: int = 64
  steps: int = 1000
  batch_size: int = 64
  learning_rate: float = 5e-3
  schedule: str = "cosine"
  warmup_steps: int = 50

  POSITIVE: typing.ClassVar[frozenset[str]] = frozenset(("test_examples",))
  CHOICES: typing.ClassVar[dict[str, Sequence[str]]] = {
    "task": tuple(synthetic.TASKS)
  }
  SMOKE: typing.ClassVar[dict[str, Any]] = {"length": 12, "test_examples": 16}

  def check(self):
    """Raises ConfigError if a value is wrong."""
    super().check()
    self.lengths()

  def train_length(self) -> int:
    """The length of training."""
    return self.length or synthetic.TASKS[self.task].length

  def bound(self) -> synthetic.BoundTask:
    """The task with its options.

    Raises:
      ConfigError: if an option does not fit the task.
    """
    given = {"symbols": self.symbols, "items": self.items}
    options = {name: value for name, value in given.items() if value}
    try:
      return synthetic.TASKS[self.task].bind(self.train_length(), **options)
    except ValueError as error:
      raise ConfigError(
        f"--task={self.task}: {error}", "change that flag, or leave it out"
      ) from error

  def lengths(self) -> list[int]:
    """The lengths to test, ascending: that of training, and others.

    Raises:
      ConfigError: if they are no lengths that the task has.
    """
    bound, own = self.bound(), self.train_length()
    try:
      others = [int(part) for part in self.test_lengths.split(",") if part]
    except ValueError:
      others = [0]
    if not self.test_lengths:
      others = [2 * own, 4 * own]
    if min(others, default=own) < bound.least:
      raise ConfigError(
        f"--test_lengths={self.test_lengths} has what is no length of"
        f" {self.task}",
        f"use whole numbers of at least {bound.least}, such as"
        f" --test_lengths={own},{2 * own}",
      )
    return sorted({own, *others})


def make_model(config: Config, rngs: nnx.Rngs) -> models.Classifier:
  """Makes the model that the flags describe."""
  bound = config.bound()
  width = config.features if bound.vocab_size else bound.task.channels
  return models.Classifier(
    network.make_stack(config, width, rngs=rngs),
    bound.classes or 1,
    pooling=None,
    vocab_size=bound.vocab_size or None,
    dtype=jnp.dtype(config.dtype),
    rngs=rngs,
  )


def score(
  outputs: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Compares outputs [batch, time, O] with targets [batch, time].

  Returns:
    The loss and whether the target is right, both [batch, time] in float32, and
    the predicted class or value [batch, time].
  """
  if jnp.issubdtype(targets.dtype, jnp.floating):
    found = outputs[..., 0]
    error = found - targets
    return jnp.square(error), _float(jnp.abs(error) < TOLERANCE), found
  found = outputs.argmax(axis=-1).astype(targets.dtype)
  return losses.cross_entropy(outputs, targets), _float(found == targets), found


def measure(
  model: models.Classifier, batch: dict[str, jax.Array], key: jax.Array | None
) -> dict[str, Mean]:
  """The loss and the accuracy of a batch, over its scored targets."""
  outputs = model(batch["inputs"], key=key)
  loss, right, _ = score(outputs, batch["targets"])
  weights = batch["weights"]
  return {"cost": Mean.of(loss, weights), "accuracy": Mean.of(right, weights)}


def score_rows(
  model: models.Classifier, batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
  """The sums of loss, right targets and weights of each row, [batch]."""
  outputs = model(batch["inputs"])
  loss, right, _ = score(outputs, batch["targets"])
  weights = batch["weights"]
  return {
    "length": batch["length"],
    "loss": (loss * weights).sum(axis=1),
    "right": (right * weights).sum(axis=1),
    "weight": weights.sum(axis=1),
  }


def make_batches(config: Config) -> data.DrawnBatches | data.StagedBatches:
  """Makes the batches of training, a function of (seed, step)."""
  bound = config.bound()

  def of_length(length):
    rows = config.batch_size * (longest // length)
    draw = lambda rng: bound.draw(rng, rows, length)
    return data.DrawnBatches(draw, 3 * config.seed)

  longest = config.train_length()
  if not config.curriculum:
    return of_length(longest)
  shorter = {longest >> halvings for halvings in range(STAGES)}
  lengths = sorted({max(bound.least, length) for length in shorter})
  before = len(lengths) - 1
  ends = [config.steps // 2 * (i + 1) // before for i in range(before)]
  return data.StagedBatches([of_length(length) for length in lengths], ends)


def make_split(
  config: Config, seed: int, lengths: Sequence[int]
) -> list[dict[str, np.ndarray]]:
  """Draws the batches to score: `test_examples` sequences of each length."""
  bound, batches = config.bound(), []
  for length in lengths:
    rng = np.random.default_rng((seed, length))
    rows = bound.draw(rng, config.test_examples, length)
    rows["length"] = np.full(config.test_examples, length, np.int32)
    for begin in range(0, config.test_examples, config.batch_size):
      part = slice(begin, begin + config.batch_size)
      batches.append({name: array[part] for name, array in rows.items()})
  return batches


def describe(config: Config, split: str, scores: Any) -> dict[str, Any]:
  """The metrics of a split, at the length of training and at each length."""
  if split != "test":
    return {
      f"{split}_loss": scores.means["cost"],
      f"{split}_accuracy": scores.means["accuracy"],
    }
  rows = {name: np.array(values) for name, values in scores.predictions.items()}
  by_length = {}
  for length in config.lengths():
    loss, right, weight = (
      rows[name][rows["length"] == length].astype(np.float64)
      for name in ("loss", "right", "weight")
    )
    by_length[str(length)] = {
      "loss": loss.sum() / weight.sum(),
      "accuracy": right.sum() / weight.sum(),
      "all_right": (right == weight).mean(),
      "baseline_loss": config.bound().baseline(length),
    }
  own = by_length[str(config.train_length())]
  return {
    "task": config.task,
    "test_loss": own["loss"],
    "test_accuracy": own["accuracy"],
    "test_all_right": own["all_right"],
    "baseline_loss": own["baseline_loss"],
    "test_by_length": by_length,
  }


def make_task(config: Config) -> runner.Task:
  """Makes the `Task` of the runner: data, model, loss and evaluation."""
  config.check_device()
  return runner.Task(
    name=NAME,
    make_model=functools.partial(make_model, config),
    loss=loss_of(measure, "cost"),
    batches=make_batches(config),
    splits={
      "train": make_split(config, 3 * config.seed, [config.train_length()]),
      "valid": make_split(config, 3 * config.seed + 1, [config.train_length()]),
      "test": make_split(config, 3 * config.seed + 2, config.lengths()),
    },
    objective="valid_loss",
    units=("time steps", lambda batch: batch["weights"].size),
    predict=score_rows,
    describe=functools.partial(describe, config),
    report=functools.partial(report, config),
    next_command="experiments.evaluate",
  )


def report(
  config: Config, split: str, scores: Any, folder: Path, model: Any
) -> str:
  """Draws loss and accuracy against the length, as `lengths.png`."""
  del model
  if split != "test":
    return ""
  by_length = describe(config, split, scores)["test_by_length"]
  figures.lines(
    folder / "lengths.png",
    x=[int(length) for length in by_length],
    panels={
      "loss": {
        "test": [row["loss"] for row in by_length.values()],
        "without memory": [row["baseline_loss"] for row in by_length.values()],
      },
      "accuracy": {"test": [row["accuracy"] for row in by_length.values()]},
    },
    label=f"length of the test sequences ({config.task})",
    mark=("trained", config.train_length()),
  )
  return "\n".join(
    f"length {length}: loss {row['loss']:.4g}, without memory"
    f" {row['baseline_loss']:.4g}, accuracy {row['accuracy']:.4f}"
    for length, row in by_length.items()
  )


def predict(workdir: str, file: str) -> Iterator[dict[str, Any]]:
  """Predicts the targets of sequences at all time steps.

  Args:
    workdir: directory of the run.
    file: path of a .jsonl file with a list `inputs` a line, or of an .npz file
      with `inputs` [N, T] tokens or [N, T, channels] numbers, and maybe
      `lengths` [N].

  Yields:
    For each sequence, its `outputs`: the predicted class, or number, of each
    time step.

  Raises:
    UserError: if the workdir has no model, or the file has another format.
  """
  config = runner.read_config(workdir, NAME, Config)
  rows = read_inputs(file, config.bound())
  trained = runner.load_params(config, functools.partial(make_model, config))
  batches = data.EvalBatches([{"inputs": row} for row in rows], batch_size=64)
  found = runner.make_predictor(trained, predict_rows)(batches)
  for row, outputs in zip(rows, found["outputs"], strict=True):
    yield {"outputs": outputs[: len(row)].tolist()}


def predict_rows(
  model: models.Classifier, batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
  """The predicted class or number of each time step, [batch, time]."""
  outputs = model(batch["inputs"], mask=batch["mask"])
  numbers = outputs.shape[-1] == 1
  return {"outputs": outputs[..., 0] if numbers else outputs.argmax(axis=-1)}


def read_inputs(file: str, bound: synthetic.BoundTask) -> list[np.ndarray]:
  """Reads the inputs of a task from a .jsonl or .npz file.

  Args:
    file: path of the file; see `predict`.
    bound: the task.

  Returns:
    Sequences [time] of tokens, or [time, channels] of numbers.

  Raises:
    DataError: if a sequence is no input of the task; the message names the file
      and the line or row.
  """
  if file.lower().endswith(".npz"):
    found = labelled.read(file, labelled=False, flag="input")
    rows, place = found.inputs, found.place
  else:
    lines = records.read_records(file, ("inputs",), flag="input")
    rows = [record.values["inputs"] for record in lines]
    place = lambda i: f"{file}, line {lines[i].line}"
  vocab_size, channels = bound.vocab_size, bound.task.channels
  wanted = (
    f"give whole numbers from 0 to {vocab_size - 1}"
    if vocab_size
    else f"give {channels} finite numbers for each time step"
  )
  sequences = []
  for i, row in enumerate(rows):
    try:
      array = np.asarray(row)
    except ValueError:  # lists of several lengths
      array = np.empty(0)
    good = array.size > 0 and (
      array.ndim == 1
      and array.dtype.kind in "iu"
      and array.min() >= 0
      and array.max() < vocab_size
      if vocab_size
      else array.ndim == 2
      and array.shape[1] == channels
      and array.dtype.kind in "iuf"
      and bool(np.isfinite(array).all())
    )
    if not good:
      raise DataError(
        f"{place(i)}, inputs: this is no input of the task {bound.name}", wanted
      )
    sequences.append(array.astype(np.int32 if vocab_size else np.float32))
  return sequences


def _float(condition):
  return condition.astype(jnp.float32)


run = functools.partial(runner.train, make_task=make_task)


if __name__ == "__main__":
  runner.main(run, Config)
