"""From turns to rows, from rows to ratios and targets, and to tables.

A ratio is how many times longer another takes than ours: above 1, we win. It
is the median over rounds, in each of which both had a turn.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks import implementations as contestants
from experiments.benchmarks import problems
from experiments.benchmarks.problems import BACKWARD, FORWARD
from experiments.benchmarks.comparison import Contest

Row = dict[str, Any]

TITLES = {"jax": "the best JAX peer", "torch": "torch"}


def rows(contest: Contest, peak_flops: float) -> list[Row]:
  """One row a work and contestant.

  Args:
    contest: what was measured of one problem.
    peak_flops: FLOP/s of a matrix product on this machine.
  """
  problem, found = contest.problem, []
  for work, turns in contest.turns.items():
    ours = turns.get("ours")
    for name, turn in turns.items():
      calls = np.concatenate(turn.seconds)
      median = float(np.median(calls))
      flops = problem.flops(work) / median
      low, high = np.quantile(calls, [0.25, 0.75])
      found.append(
        {
          "suite": problem.suite,
          "shape": problem.name,
          "batch": problem.batch,
          "features": problem.features,
          "work": work,
          "contestant": name,
          "side": contestants.CONTESTANTS[problem.suite][name].side,
          "median_ms": 1e3 * median,
          "min_ms": 1e3 * float(calls.min()),
          "quartiles_ms": [1e3 * float(low), 1e3 * float(high)],
          "us_per_tick": 1e6 * median / problem.time,
          "gflops": flops / 1e9,
          "percent_of_peak": 100 * flops / peak_flops,
          "peak_mib": turn.peak_bytes / (1 << 20),
          "first_call_s": turn.first_call,
          "rounds": len(turn.seconds),
          "calls": len(calls),
          "ratio": _ratio(turn.seconds, ours.seconds) if ours else None,
          **contest.about[name],
        }
      )
  return found


def _ratio(theirs, ours):
  """Median over rounds of the medians' ratio."""
  pairs = zip(theirs, ours, strict=True)
  return statistics.median(
    statistics.median(a) / statistics.median(b) for a, b in pairs
  )


class Target(NamedTuple):
  """Something to reach, and what was measured of it.

  Attributes:
    name: what is compared.
    wanted: the least ratio.
    measured: the ratio; None where nothing of it was measured.
    where: the shapes, or the shape of the least ratio.
  """

  name: str
  wanted: float
  measured: float | None
  where: str

  @property
  def met(self) -> bool | None:
    """Whether it is reached; None where nothing of it was measured."""
    return None if self.measured is None else self.measured >= self.wanted


def targets(found: Sequence[Row]) -> list[Target]:
  """All targets, computed from the rows."""

  def cells(work, who, keep=lambda row: True):
    return against(found, "cells", work, who, keep)

  one = lambda row: row["batch"] == 1
  small = lambda row: row["batch"] == 1 and row["features"] == 256
  jax, torch = f"over {TITLES['jax']}", f"over {TITLES['torch']}"
  return [
    _mean(f"{BACKWARD}, {jax}, mean", 1.3, cells(BACKWARD, "jax")),
    _least(f"{BACKWARD}, {jax}, least", 1.0, cells(BACKWARD, "jax")),
    _mean(f"{BACKWARD}, {torch}, mean", 1.0, cells(BACKWARD, "torch")),
    _least(f"{BACKWARD}, {torch}, least", 0.8, cells(BACKWARD, "torch")),
    _mean(
      f"{BACKWARD}, {torch}, batch 1, mean",
      1.5,
      cells(BACKWARD, "torch", one),
    ),
    _mean(f"{FORWARD}, {torch}, mean", 1.0, cells(FORWARD, "torch")),
    _mean(f"{FORWARD}, {jax}, mean", 1.3, cells(FORWARD, "jax")),
    _least(
      f"linear kernel, {BACKWARD}, over lax.associative_scan, least",
      3.0,
      against(found, "linear", BACKWARD, "associative"),
    ),
    _least(
      "generation, one row of 256, over torch's loop of steps",
      5.0,
      against(found, "decode", "tokens", "torch", small),
    ),
    _least(
      "generation, one row of 256, over a compiled step a token",
      20.0,
      against(found, "decode", "tokens", "step", small),
    ),
  ]


