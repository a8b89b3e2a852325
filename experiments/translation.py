r"""Trains a model that translates texts, one sentence a line.

  python -m experiments.translation --workdir=runs/dates
  python -m experiments.translation --workdir=runs/de \
    --train_files=train.de,train.en --valid_files=dev.de,dev.en \
    --test_files=test.de,test.en --tokenizer=sentencepiece

By default it learns to write dates of many languages in ISO 8601. Results are
the share of exact matches, and BLEU and chrF by sacrebleu.
"""

import dataclasses
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from experiments import runner, seq2seq
from recurrent.data import dates, parallel
from recurrent.errors import ConfigError
from recurrent.metrics import generation

NAME = "translation"
FILES = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True)
class Config(seq2seq.Seq2SeqConfig):
  """Flags of the translator; the defaults are a recipe for the dates.

  Args:
    dataset: dates, or a translation dataset of the TFDS catalogue that has been
      prepared, such as ted_hrlr_translate/pt_to_en.
    data_dir: directory in which the dataset was prepared; by default that of
      TFDS.
    train_files: two UTF-8 files, source and target, separated by a comma, of
      which equal lines are translations; instead of a dataset.
    valid_files: the same for the valid split.
    test_files: the same for the test split.
    max_length: longest source, in tokens. Longer pairs are left out of
      training, and longer sources are cut in scoring.
  """

  dataset: str = "dates"
  data_dir: str = ""
  train_files: str = ""
  valid_files: str = ""
  test_files: str = ""
  # Defaults that differ from those of the base classes.
  cell: str = "gru"
  features: int = 128
  steps: int = 2000
  batch_size: int = 64
  eval_every: int = 500
  learning_rate: float = 4e-3
  schedule: str = "cosine"
  warmup_steps: int = 100
  ema: float = 0.99

  NEEDS: typing.ClassVar[dict[str, tuple[str, Sequence[Any]]]] = {
    "dataset": ("train_files", ("",)),
    "data_dir": ("train_files", ("",)),
  }

  def check(self):
    """Raises ConfigError if a value is wrong."""
    super().check()
    given = [bool(getattr(self, f"{name}_files")) for name in FILES]
    if any(given) and not all(given):
      raise ConfigError(
        "--train_files, --valid_files and --test_files go together",
        "give all three, or none",
      )
    for name in FILES:
      if all(given):
        self.files(name)

  def files(self, split: str) -> list[str]:
    """The source and target files of a split."""
    value = getattr(self, f"{split}_files")
    paths = value.split(",")
    if len(paths) != 2 or not all(paths):
      raise ConfigError(
        f"--{split}_files={value} does not name two files",
        "give SOURCE,TARGET",
      )
    return paths


def load_pairs(config: Config) -> dict[str, parallel.Pairs]:
  """The pairs of "train", "valid" and "test"."""
  if config.train_files:
    return {name: parallel.read_parallel(*config.files(name)) for name in FILES}
  if config.dataset == "dates":
    return dates.load_dates(seed=0)
  return parallel.load_parallel(config.dataset, config.data_dir or None)


def make_task(config: Config) -> runner.Task:
  """Makes the `Task` of the runner: data, model, loss and evaluation."""
  config.check_device()
  generation.check_sacrebleu()  # It is needed after training only.
  pairs = load_pairs(config)

  def score(split: str, texts: Sequence[str]) -> dict[str, Any]:
    found = generation.translation(texts, pairs[split].targets)
    return {f"{split}_{name}": value for name, value in found.items()}

  return seq2seq.make_task(config, NAME, pairs, score)


def make_answer(
  workdir: str,
) -> Callable[[Sequence[str]], Iterator[dict[str, Any]]]:
  """Loads a trained translator; see `seq2seq.make_answer`."""
  return seq2seq.make_answer(workdir, NAME, Config)


def predict(workdir: str, file: str) -> Iterator[dict[str, Any]]:
  """Translates every line of a file; see `make_answer`."""
  return make_answer(workdir)(parallel.read_lines(file))


def run(config: Config) -> dict[str, Any]:
  """Trains; returns the final metrics."""
  return runner.train(config, make_task)


if __name__ == "__main__":
  runner.main(run, Config)
