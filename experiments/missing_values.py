r"""Trains forecasters on series with gaps, for a table of what the gaps cost.

  python -m experiments.missing_values --workdir=runs/missing

Every strategy of --missing is trained on the series as they are, and with more
values removed: at random, and in blocks. The test split is scored on all of its
values. Each entry of the table is a run of `experiments.forecasting` in its own
folder; the same command resumes, and finished runs are not repeated.
"""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

from experiments import forecasting, runner
from recurrent.data.missing import STRATEGIES
from recurrent.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Config(forecasting.Config):
  """Flags of the table, besides those of forecasting.

  Args:
    strategies: the strategies of --missing, separated by commas; by default
      all of them.
    shares: percentages of the values to remove, separated by commas.
    seeds: number of seeds, from --seed on; the table has the mean.
  """

  strategies: str = ",".join(STRATEGIES)
  shares: str = "0,10,30,50"
  seeds: int = 1
  segment: int = 1  # decay, and drop, read single time steps

  POSITIVE: typing.ClassVar[frozenset[str]] = frozenset(("seeds",))

  def check(self):
    """Raises ConfigError if a value is wrong."""
    super().check()
    for name in self.strategies.split(","):
      if name not in STRATEGIES:
        raise ConfigError(
          f"--strategies has {name!r}", f"use some of {', '.join(STRATEGIES)}"
        )
    _shares(self.shares)


def _shares(text: str) -> list[float]:
  try:
    return [float(part) for part in text.split(",")]
  except ValueError as error:
    raise ConfigError(
      f"--shares={text} is no list of percentages",
      "use numbers, such as --shares=0,10,30,50",
    ) from error


def run(config: Config) -> dict[str, Any]:
  """Trains what is not trained yet; returns the errors by strategy and gaps."""
  config.check()
  flags = {
    field.name: getattr(config, field.name)
    for field in dataclasses.fields(forecasting.Config)
  }
  gaps = [
    (
      f"{share:g}{' in blocks' if blocks else ' at random'}" if share else "0",
      share,
      blocks,
    )
    for share in _shares(config.shares)
    for blocks in ((False, True) if share else (False,))
  ]
  table: dict[str, dict[str, float]] = {}
  for strategy in config.strategies.split(","):
    table[strategy] = {}
    for name, share, blocks in gaps:
      found = []
      for seed in range(config.seed, config.seed + config.seeds):
        place = f"{strategy}/{name.replace(' ', '_')}/{seed}"
        changes = {
          "workdir": f"{config.workdir}/{place}",
          "missing": strategy,
          "remove": share,
          "remove_blocks": blocks,
          "seed": seed,
        }
        entry = forecasting.Config(**{**flags, **changes})
        found.append(forecasting.run(entry)["test_mae"])
      table[strategy][name] = sum(found) / len(found)
  _show(table, [name for name, _, _ in gaps])
  return {"test_mae": table}


def _show(table: dict[str, dict[str, float]], columns: Sequence[str]) -> None:
  """Logs the table of test MAE, with a row for each strategy."""
  lines = ["test MAE".ljust(12) + "".join(f"{name:>15}" for name in columns)]
  for strategy, row in table.items():
    cells = "".join(f"{row[name]:15.4g}" for name in columns)
    lines.append(strategy.ljust(12) + cells)
  runner.LOG.info("\n".join(lines))


if __name__ == "__main__":
  runner.main(run, Config)
