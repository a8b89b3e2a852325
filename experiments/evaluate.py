"""Scores a trained model on a split of its data.

python -m experiments.evaluate --workdir=runs/pydoc --dynamic=3e-4
python -m experiments.evaluate --workdir=runs/pydoc --weights=int8
"""

import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import config as config_lib
from experiments import runner
from recurrent import decoding, sharding
from recurrent.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Config(config_lib.Checked):
  """Flags of the evaluation.

  Args:
    split: split to score: train, valid or test.
    dynamic: learning rate of dynamic evaluation, which trains on each window
      after scoring it; 3e-4 is a good first value; 0: no dynamic evaluation.
    dynamic_decay: with --dynamic, the fraction by which the parameters decay
      towards the trained ones after each window.
    weights: dtype of the weight matrices: float32, bfloat16 or int8. The last
      two score with the same step as `generate` with --weights.
  """

  split: str = "test"
  dynamic: float = 0.0
  dynamic_decay: float = 0.002
  weights: str = "float32"

  CHOICES: typing.ClassVar[dict[str, Sequence[str]]] = {
    "split": ("train", "valid", "test"),
    "weights": decoding.DTYPES,
  }

  def check(self):
    """Raises ConfigError if a value is wrong."""
    super().check()
    if not self.dynamic and self.dynamic_decay != Config.dynamic_decay:
      raise ConfigError(
        "--dynamic_decay does nothing without --dynamic",
        "add --dynamic=3e-4, or leave --dynamic_decay out",
      )
    if self.dynamic and self.weights != "float32":
      raise ConfigError(
        f"--dynamic: {self.weights} weights cannot learn",
        "leave --dynamic or --weights out",
      )


def run(config: Config) -> dict[str, Any]:
  """Scores the split and returns its metrics."""
  config.check()
  experiment = runner.find_experiment(config.workdir)
  name = experiment.__name__.rpartition(".")[-1]
  trained = runner.read_config(config.workdir, name, experiment.Config)
  task = experiment.make_task(trained)
  if config.dynamic and "dynamic" not in task.modes:
    raise ConfigError(
      f"--dynamic: {task.name} is not meant to learn while it is scored",
      "leave --dynamic out",
    )
  narrow = config.weights != "float32"
  if narrow and "packed" not in task.modes:
    raise ConfigError(
      f"--weights={config.weights}: {task.name} decodes nothing",
      "leave --weights out",
    )
  graphdef, params, step = runner.load_params(trained, task.make_model)
  if config.dynamic:
    found = task.modes["dynamic"](
      graphdef, params, config.split, config.dynamic, config.dynamic_decay
    )
  elif narrow:
    found = task.modes["packed"](graphdef, params, config.split, config.weights)
  else:
    evaluate = runner.make_evaluate(task, graphdef, sharding.make_mesh(1))
    figures = Path(config.workdir) / "figures"
    found = evaluate(params, config.split, lambda: False, figures)
  return {"step": step, "split": config.split, **found}


if __name__ == "__main__":
  runner.main(run, Config)
