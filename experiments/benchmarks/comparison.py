"""Starts the contestants, compares what they compute, times them in turn."""

import contextlib
import dataclasses
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks import implementations as contestants
from experiments.benchmarks import problems
from experiments.benchmarks.implementations import Contestant
from experiments.benchmarks.problems import Problem

LOG = logging.getLogger("recurrent")

# The greatest difference, as a norm over that of the first contestant's: of
# what is computed forward, and of gradients.
TOLERANCES = {"float32": (1e-4, 1e-3), "bfloat16": (5e-2, 2e-1)}
TURN = 0.05  # seconds
LEAST_ROUNDS = 3


class WorkerError(Exception):
  """A contestant cannot do what was asked of it."""


class Turns(NamedTuple):
  """What was measured of one contestant with one work.

  Attributes:
    seconds: of each call, by round.
    first_call: seconds of the first call, in which JAX compiles.
    peak_bytes: of memory.
  """

  seconds: list[list[float]]
  first_call: float
  peak_bytes: int


class Contest(NamedTuple):
  """What was measured of one problem.

  Attributes:
    problem: which.
    turns: by work, then by contestant.
    left_out: by contestant, why it does not compute this, as "it ...".
    refused: by contestant, why it was not timed, or not to the end.
    about: by contestant, what else is worth knowing.
  """

  problem: Problem
  turns: dict[str, dict[str, Turns]]
  left_out: dict[str, str]
  refused: dict[str, str]
  about: dict[str, dict[str, Any]]


class Referee:
  """Holds a process for each contestant.

  Args:
    dtype: what all compute in.
    rounds: turns of each contestant, at most.
    seconds: what all turns of one work may take together; there are
      `LEAST_ROUNDS` rounds even so.
    threads: of each contestant; 0: as many as there are processors.
  """

  def __init__(
    self, *, dtype: str, rounds: int, seconds: float, threads: int = 0
  ):
    self.threads = threads or _processors()
    self._dtype, self._rounds, self._seconds = dtype, rounds, seconds
    self._workers: dict[tuple[str, ...], _Worker] = {}
    self._folder = tempfile.TemporaryDirectory()

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    for worker in self._workers.values():
      worker.stop()
    self._folder.cleanup()

  def peak(self) -> dict[str, Any]:
    """FLOP/s of a matrix product on this machine, and the device's name."""
    ours = Contestant("experiments.benchmarks.peers.linear", "ours")
    return self._worker(ours).ask("peak", dtype=self._dtype)

  def contest(self, problem: Problem, names: Sequence[str]) -> Contest:
    """Measures one problem.

    Args:
      problem: what is computed.
      names: of contestants of its suite, which are installed; those that
        leave the problem out are not asked.

    Returns:
      All turns; contestants that fail, or whose values are not those of the
      first, are refused and not timed.
    """
    table = contestants.CONTESTANTS[problem.suite]
    left_out = {
      name: reason
      for name in names
      if (reason := table[name].why_not(problem, self._dtype))
    }
    built, refused = {}, {}
    for name in names:
      if name in left_out:
        continue
      try:
        built[name] = self._build(problem, table[name], name)
      except WorkerError as error:
        refused[name] = str(error)
    for name, reason in self._unequal(built, table).items():
      refused[name] = reason
      del built[name]
    for name, reason in refused.items():
      LOG.warning("%s, %s is refused: %s", problem.name, name, reason)
    turns = {
      work: self._take_turns(work, {n: table[n] for n in built}, built, refused)
      for work in problems.WORKS[problem.suite]
    }
    about = {name: reply["about"] for name, reply in built.items()}
    return Contest(problem, turns, left_out, refused, about)

  def _build(self, problem, contestant, name):
    return self._worker(contestant).ask(
      "build",
      problem=dataclasses.asdict(problem),
      dtype=self._dtype,
      option=contestant.option,
      works=problems.WORKS[problem.suite],
      values=self._values_of(name),
    )

  def _values_of(self, name):
    return str(Path(self._folder.name) / f"{name.replace(':', '_')}.npz")

  def _unequal(self, built, table) -> dict[str, str]:
    """Contestants whose values are not those of the first, and which.

    Of those that need not agree on all tokens it is noted how far they do.
    """
    found = {}
    first, *others = built or [""]
    for name in others:
      with (
        np.load(self._values_of(first)) as wanted,
        np.load(self._values_of(name)) as got,
      ):
        want, have = dict(wanted), dict(got)
      tolerances, least = TOLERANCES[self._dtype], table[name].agreement
      if least < 1:
        part = agree(want, have)
        built[name]["about"]["same_tokens"] = part
        if part < least:
          found[name] = f"{part:.0%} of the tokens, not {least:.0%}, are"
          found[name] += f" those of {first}"
          continue
        tolerances = TOLERANCES["bfloat16"]
      reason = compare(want, have, tolerances)
      if reason:
        found[name] = f"{reason} not that of {first}"
    return found

  def _take_turns(self, work, table, built, refused):
    """Rounds in which each has a turn, each time from another one on."""
    begun, done = time.perf_counter(), 0
    found = {
      name: Turns([], reply["first"][work], 0) for name, reply in built.items()
    }
    while found and done < self._rounds:
      begun_round = time.perf_counter()
      names = list(found)
      shift = done % len(names)
      for name in names[shift:] + names[:shift]:
        try:
          reply = self._worker(table[name]).ask("run", work=work, seconds=TURN)
        except WorkerError as error:
          refused.setdefault(name, str(error))
          del found[name]
          continue
        turns = found[name]
        turns.seconds.append(reply["seconds"])
        found[name] = turns._replace(
          peak_bytes=max(turns.peak_bytes, reply["peak_bytes"])
        )
      done += 1
      now = time.perf_counter()
      over = now - begun + (now - begun_round) > self._seconds
      if over and done >= min(LEAST_ROUNDS, self._rounds):
        break
    return found

  def _worker(self, contestant):
    key = (contestant.module, contestant.option)
    if key in self._workers and not self._workers[key].alive:
      self._workers.pop(key).stop()
    if key not in self._workers:
      self._workers[key] = _Worker(contestant, self.threads)
    return self._workers[key]


