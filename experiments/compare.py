"""Trains every cell on the same text, with equal numbers of parameters.

  python -m experiments.compare --params=250000 --steps=600

It prints a table, best cell first; the last line of its output is JSON.
"""

import dataclasses
import tempfile
import time
import typing
from typing import Any

from experiments import config as config_lib
from experiments import language_model, runner
from recurrent import cells, data
from recurrent.data import tokenizers
from recurrent.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Config(config_lib.Checked):
  """Flags of the comparison.

  Args:
    cells: names of cells, separated by commas; empty: all cells whose inputs
      are vectors.
    params: largest number of parameters of a model, embedding and output layer
      included.
    steps: training steps of each model.
    learning_rate: peak learning rate of each model.
    dataset: dataset to train on: pydoc, stdlib, or a prepared TFDS text.
    seed: seed of each model and its training.
  """

  cells: str = ""
  params: int = 250_000
  steps: int = 600
  learning_rate: float = 5e-3
  dataset: str = "pydoc"
  seed: int = 0

  NEEDS_WORKDIR: typing.ClassVar[bool] = False
  POSITIVE: typing.ClassVar[frozenset[str]] = frozenset(("params", "steps"))

  def names(self) -> list[str]:
    """The cells to compare.

    Raises:
      ConfigError: if a name is unknown, or the inputs of its cell are not
        vectors.
    """
    known = cells.vector_cells()
    names = self.cells.split(",") if self.cells else list(known)
    for name in names:
      try:
        cells.get(name)
      except ValueError as error:
        raise ConfigError(f"--cells: {error}", "mend the name") from error
      if name not in known:
        raise ConfigError(
          f"--cells: {name} takes no vectors, as a language model's must",
          f"use some of {', '.join(known)}",
        )
    return names


def run(config: Config) -> dict[str, Any]:
  """Trains the cells; returns valid_bpc, width and seconds of each."""
  config.check()
  names = config.names()
  rows = {name: _train(config, name) for name in names}
  print("| cell | width | parameters | valid bpc | seconds |")
  print("|---|---|---|---|---|")
  for name, row in sorted(rows.items(), key=lambda item: item[1]["valid_bpc"]):
    print(
      f"| `{name}` | {row['features']} | {row['params']:,} |"
      f" {row['valid_bpc']:.3f} | {row['seconds']:.0f} |"
    )
  return {"steps": config.steps, "cells": rows}


def _train(config, name):
  embedding = language_model.Config.embedding_features
  text = data.load_text(config.dataset).train
  vocab_size = tokenizers.build("char", text).vocab_size
  features = cells.parameter_budget(
    cells.get(name),
    embedding,
    config.params - vocab_size * embedding,
    outputs=vocab_size,
  )
  # A multiple of 8, which divides into heads and fills vector registers.
  features = max(8, features // 8 * 8)
  with tempfile.TemporaryDirectory() as workdir:
    begun = time.perf_counter()
    result = language_model.run(
      language_model.Config(
        workdir=workdir,
        dataset=config.dataset,
        cell=name,
        features=features,
        steps=config.steps,
        eval_every=config.steps,
        learning_rate=config.learning_rate,
        seed=config.seed,
      )
    )
  return {
    "features": features,
    "params": result["params"],
    "valid_bpc": result["valid_bpc"],
    "seconds": time.perf_counter() - begun,
  }


if __name__ == "__main__":
  runner.main(run, Config)
