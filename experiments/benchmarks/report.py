"""Makes rows, ratios, targets and tables from measured times.

A ratio is the time of another implementation over the time of ours: above 1,
ours is faster. It is the median over the repeats, in each of which both were
timed.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks import problems, timing
from experiments.benchmarks.implementations import IMPLEMENTATIONS
from experiments.benchmarks.problems import BACKWARD, FORWARD, Problem

Row = dict[str, Any]

TITLES = {"jax": "the best JAX peer", "torch": "torch"}


class Turns(NamedTuple):
  """The measurements of one implementation for one kind of work."""

  seconds: list[list[float]]  # of each call, by repeat
  first_call: float  # seconds; JAX compiles in it
  peak_bytes: int


class Comparison(NamedTuple):
  """The measurements of one problem, by implementation."""

  problem: Problem
  turns: dict[str, dict[str, Turns]]  # by work, then by implementation
  left_out: dict[str, str]  # why it does not compute this, as "it ..."
  refused: dict[str, str]  # why it was not timed, or not to the end
  about: dict[str, dict[str, Any]]  # further facts to report


def rows(measured: Comparison, peak_flops: float) -> list[Row]:
  """Makes one row per kind of work and implementation.

  Args:
    measured: the measurements of one problem.
    peak_flops: FLOP/s of a matrix product on this machine.
  """
  problem, found = measured.problem, []
  for work, turns in measured.turns.items():
    medians = {
      n: list(map(statistics.median, t.seconds)) for n, t in turns.items()
    }
    ours = medians.get("ours")
    for name, turn in turns.items():
      milliseconds = 1e3 * np.concatenate(turn.seconds)
      least, low, median, high = map(
        float, np.quantile(milliseconds, [0, 0.25, 0.5, 0.75])
      )
      flops = problem.flops(work) / (1e-3 * median)
      found.append(
        {
          "suite": problem.suite,
          "shape": problem.name,
          "batch": problem.batch,
          "features": problem.features,
          "work": work,
          "implementation": name,
          "side": IMPLEMENTATIONS[problem.suite][name].side,
          "median_ms": median,
          "min_ms": least,
          "quartiles_ms": [low, high],
          "us_per_time_step": 1e3 * median / problem.time,
          "gflops": flops / 1e9,
          "percent_of_peak": 100 * flops / peak_flops,
          "peak_mib": turn.peak_bytes / (1 << 20),
          "first_call_s": turn.first_call,
          "repeats": len(turn.seconds),
          "calls": len(milliseconds),
          "ratio": timing.ratio(medians[name], ours) if ours else None,
          **measured.about[name],
        }
      )
  return found


class Target(NamedTuple):
  """A ratio to reach; `measured` is None if no shape of it was measured."""

  name: str
  wanted: float  # the least ratio
  measured: float | None
  where: str  # the shapes, or the shape of the least ratio

  @property
  def met(self) -> bool | None:
    """Whether the target is reached; None if it was not measured."""
    return None if self.measured is None else self.measured >= self.wanted


def _mean(ratios):
  return statistics.geometric_mean(ratios.values()), f"{len(ratios)} shapes"


def _least(ratios):
  shape = min(ratios, key=ratios.__getitem__)
  return ratios[shape], shape


_JAX, _TORCH = (f"over {title}" for title in TITLES.values())
_ONE_ROW = {"batch": 1}
_GENERATION = "generation, one row of 256, over"
_SMALL = {"batch": 1, "features": 256}
# Name, wanted ratio, the function that reduces the ratios of all shapes to one,
# and the arguments of `against`.
TARGETS: tuple[tuple[str, float, Callable[..., Any], Any], ...] = (
  (f"{BACKWARD}, {_JAX}, mean", 1.3, _mean, ("cells", BACKWARD, "jax")),
  (f"{BACKWARD}, {_JAX}, least", 1.0, _least, ("cells", BACKWARD, "jax")),
  (f"{BACKWARD}, {_TORCH}, mean", 1.0, _mean, ("cells", BACKWARD, "torch")),
  (f"{BACKWARD}, {_TORCH}, least", 0.8, _least, ("cells", BACKWARD, "torch")),
  (
    f"{BACKWARD}, {_TORCH}, batch 1, mean",
    *(1.5, _mean, ("cells", BACKWARD, "torch", _ONE_ROW)),
  ),
  (f"{FORWARD}, {_TORCH}, mean", 1.0, _mean, ("cells", FORWARD, "torch")),
  (f"{FORWARD}, {_JAX}, mean", 1.3, _mean, ("cells", FORWARD, "jax")),
  (
    f"linear kernel, {BACKWARD}, over lax.associative_scan, least",
    *(3.0, _least, ("linear", BACKWARD, "associative")),
  ),
  (
    f"{_GENERATION} torch's loop of steps",
    *(5.0, _least, ("decode", "tokens", "torch", _SMALL)),
  ),
  (
    f"{_GENERATION} a compiled step a token",
    *(20.0, _least, ("decode", "tokens", "step", _SMALL)),
  ),
)


def targets(found: Sequence[Row]) -> list[Target]:
  """Computes all targets from the rows."""
  return [
    Target(name, wanted, *(reduce(ratios) if ratios else (None, "")))
    for name, wanted, reduce, which in TARGETS
    for ratios in [against(found, *which)]
  ]


def against(
  found: Iterable[Row], suite: str, work: str, who: str, only: Row | None = None
) -> dict[str, float]:
  """The ratio of each shape, of one implementation or the fastest of a side.

  Args:
    found: rows from `rows`.
    suite: suite of the shapes.
    work: kind of work.
    who: name of an implementation, or the side "jax" or "torch".
    only: further values that a row must have, by key.
  """
  wanted = {"suite": suite, "work": work, **(only or {})}
  best: dict[str, Row] = {}
  for row in found:
    if (
      all(row[key] == value for key, value in wanted.items())
      and who in (row["side"], row["implementation"])
      and row["ratio"] is not None
    ):
      fastest = best.setdefault(row["shape"], row)
      if row["median_ms"] < fastest["median_ms"]:
        best[row["shape"]] = row
  return {shape: row["ratio"] for shape, row in best.items()}


def table(columns: Iterable[str], lines: Iterable[Iterable[Any]]) -> str:
  """Formats a Markdown table; floats have four digits."""

  def show(value):
    if isinstance(value, list):
      return " - ".join(map(show, value))
    if isinstance(value, float):
      return f"{value:.4g}"
    return "-" if value is None else str(value)

  columns = list(columns)
  shown = [columns, ["---"] * len(columns)]
  shown += [list(map(show, line)) for line in lines]
  return "\n".join(f"| {' | '.join(line)} |" for line in shown)


_COLUMNS = {
  "work": "work",
  "implementation": "implementation",
  "median_ms": "median ms",
  "min_ms": "min",
  "quartiles_ms": "quartiles",
  "us_per_time_step": "us/time step",
  "gflops": "GFLOP/s",
  "percent_of_peak": "% peak",
  "peak_mib": "MiB",
  "first_call_s": "first s",
  "ratio": "times ours",
}


def show_rows(found: Iterable[Row]) -> str:
  """Formats the rows of one shape as a table."""
  lines = ([row[key] for key in _COLUMNS] for row in found)
  return table(_COLUMNS.values(), lines)


def show_ratios(found: Sequence[Row]) -> str:
  """Formats the ratios to the best JAX peer and to torch, by shape."""
  lines = []
  for suite, works in problems.WORKS.items():
    for work in works:
      by_side = [against(found, suite, work, side) for side in TITLES]
      for shape in dict.fromkeys(shape for side in by_side for shape in side):
        ratios = [side.get(shape) for side in by_side]
        slower = any(x is not None and x < 1 for x in ratios)
        shown = [x if x is None else f"{x:.2f}" for x in ratios]
        lines.append([shape, work, *shown, "SLOWER" if slower else "faster"])
  return table(["shape", "work", _JAX, _TORCH, "we are"], lines)


def show_targets(all_targets: Iterable[Target]) -> str:
  """Formats the targets as a table."""
  lines = []
  for name, wanted, measured, where in all_targets:
    shown, met = "-", "not measured"
    if measured is not None:
      shown = f"{measured:.2f} ({where})"
      met = "yes" if measured >= wanted else "no"
    lines.append([name, wanted, shown, met])
  return table(["target", "wanted", "measured", "met"], lines)
