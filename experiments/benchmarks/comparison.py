"""Compares implementations: checks that their values agree, then times them.

Each implementation runs in a process of its own.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from experiments.benchmarks import problems, report, timing, worker
from experiments.benchmarks.implementations import (
  IMPLEMENTATIONS,
  Implementation,
)
from experiments.benchmarks.problems import Problem
from experiments.benchmarks.processes import Worker, WorkerError
from experiments.benchmarks.report import Comparison, Turns

LOG = logging.getLogger("recurrent")

# Largest relative difference to the first implementation (a norm over a norm),
# for forward results and for gradients.
TOLERANCES = {
  "float32": (1e-4, 1e-3),
  "float16": (1e-2, 5e-2),
  "bfloat16": (5e-2, 2e-1),
}


class Workers:
  """A process for each implementation of a suite, alive until the `with` ends.

  Args:
    suite: a key of `IMPLEMENTATIONS`.
    config: a configuration with the flags repeats and seconds.
    threads: number of threads of each process.
    works: the kinds of work to measure; None: all of the suite.
    together: whether the implementations are built at the same time, which
      saves time but blurs the times of the first calls.
    shared: whether all implementations share one process, for a device that
      only one process can use.
    tolerances: see `TOLERANCES`.
    timeout: returns the seconds that the next request may take; None: no
      limit.
  """

  def __init__(
    self,
    suite: str,
    config: Any,
    threads: int,
    *,
    works: Sequence[str] | None = None,
    together: bool = False,
    shared: bool = False,
    tolerances: Mapping[str, tuple[float, float]] = TOLERANCES,
    timeout: Callable[[], float | None] = lambda: None,
  ):
    self._table = IMPLEMENTATIONS[suite]
    self._config = config
    self._threads = threads
    self._works = works or problems.WORKS[suite]
    self._together = together
    self._shared = shared
    self._workers: dict[str, Worker] = {}
    self._tolerances = tolerances
    self._timeout = timeout

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    for process in self._workers.values():
      process.close()

  def compare(
    self, problem: Problem, names: Sequence[str], dtype: str
  ) -> Comparison:
    """Measures one problem by several implementations.

    Args:
      problem: the problem.
      names: names of installed implementations. Those that do not support the
        problem are left out.
      dtype: dtype of the computation, a key of `TOLERANCES`.

    Returns:
      The times of all turns. Implementations that fail, or whose values differ
      from those of the first one, are refused and not timed.
    """
    left_out, refused, about, first_calls = {}, {}, {}, {}
    wanted = None
    for name in names:
      if reason := self._table[name].why_not(problem, dtype):
        left_out[name] = reason
    able = [name for name in names if name not in left_out]
    for who in list(self._workers):
      with contextlib.suppress(WorkerError):
        self._ask(who, worker.clear)
    with ThreadPoolExecutor(max(1, self._together * len(able))) as threads:
      build = functools.partial(self._build, problem, dtype)
      for name, built in zip(able, threads.map(build, able), strict=True):
        if isinstance(built, WorkerError):
          refused[name] = str(built)
          continue
        first_calls[name], values, about[name] = built
        if wanted is None:
          wanted = values, name
        elif reason := self._unequal(*wanted, values, name, about[name], dtype):
          refused[name] = reason
    for name, reason in refused.items():
      LOG.warning("%s, %s is refused: %s", problem.name, name, reason)
    if self._shared and refused.keys() - first_calls.keys():
      # The process was killed, and with it what was built.
      again = self.compare(
        problem, [n for n in able if n not in refused], dtype
      )
      return again._replace(
        left_out=left_out, refused={**refused, **again.refused}
      )

    def take_turn(name, work):
      if name not in refused:
        try:
          return self._ask(name, worker.run, name, work)
        except WorkerError as error:
          refused[name] = str(error)
      return None

    turns = {}
    for work in self._works:
      found = timing.in_turn(
        {
          name: functools.partial(take_turn, name, work)
          for name in first_calls
          if name not in refused
        },
        self._config.repeats,
        self._config.seconds,
        warm_up=False,
        rotate=True,
      )
      turns[work] = {
        name: Turns(list(seconds), first_calls[name][work], max(peaks))
        for name in found
        if name not in refused
        for seconds, peaks in [zip(*found[name], strict=True)]
      }
    return Comparison(problem, turns, left_out, refused, about)

  def peak(self, dtype: str) -> dict[str, Any]:
    """FLOP/s of a large matrix product, platform and name of the device."""
    process = self._start(IMPLEMENTATIONS["linear"]["ours"])
    try:
      return process.ask(worker.peak, dtype)
    finally:
      process.close()

  def _build(self, problem, dtype, name):
    """The result of `worker.build`, or the error."""
    made = self._table[name]
    how = made.module, made.option, self._works
    try:
      return self._ask(name, worker.build, name, problem, dtype, *how)
    except WorkerError as error:
      return error

  def _ask(self, name, function, *args):
    who = "" if self._shared else name
    if who not in self._workers:
      self._workers[who] = self._start(self._table[name])
    try:
      return self._workers[who].ask(function, *args, timeout=self._timeout())
    except WorkerError:
      del self._workers[who]
      raise

  def _start(self, implementation: Implementation) -> Worker:
    environment = {
      "OMP_NUM_THREADS": str(self._threads),
      "MKL_NUM_THREADS": str(self._threads),
      # A cached program would not show the time of compilation.
      "JAX_ENABLE_COMPILATION_CACHE": "false",
      # Several processes share a GPU.
      "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
      **implementation.environment,
    }
    setup = worker.start, implementation.module, self._threads
    return Worker(environment, *setup)

  def _unequal(self, wanted, first, got, name, about, dtype) -> str:
    """Describes how values differ from the first implementation's; or empty.

    If an implementation need not agree on all tokens, the share on which it
    agrees is stored in `about`.
    """
    tolerances = self._tolerances[dtype]
    least = self._table[name].agreement
    if least < 1:
      wanted = dict(wanted)
      about["same_tokens"] = part = agree(wanted, got)
      if part < least:
        return (
          f"{part:.0%} of the tokens, not {least:.0%}, are those of {first}"
        )
      tolerances = TOLERANCES["bfloat16"]
    reason = difference(wanted, got, tolerances)
    return f"{reason} not that of {first}" if reason else ""


def difference(
  wanted: dict[str, Any], got: dict[str, Any], tolerances: tuple[float, float]
) -> str:
  """Describes how the values of two implementations differ; empty if equal.

  Args:
    wanted: arrays by name, of the first implementation.
    got: arrays by name, of the other one.
    tolerances: largest norm of the difference over the norm of `wanted`, for
      forward results and for gradients. Integers must be equal.
  """
  if wanted.keys() != got.keys():
    return f"{sorted(wanted.keys() ^ got.keys())} is"
  for name, want in wanted.items():
    found = got[name]
    if want.shape != found.shape:
      return f"{name} of shape {found.shape} is"
    if np.issubdtype(want.dtype, np.integer):
      if not np.array_equal(want, found):
        return f"{name} is"
      continue
    error = np.linalg.norm((found - want).ravel())
    error /= max(float(np.linalg.norm(want.ravel())), 1e-30)
    # Written with `not`, so that NaN is refused.
    if not error <= tolerances[name.startswith("gradient")]:
      return f"{name} is off by {error:.1e} and"
  return ""


def agree(wanted: dict[str, Any], got: dict[str, Any]) -> float:
  """Sets tokens and scores to zero from the first token that differs.

  After the first token that differs, the rest of a row is another text and
  cannot be compared. Both arguments are changed in place.

  Args:
    wanted: `tokens` and `scores`, [batch, N], of the first implementation.
    got: `tokens` and `scores`, [batch, N], of the other one.

  Returns:
    The share of the tokens before that point.
  """
  same = np.logical_and.accumulate(wanted["tokens"] == got["tokens"], axis=1)
  for values in (wanted, got):
    for name in ("tokens", "scores"):
      values[name] = np.where(same, values[name], 0)
  return float(same.mean())


def measure(
  config: Any,
  chosen: Sequence[Problem],
  names: dict[str, list[str]],
  about: dict[str, Any],
) -> dict[str, Any]:
  """Measures the problems of some suites, and prints the results.

  Args:
    config: the flags of the benchmark.
    chosen: the problems.
    names: names of the implementations of each suite.
    about: description of the machine; its device, threads and FLOP/s are added
      in place.

  Returns:
    A dict of the skipped implementations, the refused ones, the targets, and
    all rows.
  """
  threads = config.threads or timing.processors()
  skipped = {
    name: reason
    for suite in names
    for name in names[suite]
    if (reason := IMPLEMENTATIONS[suite][name].missing())
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
    with Workers(suite, config, threads) as workers:
      if "flops" not in about:
        about |= {"threads": threads, **workers.peak(config.dtype)}
        print(
          f"{about['processor']}, {threads} threads, {about['platform']}:"
          f" a {config.dtype} product at {about['flops'] / 1e9:.4g} GFLOP/s"
        )
      for problem in chosen:
        if problem.suite != suite:
          continue
        measured = workers.compare(problem, present, config.dtype)
        found = report.rows(measured, about["flops"])
        print(f"\n{problem.name}, ms\n{report.show_rows(found)}", flush=True)
        for name, known in measured.about.items():
          if "same_tokens" in known:
            print(f"{name}: {known['same_tokens']:.1%} of tokens are ours")
        for name, reason in measured.left_out.items():
          print(f"{name} is left out: it {reason}")
        for name, reason in measured.refused.items():
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
