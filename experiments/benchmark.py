"""Measures this machine: contestants in turn, medians and ratios.

  python -m experiments.benchmark
  python -m experiments.benchmark --peers=ours,torch --suite=cells
  python -m experiments.benchmark --suite=cells --shapes='gru:4,100,64,64;...'
  python -m experiments.benchmark --suite=loop,generation
  python -m experiments.benchmark --suite=scaling

Against peers, each in its own process, its values compared before it is timed
(`pip install -e '.[peers]'` has them; what is missing is named and left out):

cells: layers of LSTM, GRU, RNN: forward, forward and backward, train step.
linear: the linear recurrence by our kernel, `associative_scan`, `scan`.
newton: all ticks at once, against loops.
decode: sampling from a language model, tokens handed to the host; with narrow
  weights ("ours:int8") it is another function, so the part of the likeliest
  tokens that are those of float32 is printed instead of asked for.

Within this process:

loop: training throughput against the bare compiled step on one batch.
generation: decoding on the device against one compiled call a token, with the
  choice of the token in it, and against a compiled step and a choice outside.
methods: every cell by every method of ours that runs it.
scaling: time, memory and compilation against sizes and devices, with fitted
  exponents (`experiments.benchmarks.scaling`); a picture of its own.

Prints tables; writes benchmark.json, benchmark.png and scaling.png to the
workdir.
"""

import dataclasses
import importlib.metadata
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments import config as config_lib
from experiments import generate, language_model, runner
from experiments.benchmarks import (
  contestants,
  methods,
  picture,
  problems,
  report,
  scaling,
)
from experiments.benchmarks.referee import TOLERANCES, Referee
from recurrent import decoding, optim, sharding
from recurrent.errors import ConfigError, UserError, WorkdirError
from recurrent.models import LanguageModel
from recurrent.training import loop, step
from recurrent.training.preemption import Preemption

LOG = logging.getLogger("recurrent")


@dataclasses.dataclass(frozen=True)
class Config(config_lib.Checked):
  """Flags of benchmark.

  Args:
    workdir: directory of benchmark.json and of the pictures.
    suite: what to measure, separated by commas: cells, linear, newton, decode,
      loop, generation, methods, scaling.
    peers: contestants of the first four suites, separated by commas; empty:
      all.
    shapes: of the first four suites: "default", "all" (hours on a small CPU),
      or names and B,T,D,H, separated by semicolons.
    dtype: what they compute in: float32 or bfloat16.
    seconds: what the turns of all contestants on one shape and work may take,
      in the first four suites; there are 3 rounds even so.
    threads: of each contestant in the first four suites; 0: all processors.
    rounds: turns of each contestant, at most.
    steps: training steps a turn, in the suite loop.
    tokens: tokens a turn, in the suite generation.
    features: width of the model in the suite generation.
  """

  workdir: str = "runs/benchmark"
  suite: str = "cells,linear,newton,decode"
  peers: str = ""
  shapes: str = "default"
  dtype: str = "float32"
  seconds: float = 5.0
  threads: int = 0
  rounds: int = 7
  steps: int = 40
  tokens: int = 1024
  features: int = 256

  POSITIVE: typing.ClassVar[frozenset[str]] = frozenset(
    "rounds steps tokens features".split()
  )
  CHOICES: typing.ClassVar[dict[str, typing.Sequence[str]]] = {
    "dtype": tuple(TOLERANCES)
  }

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


def run(config: Config) -> dict[str, Any]:
  """Runs the suites; returns their ratios."""
  suites = config.suites()
  against_peers = [name for name in suites if name in problems.WORKS]
  chosen = problems.choose(config.shapes, against_peers)
  names = contestants.choose(config.peers, against_peers)
  workdir = Path(config.workdir)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise WorkdirError(
      f"--workdir={workdir} cannot be made: {error.strerror}",
      "name a directory that can be written to",
    ) from error
  results: dict[str, Any] = {
    "command": ["python", "-m", "experiments.benchmark", *sys.argv[1:]],
    "machine": machine(),
  }
  if against_peers:
    results |= compete(config, chosen, names, results["machine"])
  for name in suites:
    if name in SUITES:
      results[name] = SUITES[name](config)
  path = workdir / "benchmark.json"
  path.write_text(json.dumps(results, indent=1) + "\n")
  LOG.info("Written to %s.", path)
  if results.get("rows"):
    found = results["machine"]
    picture.draw(
      results["rows"],
      f"{found['processor']}, {found['threads']} threads, {found['platform']},"
      f" {config.dtype}; "
      + ", ".join(f"{k} {v}" for k, v in found["versions"].items()),
      workdir / "benchmark.png",
    )
  if results.get("refused"):
    shape, refused = next(iter(results["refused"].items()))
    name, reason = next(iter(refused.items()))
    raise UserError(
      f"{name} was refused on {shape}: {reason}",
      f"{path} has the rest, without what was refused; mend the contestant",
    )
  long = ("rows", "command", "methods")
  brief = {k: v for k, v in results.items() if k not in long}
  if "scaling" in brief:
    brief["scaling"] = brief["scaling"]["exponents"]
  return brief


