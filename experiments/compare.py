"""Trains one experiment with many settings, and puts the results in a table.

  python -m experiments.compare --params=250000 --steps=600
  python -m experiments.compare --workdir=runs/cells --experiment=memory \
    --grid="task=parity,s5;cell=lstm,lru,transformer" -- --batch_size=64

The first command trains every cell as a language model of the same size. The
second trains every task with every cell; what follows `--` are flags of every
run. Each run has a workdir of its own within --workdir, so the same command
resumes, and does not repeat what is finished. The table shows all runs of
--workdir, so that commands with other settings can add to it: `table.md` and
`table.json`, which are written anew after each run. The last line of the output
is JSON.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import itertools
import json
import logging
import re
import shlex
import tempfile
import time
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from experiments import config as config_lib
from experiments import network, runner
from recurrent import cells, files
from recurrent.errors import ConfigError, Preempted, UserError
from recurrent.training import workdir as workdir_lib

LOG = logging.getLogger("recurrent")

WIDTH = 8  # widths are multiples of it, which divide into heads
WIDEST = 4096
TABLE = "table.json"


@dataclasses.dataclass(frozen=True)
class Config(config_lib.Checked):
  """Flags of the comparison.

  Args:
    workdir: directory of the runs; empty: one that is removed at the end.
    experiment: name of the experiment, such as language_model or memory.
    cells: names of cells, separated by commas, as --grid="cell=..."; empty: all
      cells whose inputs are vectors, unless --grid names others.
    grid: flags and their values, such as "task=copy,parity;seed=0,1": there is
      a run for each combination. A value may bring further flags along, as in
      "cell=gru,transformer+heads=2+context=64".
    params: largest number of parameters of a model; the width of its layers is
      chosen accordingly. 0: the widths that the flags give.
    steps: training steps of each run.
    flags: further flags of each run, as on a command line; in place of this
      flag, they may follow --.
  """

  experiment: str = "language_model"
  cells: str = ""
  grid: str = ""
  params: int = 250_000
  steps: int = 600
  flags: str = ""

  NEEDS_WORKDIR: typing.ClassVar[bool] = False
  POSITIVE: typing.ClassVar[frozenset[str]] = frozenset(("steps",))
  REST: typing.ClassVar[str] = "flags"

  def check(self):
    """Raises ConfigError if a value is wrong."""
    super().check()
    values = self.values()
    known = (*cells.vector_cells(), network.TRANSFORMER)
    for value in values["cell"]:
      name = value.partition("+")[0]
      if name == network.TRANSFORMER:
        continue
      try:
        cells.get(name)
      except ValueError as error:
        raise ConfigError(f"--cells: {error}", "mend the name") from error
      if name not in known:
        raise ConfigError(
          f"--cells: {name} takes no vectors, as a network's must",
          f"use some of {', '.join(known)}",
        )
    if self.params and "features" in values:
      raise ConfigError(
        f"--params={self.params} chooses the features that --grid lists",
        "add --params=0",
      )

  def values(self) -> dict[str, list[str]]:
    """The values of each flag to compare.

    Raises:
      ConfigError: if the grid cannot be read.
    """
    found: dict[str, list[str]] = {}
    for part in filter(None, self.grid.split(";")):
      name, _, values = part.strip().partition("=")
      if not values or name in found:
        raise ConfigError(
          f"--grid={self.grid}: {part.strip()!r} is not a flag and its values",
          'write each flag once, such as --grid="task=copy,parity;seed=0,1"',
        )
      found[name] = [value.strip() for value in values.split(",")]
    if self.cells and "cell" in found:
      raise ConfigError("--cells and --grid both name cells", "use one of them")
    named = self.cells.split(",") if self.cells else cells.vector_cells()
    found.setdefault("cell", list(named))
    return found

  def runs(self, workdir: str) -> dict[str, Any]:
    """The configuration of each run, by the name of its directory.

    Raises:
      ConfigError: if there is no such experiment, or a flag of a run is wrong.
    """
    cls = _import(self.experiment).Config
    found, values = {}, self.values()
    for chosen in itertools.product(*values.values()):
      pairs = dict(zip(values, chosen, strict=True))
      name = ",".join(f"{key}={value}" for key, value in pairs.items())
      argv = [
        self.experiment,
        f"--workdir={Path(workdir) / name.replace('/', '_')}",
        f"--steps={self.steps}",
        f"--eval_every={self.steps}",
        *shlex.split(self.flags),
        *(
          f"--{flag}"
          for key, value in pairs.items()
          for flag in re.split(r"\+(?=\w+=)", f"{key}={value}")
        ),
      ]
      found[name] = config_lib.parse(cls, argv)
    return found


def run(config: Config) -> dict[str, Any]:
  """Makes the runs that are missing; returns the table as a dict.

  Raises:
    UserError: if a flag is wrong, or a run was told to stop. A run that fails
      otherwise is noted in the table.
  """
  config.check()
  with _directory(config.workdir) as folder:
    runs = config.runs(folder)
    module = _import(config.experiment)
    table = _Table(Path(folder))
    for name, settings in runs.items():
      LOG.info("--- %s", name)
      begun, failure = time.perf_counter(), ""
      try:
        if config.params:
          settings = fit_width(module, settings, config.params)
        module.run(settings)
      except (Preempted, ConfigError):
        raise
      except UserError as error:
        LOG.warning("%s", error)
        failure = error.cause
      table.write(name, time.perf_counter() - begun, failure)
    print(table.markdown())
    return {"steps": config.steps, "runs": table.summary()}


def _import(name: str) -> Any:
  """Imports `experiments.NAME`, which must have a `make_task`.

  Raises:
    ConfigError: if there is no such module, or it has no `make_task`.
  """
  path = f"experiments.{name}"
  module = importlib.util.find_spec(path) and importlib.import_module(path)
  if not hasattr(module, "make_task"):
    raise ConfigError(
      f"--experiment={name} is no experiment",
      "use the name of one, such as language_model or memory",
    )
  return module


@contextlib.contextmanager
def _directory(workdir: str) -> Iterator[str]:
  """The directory of the runs, which is temporary if none is given."""
  if workdir:
    yield workdir
    return
  with tempfile.TemporaryDirectory() as folder:
    yield folder


def fit_width(module: Any, settings: Any, params: int) -> Any:
  """Sets `features` to the largest width of at most `params` parameters.

  Args:
    module: the experiment.
    settings: its configuration.
    params: largest number of parameters of the whole model.

  Returns:
    The configuration with that width, a multiple of 8 and of twice the heads of
    a transformer, and at least the smallest such.
  """
  unit = WIDTH
  if settings.cell == network.TRANSFORMER:
    unit = max(WIDTH, 2 * settings.heads)

  def size(units):
    wide = dataclasses.replace(settings, features=unit * units)
    task = module.make_task(wide)
    model = nnx.eval_shape(lambda: task.make_model(nnx.Rngs(0)))
    return sum(
      leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))
    )

  low, high = 1, WIDEST // unit
  while low < high:
    middle = (low + high + 1) // 2
    low, high = (middle, high) if size(middle) <= params else (low, middle - 1)
  return dataclasses.replace(settings, features=unit * low)


class _Table:
  """The results of all runs of a directory."""

  def __init__(self, folder: Path):
    self.folder = folder
    try:
      self.rows = json.loads((folder / TABLE).read_text())
    except (OSError, ValueError):
      self.rows = {}

  def write(self, name: str, seconds: float, failure: str) -> None:
    """Adds a run, and writes `table.md` and `table.json`."""
    path = self.folder / name.replace("/", "_")
    found = workdir_lib.read_config(path) or {"config": {}}
    result = runner.read_result(path) or {}
    old = self.rows.get(name, {})
    # A run that was finished before took no time now.
    seconds = old.get("seconds", seconds) if old.get("result") else seconds
    self.rows[name] = {
      "config": found["config"],
      "result": result,
      "seconds": round(seconds, 1),
      **({"failure": failure} if failure else {}),
    }
    text = json.dumps(self.rows, indent=1)
    for file, contents in ((TABLE, text), ("table.md", self.markdown())):
      files.write_text(self.folder / file, contents + "\n")

  def summary(self) -> dict[str, dict[str, Any]]:
    """The width, the final metrics and the seconds of each run."""
    return {
      name: {
        "features": row["config"].get("features"),
        **{k: v for k, v in row["result"].items() if not isinstance(v, dict)},
        **{k: row[k] for k in ("seconds", "failure") if k in row},
      }
      for name, row in self.rows.items()
    }

  def markdown(self) -> str:
    """The rows in groups of the same settings but the cell, best cell first."""
    rows = list(self.rows.values())
    settings = _differing([row["config"] for row in rows])
    groups = [key for key in settings if key not in ("cell", "features")]
    metrics = _numbers([row["result"] for row in rows])
    objective = next((key for key in metrics if key.startswith("valid_")), "")
    worst = float("inf")
    rows.sort(
      key=lambda row: (
        [str(row["config"].get(key)) for key in groups],
        row["result"].get(objective, worst) or worst,
      )
    )
    names = [*groups, "cell", "features", "params", *metrics, "seconds"]
    names += ["failure"] * any("failure" in row for row in rows)
    lines = [names, ["---"] * len(names)]
    for row in rows:
      every = {**row["config"], **row["result"], **row}
      lines.append([_show(every.get(name)) for name in names])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _differing(configs: Sequence[dict[str, Any]]) -> list[str]:
  """The names of settings whose values differ, in the order of the flags."""
  names = list(dict.fromkeys(name for config in configs for name in config))
  return [
    name
    for name in names
    if len({json.dumps(config.get(name)) for config in configs if config}) > 1
  ]


def _numbers(results: Sequence[dict[str, Any]]) -> list[str]:
  """The names of metrics that are single numbers, and no counts of steps."""
  names = dict.fromkeys(name for result in results for name in result)
  parts = ("valid_", "test_", "baseline_")
  return [
    name
    for name in names
    if name.startswith(parts)
    and all(isinstance(r.get(name, 0), int | float | None) for r in results)
  ]


def _show(value: Any) -> str:
  if isinstance(value, float):
    return f"{value:.4g}"
  if isinstance(value, int) and not isinstance(value, bool):
    return f"{value:,}"
  return "" if value is None else str(value)


if __name__ == "__main__":
  runner.main(run, Config)
