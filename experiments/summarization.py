r"""Trains a model that summarises texts.

  python -m experiments.summarization --workdir=runs/docstrings
  python -m experiments.summarization --workdir=runs/news \
    --data_file=news.jsonl --max_length=400 --max_target_length=100

By default it reads the docstrings of the installed packages, and learns to
write their summary lines; packages of the test split are never seen in
training. Results are ROUGE-1, -2 and -L, beside those of the first sentence
(lead). docs/summarization.md has the formats of your own files.
"""

import dataclasses
import logging
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from experiments import runner, seq2seq
from recurrent.data import docstrings, parallel, splits
from recurrent.metrics import generation

LOG = logging.getLogger("recurrent")
NAME = "summarization"
COLUMNS = "document", "summary"


@dataclasses.dataclass(frozen=True)
class Config(seq2seq.Seq2SeqConfig):
  """Flags of summarization; the defaults are the recipe of the docstrings.

  Args:
    dataset: docstrings, or a dataset of the TFDS catalogue with texts and their
      summaries that has been prepared, such as gigaword, cnn_dailymail or
      aeslc.
    data_dir: directory in which the dataset was prepared; by default that of
      TFDS.
    data_file: path of a .jsonl file to train on, instead of a dataset.
    splits: shares of train, valid and test in percent. The splits that a file
      lacks are drawn from train, by a hash of each row.
  """

  dataset: str = "docstrings"
  data_dir: str = ""
  data_file: str = ""
  splits: str = "90,5,5"
  # Defaults that differ from those of the base classes.
  tokenizer: str = "sentencepiece"
  joint: bool = True
  copying: bool = True
  attention_features: int = 64
  output_dropout: float = 0.3
  embedding_dropout: float = 0.2
  length_penalty: float = 1.0
  min_tokens: int = 5
  no_repeat: int = 3
  cell: str = "gru"
  features: int = 192
  embedding_features: int = 128
  max_length: int = 64
  max_target_length: int = 30
  steps: int = 1800
  batch_size: int = 32
  eval_every: int = 600
  learning_rate: float = 3e-3
  schedule: str = "cosine"
  warmup_steps: int = 100
  ema: float = 0.99

  NEEDS: typing.ClassVar[dict[str, tuple[str, Sequence[Any]]]] = {
    "dataset": ("data_file", ("",)),
    "data_dir": ("data_file", ("",)),
  }

  def __post_init__(self):
    super().__post_init__()
    # Without attention there is no copying, unless it is asked for: an error.
    if not self.attends and "copying" not in self._given:
      object.__setattr__(self, "copying", False)

  def check(self):
    """Raises ConfigError if a value is wrong."""
    super().check()
    splits.parse_shares(self.splits)


def load_pairs(config: Config) -> dict[str, parallel.Pairs]:
  """The documents and summaries of "train", "valid" and "test"."""
  if config.data_file:
    shares = splits.parse_shares(config.splits)
    return parallel.read_pairs(config.data_file, COLUMNS, shares=shares)
  if config.dataset == "docstrings":
    return docstrings.load_docstrings()
  return parallel.load_parallel(config.dataset, config.data_dir or None)


def make_task(config: Config) -> runner.Task:
  """Makes the `Task` of the runner: data, model, loss and evaluation."""
  config.check_device()
  generation.check_rouge()  # It is needed after training only.
  pairs = load_pairs(config)

  def score(split: str, texts: Sequence[str]) -> dict[str, Any]:
    documents, wanted = pairs[split]
    lead = [generation.first_sentence(document) for document in documents]
    rows = {
      name: {
        **generation.rouge(found, wanted),
        "repeated": 100 * generation.repeated_share(found),
        "copied": 100 * generation.copied_share(found, documents),
      }
      for name, found in {
        "model": texts,
        "lead": lead,
        "reference": wanted,
      }.items()
    }
    LOG.info("%s", table(split, rows))
    scores = {f"{split}_{name}": x for name, x in rows["model"].items()}
    if split == "test":
      scores |= {f"lead_{x}": rows["lead"][x] for x in generation.ROUGES}
    return scores

  return seq2seq.make_task(config, NAME, pairs, score, cut=True)


def table(split: str, rows: dict[str, dict[str, float]]) -> str:
  """A table of the scores, one row for each way to summarise."""
  lines = [" ".join([f"{split:9}", *(f"{name:>8}" for name in rows["model"])])]
  for name, values in rows.items():
    numbers = (f"{value:8.2f}" for value in values.values())
    lines.append(" ".join([f"{name:9}", *numbers]))
  return "\n".join(lines)


def make_answer(
  workdir: str,
) -> Callable[[Sequence[str]], Iterator[dict[str, Any]]]:
  """Loads a trained model; see `seq2seq.make_answer`."""
  return seq2seq.make_answer(workdir, NAME, Config)


def predict(workdir: str, file: str) -> Iterator[dict[str, Any]]:
  """Summarises the documents of a .jsonl file, or each line of a text file."""
  return make_answer(workdir)(parallel.read_sources(file, COLUMNS[0]))


def run(config: Config) -> dict[str, Any]:
  """Trains; returns the final metrics."""
  return runner.train(config, make_task)


if __name__ == "__main__":
  runner.main(run, Config)