def machine() -> dict[str, Any]:
  """What numbers depend on besides the code."""
  versions = {"python": platform.python_version()}
  for name in ("jax", "flax", "torch", "keras", "dm-haiku", "equinox"):
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  processor = platform.processor() or platform.machine()
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = []
  for line in lines:
    if line.startswith("model name"):
      processor = line.partition(":")[2].strip()
      break
  return {
    "processor": processor,
    "processors": os.cpu_count(),
    "load": os.getloadavg()[0],
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
    "versions": versions,
  }


def compete(
  config: Config,
  chosen: list[problems.Problem],
  names: dict[str, list[str]],
  about: dict[str, Any],
) -> dict[str, Any]:
  """Runs the suites against peers, and prints what comes out.

  Args:
    config: the flags.
    chosen: the problems.
    names: contestants of each suite.
    about: the machine; its device, threads and FLOP/s are added to it.

  Returns:
    The skipped contestants, the refused ones, the targets, and all rows.
  """
  skipped = {
    name: reason
    for suite in names
    for name in names[suite]
    if (reason := contestants.missing(contestants.CONTESTANTS[suite][name]))
  }
  for name, reason in skipped.items():
    print(f"{name} is skipped: {reason}")
  rows: list[report.Row] = []
  refused: dict[str, dict[str, str]] = {}
  if about["load"] > 0.5 * about["processors"]:
    LOG.warning(
      "This machine is busy (load %.1f): the numbers will not be its own.",
      about["load"],
    )
  for suite, members in names.items():
    present = [name for name in members if name not in skipped]
    with Referee(
      dtype=config.dtype,
      rounds=config.rounds,
      seconds=config.seconds,
      threads=config.threads,
    ) as referee:
      if "flops" not in about:
        about |= {"threads": referee.threads, **referee.peak()}
        print(
          f"{about['processor']}, {about['threads']} threads,"
          f" {about['platform']}: a {config.dtype} product at"
          f" {about['flops'] / 1e9:.4g} GFLOP/s"
        )
      for problem in chosen:
        if problem.suite != suite:
          continue
        contest = referee.contest(problem, present)
        found = report.rows(contest, about["flops"])
        print(f"\n{problem.name}, ms\n{report.show_rows(found)}", flush=True)
        for name, known in contest.about.items():
          if "same_tokens" in known:
            print(f"{name}: {known['same_tokens']:.1%} of tokens are ours")
        for name, reason in contest.left_out.items():
          print(f"{name} is left out: it {reason}")
        for name, reason in contest.refused.items():
          print(f"{name} is REFUSED: {reason}")
          refused.setdefault(problem.name, {})[name] = reason
        rows += found
  targets = report.targets(rows)
  print(f"\n{report.show_ratios(rows)}\n\n{report.show_targets(targets)}")
  return {
    "skipped": skipped,
    "refused": refused,
    "targets": [{**t._asdict(), "met": t.met} for t in targets],
    "rows": rows,
  }


def measure(
  contestants: dict[str, Callable[[], None]], units: int, rounds: int
) -> dict[str, Any]:
  """Times functions of this process in turn, so that all meet the same noise.

  Args:
    contestants: by name, each does its work and waits for it.
    units: of work that each does in a call.
    rounds: timed calls of each, after one that is not.

  Returns:
    Median units a second of each contestant, and the ratio of the first to
    the others as the median over rounds.
  """
  seconds: dict[str, list[float]] = {name: [] for name in contestants}
  for turn in range(rounds + 1):
    for name, work in contestants.items():
      begun = time.perf_counter()
      work()
      if turn:
        seconds[name].append(time.perf_counter() - begun)
  first, *others = contestants
  found: dict[str, Any] = {
    f"{name}_per_second": units / statistics.median(times)
    for name, times in seconds.items()
  }
  for name in others:
    found[f"{first}_over_{name}"] = statistics.median(
      b / a for a, b in zip(seconds[first], seconds[name], strict=True)
    )
  for key, value in found.items():
    print(f"{key:36s}{value:14.4g}")
  return found


