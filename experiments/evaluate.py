"""Scores a trained model on a split of its data.

python -m experiments.evaluate --workdir=runs/pydoc --split=test
"""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

from experiments import config as config_lib
from experiments import language_model, runner
from recurrent import sharding


@dataclasses.dataclass(frozen=True)
class Config(config_lib.Checked):
  """Flags of evaluate.

  Args:
    split: train, valid or test.
  """

  split: str = "test"

  CHOICES: typing.ClassVar[dict[str, Sequence[str]]] = {
    "split": ("train", "valid", "test")
  }


def run(config: Config) -> dict[str, Any]:
  """Returns the metrics of the split."""
  trained = runner.read_config(
    config.workdir, language_model.NAME, language_model.Config
  )
  task = language_model.make_task(trained)
  graphdef, params, step = runner.load_params(trained, task.make_model)
  evaluate = task.make_evaluate(graphdef, sharding.make_mesh(1))
  found = evaluate(params, config.split, lambda: False)
  return {"step": step, "split": config.split, **(found or {})}


if __name__ == "__main__":
  runner.main(run, Config)
