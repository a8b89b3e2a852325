"""Measures this machine: implementations in turn, medians and ratios.

  python -m experiments.benchmark
  python -m experiments.benchmark --peers=ours,torch --suite=cells
  python -m experiments.benchmark --suite=cells --shapes='gru:4,100,64,64;...'
  python -m experiments.benchmark --suite=loop,generation
  python -m experiments.benchmark --suite=scaling

Against peers, each in its own process, its values compared before it is timed
(`pip install -e '.[peers]'` has them; what is missing is named and left out):

cells: layers of LSTM, GRU, RNN: forward, forward and backward, train step.
linear: the linear recurrence by our kernel, `associative_scan`, `scan`.
newton: all time steps at once, against loops.
decode: sampling from a language model, tokens handed to the host; with narrow
  weights ("ours:int8") it is another function, so the part of the likeliest
  tokens that are those of float32 is printed instead of asked for.

Within this process:

loop: training throughput against the bare compiled step on one batch.
generation: decoding on the device against one compiled call a token, with the
  choice of the token in it, and against a compiled step and a choice outside.
methods: every cell by every method of ours that runs it.
scaling: time, memory and compilation against sizes and devices, with fitted
  exponents (`experiments.benchmarks.scaling`); a plot of its own.

Prints tables; writes benchmark.json, benchmark.png and scaling.png to the
workdir.
"""

import dataclasses
import importlib
import json
import logging
import sys
import typing
from pathlib import Path
from typing import Any

from experiments import config as config_lib
from experiments.benchmarks import (
  comparison,
  implementations,
  plots,
  problems,
  timing,
)
from recurrent.errors import ConfigError, UserError, WorkdirError

LOG = logging.getLogger("recurrent")


@dataclasses.dataclass(frozen=True)
class Config(config_lib.Checked):
  """Flags of benchmark.

  Args:
    workdir: directory of benchmark.json and of the plots.
    suite: what to measure, separated by commas: cells, linear, newton, decode,
      loop, generation, methods, scaling.
    peers: implementations of the first four suites, separated by commas; empty:
      all.
    shapes: of the first four suites: "default", "all" (hours on a small CPU),
      or names and B,T,D,H, separated by semicolons.
    dtype: what they compute in: float32 or bfloat16.
    seconds: what the turns of all implementations on one shape and work may
      take, in the first four suites and methods; there are 3 repeats even so.
    threads: of each process in the first four suites; 0: all processors.
    repeats: turns of each implementation, at most.
    steps: training steps a turn, in the suite loop.
    tokens: tokens a turn, in the suite generation.
    features: width of the model in the suite generation.
    rounds: what repeats was called before.
  """

  workdir: str = "runs/benchmark"
  suite: str = "cells,linear,newton,decode"
  peers: str = ""
  shapes: str = "default"
  dtype: str = "float32"
  seconds: float = 5.0
  threads: int = 0
  repeats: int = 7
  steps: int = 40
  tokens: int = 1024
  features: int = 256
  rounds: int = 0

  POSITIVE: typing.ClassVar[frozenset[str]] = frozenset(
    "repeats steps tokens features".split()
  )
  CHOICES: typing.ClassVar[dict[str, typing.Sequence[str]]] = {
    "dtype": tuple(comparison.TOLERANCES)
  }

  def check(self) -> None:
    """Raises ConfigError at the first value that cannot be meant."""
    super().check()
    if self.rounds:
      raise ConfigError("--rounds has a new name", "use --repeats")

  def suites(self) -> list[str]:
    """The suites to run.

    Raises:
      ConfigError: if one is unknown.
    """
    suites = self.suite.split(",")
    known = [*problems.WORKS, *SUITES]
    for name in suites:
      if name not in known:
        raise ConfigError(
          f"--suite={name} is unknown", f"use some of {', '.join(known)}"
        )
    return suites


# Module and function of the suites in this process, which load when they run.
SUITES = {
  "loop": ("throughput", "measure_loop"),
  "generation": ("throughput", "measure_generation"),
  "methods": ("methods", "measure"),
  "scaling": ("scaling", "measure"),
}


def run(config: Config) -> dict[str, Any]:
  """Runs the suites; returns their ratios."""
  suites = config.suites()
  against_peers = [name for name in suites if name in problems.WORKS]
  chosen = problems.choose(config.shapes, against_peers)
  names = implementations.choose(config.peers, against_peers)
  workdir = Path(config.workdir)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise WorkdirError(
      f"--workdir={workdir} cannot be made: {error.strerror}",
      "name a directory that can be written to",
    ) from error
  machine = timing.machine()
  results: dict[str, Any] = {
    "command": ["python", "-m", "experiments.benchmark", *sys.argv[1:]],
    "machine": machine,
  }
  if against_peers:
    results |= comparison.measure(config, chosen, names, machine)
  for name in suites:
    if name in SUITES:
      module, function = SUITES[name]
      suite = importlib.import_module(f"experiments.benchmarks.{module}")
      results[name] = getattr(suite, function)(config, machine)
  path = workdir / "benchmark.json"
  path.write_text(json.dumps(results, indent=1) + "\n")
  LOG.info("Written to %s.", path)
  if results.get("rows"):
    about = f"{machine['threads']} threads, {machine['platform']}"
    heading = plots.title(machine, f"{about}, {config.dtype}")
    plots.medians(results["rows"], heading, workdir / "benchmark.png")
  for shape, refused in results.get("refused", {}).items():
    name, reason = next(iter(refused.items()))
    raise UserError(
      f"{name} was refused on {shape}: {reason}",
      f"{path} has the rest, without what was refused; mend the implementation",
    )
  long = ("rows", "command", "methods")
  brief = {k: v for k, v in results.items() if k not in long}
  if "scaling" in brief:
    brief["scaling"] = brief["scaling"]["exponents"]
  return brief


if __name__ == "__main__":
  from experiments import runner  # it loads what training needs

  runner.main(run, Config)