def against(
  found: Iterable[Row],
  suite: str,
  work: str,
  who: str,
  keep: Callable[[Row], bool] = lambda row: True,
) -> dict[str, float]:
  """By shape, the ratio of a contestant, or of the fastest of a side.

  Args:
    found: rows.
    suite: whose shapes.
    work: which.
    who: a contestant, or "jax" or "torch".
    keep: which rows to look at.
  """
  best: dict[str, Row] = {}
  for row in found:
    if (row["suite"], row["work"]) != (suite, work):
      continue
    if who not in (row["side"], row["contestant"]):
      continue
    if row["ratio"] is None or not keep(row):
      continue
    fastest = best.setdefault(row["shape"], row)
    if row["median_ms"] < fastest["median_ms"]:
      best[row["shape"]] = row
  return {shape: row["ratio"] for shape, row in best.items()}


def _mean(name, wanted, ratios):
  if not ratios:
    return Target(name, wanted, None, "")
  mean = statistics.geometric_mean(ratios.values())
  return Target(name, wanted, mean, f"{len(ratios)} shapes")


def _least(name, wanted, ratios):
  if not ratios:
    return Target(name, wanted, None, "")
  shape = min(ratios, key=ratios.__getitem__)
  return Target(name, wanted, ratios[shape], shape)


def show_rows(found: Iterable[Row]) -> str:
  """The rows of one shape as a table."""
  line = "{:17}{:13}{:>10}{:>10}{:>20}{:>10}{:>9}{:>8}{:>7}{:>9}{:>9}".format
  lines = [
    line(
      "work",
      "contestant",
      "median ms",
      "min",
      "quartiles",
      "us/tick",
      "GFLOP/s",
      "% peak",
      "MiB",
      "first s",
      "ours is",
    )
  ]
  for row in found:
    low, high = row["quartiles_ms"]
    ratio = row["ratio"]
    lines.append(
      line(
        row["work"],
        row["contestant"],
        f"{row['median_ms']:.4g}",
        f"{row['min_ms']:.4g}",
        f"{low:.4g} - {high:.4g}",
        f"{row['us_per_tick']:.4g}",
        f"{row['gflops']:.3g}",
        f"{row['percent_of_peak']:.3g}",
        f"{row['peak_mib']:.0f}",
        f"{row['first_call_s']:.2g}",
        "" if ratio is None else f"{ratio:.2f}x",
      )
    )
  return "\n".join(lines)


def show_ratios(found: Sequence[Row]) -> str:
  """By shape, ours against the best JAX peer and torch; losses are marked."""
  lines = [
    f"| shape | work | {' | '.join(f'over {t}' for t in TITLES.values())} |"
    " we are |",
    "|---|---|---|---|---|",
  ]
  for suite, works in problems.WORKS.items():
    for work in works:
      by_side = [against(found, suite, work, side) for side in TITLES]
      for shape in dict.fromkeys(shape for side in by_side for shape in side):
        ratios = [side.get(shape) for side in by_side]
        shown = ["-" if x is None else f"{x:.2f}" for x in ratios]
        slower = any(x is not None and x < 1 for x in ratios)
        lines.append(
          f"| {shape} | {work} | {' | '.join(shown)} |"
          f" {'SLOWER' if slower else 'faster'} |"
        )
  return "\n".join(lines)


def show_targets(all_targets: Iterable[Target]) -> str:
  """The targets as a table."""
  lines = ["| target | wanted | measured | met |", "|---|---|---|---|"]
  for target in all_targets:
    measured = "-"
    if target.measured is not None:
      measured = f"{target.measured:.2f} ({target.where})"
    met = {None: "not measured", True: "yes", False: "no"}[target.met]
    lines.append(f"| {target.name} | {target.wanted:g} | {measured} | {met} |")
  return "\n".join(lines)
