"""Decides whether a run that has ended is started again, and when.

This module and `host` also run under the system's Python of other machines,
which may be older than the one that the experiments need (3.8 at least).
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

PREEMPTED = 75  # the run was told to stop and has saved its state
BAD_FLAG = 2  # the same command would fail again
FIRST_DELAY, LONGEST_DELAY = 10.0, 300.0  # seconds


class Decision(NamedTuple):
  """What to do after a run has ended.

  Attributes:
    rerun: whether to start it again.
    delay: seconds to wait before that.
    why: the reason, for a log.
  """

  rerun: bool
  delay: float
  why: str


class Retries:
  """Counts the failures of a run since its newest checkpoint.

  A preemption costs nothing. Any other failure costs one of the retries, and
  the delays before the next attempts double. A new checkpoint gives all retries
  back: a run that makes progress goes on, and one that fails at the same step
  again and again ends.

  Args:
    retries: how often to start again after failures without a new checkpoint.
    step: step of the newest checkpoint; None if unknown, -1 if there is none.
  """

  def __init__(self, retries: int, step: int | None):
    self.retries = retries
    self._step = step
    self._codes: list[int] = []  # of the failures since the newest checkpoint
    self._idle = 0  # attempts since the newest checkpoint

  def after(self, code: int, step: int | None) -> Decision:
    """Decides what to do after an attempt.

    Args:
      code: exit code of the attempt.
      step: step of the newest checkpoint after it.
    """
    if step is not None and (self._step is None or step > self._step):
      self._codes, self._idle = [], 0
    else:
      self._idle += 1
    self._step = step if step is not None else self._step
    where = (
      "before the first checkpoint"
      if self._step in (None, -1)
      else f"since the checkpoint of step {self._step}"
    )
    if code == 0:
      return Decision(False, 0.0, "done")
    if code == PREEMPTED:
      # Without delay, unless preemptions prevent all progress.
      return Decision(True, self._delay(self._idle - 1), f"preempted {where}")
    self._codes.append(code)
    failures = len(self._codes)
    codes = ", ".join(map(str, self._codes[-10:]))
    why = f"failure {failures} {where} (exit code {codes})"
    if code == BAD_FLAG:
      return Decision(False, 0.0, f"{why}: the command itself is wrong")
    if failures > self.retries:
      return Decision(False, 0.0, f"{why}: all {self.retries} retries are used")
    return Decision(True, self._delay(failures), why)

  @staticmethod
  def _delay(failures: int) -> float:
    if failures < 1:
      return 0.0
    return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(failures - 1, 30))


def supervise(
  run_once: Callable[[], int],
  newest_step: Callable[[], int | None],
  retries: int,
  say: Callable[[str], None],
  stopped: Callable[[], bool] = lambda: False,
  rerun_preempted: bool = True,
  sleep: Callable[[float], None] = time.sleep,
) -> int:
  """Runs something until it is done, is stopped, or fails too often.

  Args:
    run_once: runs it once and returns its exit code.
    newest_step: returns the step of the newest checkpoint; see `Retries`.
    retries: how often to start again after failures without a new checkpoint.
    say: writes a line to the log.
    stopped: whether someone has asked for the end.
    rerun_preempted: whether to start again after a preemption. A scheduler that
      starts preempted runs again by itself needs False.
    sleep: waits for a number of seconds.

  Returns:
    The exit code of the last attempt.
  """
  counter = Retries(retries, newest_step())
  while True:
    code = run_once()
    decision = counter.after(code, newest_step())
    if code == 0:
      return code
    if stopped():
      say(f"stopped as asked: {decision.why}")
      return code
    if not decision.rerun or (code == PREEMPTED and not rerun_preempted):
      say(f"not started again: {decision.why}")
      return code
    say(f"starting again in {decision.delay:.0f} s: {decision.why}")
    sleep(decision.delay)
    if stopped():
      return code


def newest_checkpoint(workdir: str) -> int | None:
  """Returns the step of a workdir's newest checkpoint.

  Args:
    workdir: path of a directory, or a gs:// address, which is listed by the
      program gcloud.

  Returns:
    The step; -1 if there is no checkpoint; None if that cannot be found out.
  """
  if "://" not in workdir:
    try:
      names = [path.name for path in (Path(workdir) / "checkpoints").iterdir()]
    except OSError:
      names = []
  elif workdir.startswith("gs://"):
    try:
      listed = subprocess.run(
        ["gcloud", "storage", "ls", workdir.rstrip("/") + "/checkpoints/"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
      )
    except (OSError, subprocess.TimeoutExpired):
      return None
    if listed.returncode and "matched no objects" not in listed.stderr:
      return None
    lines = listed.stdout.split()
    names = [line.rstrip("/").rpartition("/")[2] for line in lines]
  else:
    return None
  return max((int(name) for name in names if name.isdecimal()), default=-1)