def measure_loop(config: Config) -> dict[str, Any]:
  """The training loop, with its rows and checkpoints, against its step."""
  from recurrent.training.checkpoint import Checkpoints
  from recurrent.training.progress import Progress
  from recurrent.training.writers import MetricsWriter

  mesh = sharding.make_mesh()
  where = sharding.split_batch(mesh)
  with tempfile.TemporaryDirectory() as folder:
    trained = language_model.Config(workdir=folder, batch_size=16)
    optimizer = optim.make_optimizer(trained, trained.steps)
    task = language_model.make_task(trained)
    init, graphdef = runner.initialiser(trained, task, optimizer)
    train_step = step.make_train_step(
      graphdef, task.loss, optimizer, mesh, seed=0, ema_decay=trained.ema
    )
    start = jax.jit(init, out_shardings=step.state_sharding(mesh))
    states = {"loop": start(), "bare_step": start()}
    batch = sharding.put(task.batches[0], where)
    checkpoints = Checkpoints(Path(folder) / "checkpoints", "benchmark")
    writer = MetricsWriter(Path(folder), 0)
    outcome = loop.Outcome()

    def in_loop():
      done = int(states["loop"].step)
      steps = done + config.steps
      states["loop"], _ = loop.fit(
        states["loop"],
        train_step,
        task.batches,
        loop.Hooks(
          put=lambda batch: sharding.put(batch, where),
          evaluate=lambda params, stop: {"valid_bpc": 1.0},
          on_evaluation=lambda at_step, params: "",
          describe=lambda means, at_step: task.describe(means),
        ),
        loop.Schedule(steps=steps, log_every=10, eval_every=steps),
        objective="valid_bpc",
        outcome=outcome,
        checkpoints=checkpoints,
        writer=writer,
        progress=Progress(done, steps, *task.units),
        preemption=Preemption(),
      )
      checkpoints.wait()

    def bare():
      for _ in range(config.steps):
        states["bare_step"], status = train_step(states["bare_step"], batch)
      jax.block_until_ready(status)

    found = measure(
      {"loop": in_loop, "bare_step": bare},
      config.steps * task.units[1],
      config.rounds,
    )
    writer.close()
    checkpoints.close()
  return found


def measure_generation(config: Config) -> dict[str, Any]:
  """Blocks of tokens on the device against compiled calls for each token."""
  model = LanguageModel(103, features=config.features, rngs=nnx.Rngs(0))
  graphdef, variables = nnx.split(model)
  params = nnx.as_pure(variables)
  key = jax.random.key(0)
  prompt = np.zeros((1, 8), np.int32)
  stream = generate.Stream(graphdef, params, decoding.Sampler())

  def on_device():
    for _ in stream(prompt, key, config.tokens):
      pass

  @jax.jit
  def one_token(params, carry, logits, key):
    key, now = jax.random.split(key)
    token = jax.random.categorical(now, logits)
    model = nnx.merge(graphdef, params)
    carry, logits = model(carry, token[:, None])
    return carry, logits[:, -1], token, key

  @jax.jit
  def prefill(params, tokens):
    carry, logits = nnx.merge(graphdef, params)(None, tokens)
    return carry, logits[:, -1]

  def a_call_a_token():
    carry, logits = prefill(params, prompt)
    text, now = [], key
    for _ in range(config.tokens):
      carry, logits, token, now = one_token(params, carry, logits, now)
      text.append(int(token[0]))

  @jax.jit
  def one_step(params, carry, token):
    carry, logits = nnx.merge(graphdef, params)(carry, token[:, None])
    return carry, logits[:, -1]

  def a_step_a_token():
    carry, logits = prefill(params, prompt)
    text = []
    for number in range(config.tokens):
      now = jax.random.fold_in(key, number)
      token = jax.random.categorical(now, logits)
      text.append(int(token[0]))
      carry, logits = one_step(params, carry, token)

  return measure(
    {
      "on_device": on_device,
      "a_call_a_token": a_call_a_token,
      "a_step_a_token": a_step_a_token,
    },
    config.tokens,
    config.rounds,
  )


def measure_methods(config: Config) -> list[dict[str, Any]]:
  """Every cell by every method: see `experiments.benchmarks.methods`."""
  return methods.measure(methods.cases(), config.rounds, config.seconds)


def measure_scaling(config: Config) -> dict[str, Any]:
  """Time, memory and compilation against sizes and devices."""
  return scaling.measure(
    Path(config.workdir), config.rounds, machine(), scaling.SIZES
  )


SUITES = {
  "loop": measure_loop,
  "generation": measure_generation,
  "methods": measure_methods,
  "scaling": measure_scaling,
}


if __name__ == "__main__":
  runner.main(run, Config)
