"""Carries out plans, and waits for runs.

All that happens on machines happens here; `plan` and the back ends only say
what is to be done.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch import backends, host, plan, retry
from launch.errors import LaunchError
from launch.job import Job
from launch.plan import Command, Step, Write

POLL = 30.0  # seconds between two questions for the state of a run
UNREACHABLE = 10  # questions in a row without an answer


def say(text: str) -> None:
  """Writes a line to stderr."""
  print(f"launch: {text}", file=sys.stderr, flush=True)


def execute(steps: Sequence[Step], pause: float = plan.PAUSE) -> list[str]:
  """Carries out the steps of a plan, one after the other.

  Args:
    steps: the steps.
    pause: seconds between two repetitions of a command.

  Returns:
    The lines that the commands have printed, which are shown too.

  Raises:
    LaunchError: if a command fails, or the reports of hosts do not agree. The
      rest of the plan is then left out.
  """
  printed, reports = [], []
  for number, step in enumerate(steps):
    if step.why:
      say(" ".join(step.why.split()))
    if isinstance(step, Write):
      Path(step.path).write_text(step.text)
      continue
    lines = _call(step, pause)
    printed += lines
    if step.reports:
      reports += host.read_lines(lines)
    last = number + 1 == len(steps) or not getattr(
      steps[number + 1], "reports", False
    )
    if step.reports and last and (problems := host.agree(reports)):
      raise LaunchError("\n".join(problems), "mend that, and launch again", 1)
  return printed


def _call(step: Command, pause: float) -> list[str]:
  """Runs a command and shows what it prints."""
  while True:
    try:
      process = subprocess.Popen(
        step.argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
      )
    except OSError as error:
      raise LaunchError(
        f"{step.argv[0]} does not start: {error.strerror}",
        f"install {step.argv[0]}, or use another --backend",
        1,
      ) from error
    lines = []
    assert process.stdout is not None
    with process.stdout:
      for text in process.stdout:
        lines.append(text.rstrip("\n"))
        if not step.until:
          print(lines[-1], flush=True)
    if process.wait():
      raise LaunchError(
        f"exit code {process.returncode} of: {plan.line(step)}",
        "its output is above; mend that, and launch again",
        1,
      )
    found = "".join(lines).strip()
    if not step.until or found == step.until:
      return lines
    if found in ("FAILED", "SUSPENDED"):
      raise LaunchError(
        f"the state of the machines is {found}",
        "see what is free in that zone, and launch again",
        1,
      )
    time.sleep(pause)


def ask(command: Command | None) -> str:
  """Returns what a command prints; empty if it fails, or there is none."""
  if command is None:
    return ""
  done = subprocess.run(
    command.argv,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
    check=False,
  )
  return done.stdout.strip() if done.returncode == 0 else ""


def launch(job: Job, pause: float = plan.PAUSE) -> None:
  """Gets the machines, and starts the run on them."""
  backend = backends.BACKENDS[job.backend].module
  execute(backends.acquire(job, ask(backends.state(job))), pause)
  execute(backend.submit(job), pause)


def wait(
  job: Job,
  poll: float = POLL,
  start: Callable[[Job], None] = launch,
) -> int:
  """Waits for the end of a run; gets new machines when they are taken away.

  The hosts start again by themselves what was preempted or has failed, as long
  as they exist (`host.supervise`). What remains is a host that is gone.

  Args:
    job: the run, which has been started.
    poll: seconds between two questions.
    start: starts the run again.

  Returns:
    The exit code of the run: the first one that is not zero.
  """
  lost = 0
  counter = retry.Retries(job.retries, -1)
  while True:
    states = question(job)
    if states is None:
      lost += 1
      taken = backends.state(job) is not None and ask(
        backends.state(job)
      ) not in ("", "ACTIVE")
      if not taken and lost < UNREACHABLE:
        time.sleep(poll)
        continue
      if not taken:
        raise LaunchError(
          f"the hosts of {job.run_id} have not answered {lost} times",
          "the run may go on there; see whether they exist:"
          f" python -m launch status --run_id={job.run_id}",
          1,
        )
      say("the machines were taken away; new ones continue from the checkpoint")
      start(job)
      lost = 0
      continue
    lost = 0
    gone = any(state["state"] == "lost" for state in states)
    running = any(state["state"] == "running" for state in states)
    if running and not gone:
      time.sleep(poll)
      continue
    for state in states:
      say(f"{state['host']}: {state['state']}, exit code {state.get('code')}")
    steps = [state["step"] for state in states if state["step"] is not None]
    step = max(steps, default=None)
    codes = [state.get("code", 1) for state in states]
    bad = next((code for code in codes if code), 0)
    if not bad:
      return 0
    if not gone or any(state.get("stopped") for state in states):
      why = "; ".join(state["why"] for state in states if state.get("why"))
      say(f"{why or 'ended'}; newest checkpoint: step {step}")
      return bad
    # A host was restarted, or its supervisor was killed. The other hosts go on,
    # and wait for it.
    decision = counter.after(128 + 9, step)
    say(decision.why)
    if not decision.rerun:
      return bad
    time.sleep(decision.delay)
    start(job)


def question(job: Job) -> list[dict[str, Any]] | None:
  """Asks all hosts for the state of a run; None if one does not answer."""
  states: list[dict[str, Any]] = []
  for step in backends.BACKENDS[job.backend].module.status(job):
    found = list(host.read_lines(ask(step).splitlines()))
    if not found:
      return None
    states += found
  return states
