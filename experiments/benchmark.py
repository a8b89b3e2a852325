"""Benchmarks this library on this machine, alone and against other libraries.

  python -m experiments.benchmark
  python -m experiments.benchmark --peers=ours,torch --suite=cells
  python -m experiments.benchmark --suite=cells --shapes='gru:4,100,64,64;...'
  python -m experiments.benchmark --suite=loop,generation
  python -m experiments.benchmark --suite=scaling
  python -m experiments.benchmark --suite=accelerator --minutes=8

Implementations take turns, and results are medians and ratios.

The following suites compare this library with others. Each implementation runs
in its own process, and its values are checked before it is timed. The command
`pip install -e '.[peers]'` installs the other libraries; a library that is not
installed is named and left out.

cells: layers of LSTM, GRU and RNN: forward, forward and backward, train step.
linear: the linear recurrence by our kernel, `associative_scan` and `scan`.
newton: all time steps in parallel by Newton's method, against loops.
train: the train step of a language model, by several methods.
decode: sampling from a language model and moving the tokens to the host.
  Narrow weights ("ours:int8") compute another function: the share of their
  most likely tokens that equal those of float32 is printed, and only half of
  them have to.

The following suites run in this process:

loop: the training loop, against the bare compiled step on one batch.
generation: decoding on the device, against one compiled call per token that
  also chooses the token, and against a compiled step with a choice outside.
methods: every cell by every method that can run it.
seq2seq: beam search on the device against a compiled step for each token, and
  training of a translator against one of torch, if it is installed.
accelerator: correctness and time of everything on a GPU or TPU, the most
  important first, within --minutes (see `experiments.benchmarks.accelerator`).
scaling: time, memory and compilation against sizes and devices, with fitted
  exponents and a plot (see `experiments.benchmarks.scaling`).

It prints tables, and writes benchmark.json, benchmark.png, accelerator.json,
accelerator.md and scaling.png to the workdir.
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
from recurrent import files
from recurrent.errors import ConfigError, UserError, WorkdirError

LOG = logging.getLogger("recurrent")


@dataclasses.dataclass(frozen=True)
class Config(config_lib.Checked):
  """Flags of the benchmark.

  Args:
    workdir: directory for benchmark.json and the plots.
    suite: suites to run, separated by commas: cells, linear, newton, decode,
      train, loop, generation, methods, accelerator, scaling, seq2seq.
    peers: implementations to run in the suites cells, linear, newton and
      decode, separated by commas; empty: all.
    shapes: shapes to measure in the suites cells, linear, newton and decode.
      Use "default", "all" (takes hours on a small CPU), or names and B,T,D,H
      (batch, time, inputs, width), separated by semicolons.
    dtype: dtype of the computation, float32, float16 or bfloat16.
    seconds: time limit in seconds for all repeats of one shape and one kind of
      work; there are at least 3 repeats even so. The suites loop, generation
      and scaling do not use it.
    threads: threads per process in the suites cells, linear, newton and decode;
      0: one per processor.
    repeats: largest number of repeats of each measurement.
    steps: training steps per repeat of the suites loop and seq2seq.
    tokens: tokens per repeat of the suite generation.
    features: width of the model in the suites generation and seq2seq.
    minutes: time limit of the suite accelerator. What it leaves out is listed.
    smoke: measures toy sizes in the suites accelerator and seq2seq, to test
      that they work.
    compile_for: topologies of TPUs, separated by commas, such as
      v5e:2x2,v6e:2x2. The suite accelerator then compiles for them and needs
      libtpu, but no TPU.
    rounds: former name of --repeats, which is refused.
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
  minutes: float = 8.0
  smoke: bool = False
  compile_for: str = ""
  rounds: int = 0

  POSITIVE: typing.ClassVar[frozenset[str]] = frozenset(
    "repeats steps tokens features".split()
  )
  CHOICES: typing.ClassVar[dict[str, typing.Sequence[str]]] = {
    "dtype": tuple(comparison.TOLERANCES)
  }

  def check(self) -> None:
    """Raises ConfigError if a value is wrong."""
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


# Module and function of each suite that runs in this process. The modules are
# imported when the suite runs.
SUITES = {
  "loop": ("throughput", "measure_loop"),
  "generation": ("throughput", "measure_generation"),
  "methods": ("methods", "measure"),
  "accelerator": ("accelerator", "measure"),
  "scaling": ("scaling", "measure"),
  "seq2seq": ("sequences", "measure"),
}


def run(config: Config) -> dict[str, Any]:
  """Runs the suites and returns the results, without the long tables."""
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
  files.write_text(path, json.dumps(results, indent=1) + "\n")
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
  from experiments import runner  # imports all that training needs

  runner.main(run, Config)