def compare(
  wanted: dict[str, Any], got: dict[str, Any], tolerances: tuple[float, float]
) -> str:
  """What differs between two contestants' values; empty if nothing does.

  Args:
    wanted: arrays by name.
    got: arrays by name.
    tolerances: of what is computed forward and of gradients, as a norm of the
      difference over the norm of what is wanted. Integers must be equal.
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
    # Not the other way round: a NaN is to be refused.
    if not error <= tolerances[name.startswith("gradient")]:
      return f"{name} is off by {error:.1e} and"
  return ""


def agree(wanted: dict[str, Any], got: dict[str, Any]) -> float:
  """Cuts two contestants' tokens, and their scores, to what they agree on.

  A row is another text after its first other token: from there on tokens and
  scores of both become zero, in place.

  Args:
    wanted: `tokens` and `scores`, [batch, N].
    got: the same.

  Returns:
    The part of the tokens that is left.
  """
  same = np.logical_and.accumulate(wanted["tokens"] == got["tokens"], axis=1)
  for values in (wanted, got):
    for name in ("tokens", "scores"):
      values[name] = np.where(same, values[name], 0)
  return float(same.mean())


class _Worker:
  """A process that answers requests."""

  def __init__(self, contestant: Contestant, threads: int):
    self._log = tempfile.TemporaryFile("w+")
    environment = {
      **os.environ,
      "OMP_NUM_THREADS": str(threads),
      "MKL_NUM_THREADS": str(threads),
      # Compile times are to be those of compiling.
      "JAX_ENABLE_COMPILATION_CACHE": "false",
      # Several processes share a GPU.
      "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
      **contestant.environment,
    }
    self._process = subprocess.Popen(
      [sys.executable, "-m", "experiments.benchmarks.worker"],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._log,
      text=True,
      env=environment,
    )
    stdin, stdout = self._process.stdin, self._process.stdout
    assert stdin is not None and stdout is not None
    self._requests, self._replies = stdin, stdout
    try:
      self.ask("start", module=contestant.module, threads=threads)
    except WorkerError:
      self.stop()
      raise

  @property
  def alive(self) -> bool:
    return self._process.poll() is None

  def ask(self, what: str, **request: Any) -> dict[str, Any]:
    """Sends a request and waits for its reply.

    Raises:
      WorkerError: if the worker reports an error, or is gone.
    """
    line = ""
    with contextlib.suppress(BrokenPipeError):
      print(json.dumps({"do": what, **request}), file=self._requests)
      self._requests.flush()
      line = self._replies.readline()
    if not line:
      code = self._process.wait()
      self._log.seek(0)
      said = self._log.read().strip().splitlines() or ["nothing"]
      raise WorkerError(f"its process ended with {code}: {said[-1]}")
    reply = json.loads(line)
    if "error" in reply:
      raise WorkerError(reply["error"])
    return reply

  def stop(self) -> None:
    """Lets the process end."""
    with contextlib.suppress(BrokenPipeError):
      self._requests.close()
    self._process.wait()
    self._replies.close()
    self._log.close()


def _processors() -> int:
  """How many this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
