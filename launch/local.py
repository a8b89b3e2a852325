"""Runs an experiment as several processes of this machine.

  python -m launch.local --processes=2 -- experiments.language_model \
      --workdir=runs/pydoc

Each process gets the same flags, and its own number. A SIGTERM, SIGINT or
SIGHUP is forwarded to all of them. If one process fails, the others are killed
some seconds later, since they would wait for it; if one has saved and stopped,
they get a minute to do so. The exit code is the first one that tells of a
failure; if there is none, 75 if a process has saved and stopped.

With --restart, all processes are started again after a preemption (exit code
75) that this program was not asked for, and after failures, at most --retries
times without a new checkpoint in between.
"""

import math
import os
import re
import signal
import socket
import subprocess
import sys
import time

from absl import app, flags

from launch import retry

PROCESSES = flags.DEFINE_integer(
  "processes", 2, "how many processes", lower_bound=1
)
PORT = flags.DEFINE_integer("port", 0, "of process 0; 0: one that is free")
RESTART = flags.DEFINE_bool(
  "restart", False, "start again after a preemption or a failure"
)
RETRIES = flags.DEFINE_integer(
  "retries",
  3,
  "how often to start again after failures without a new checkpoint; a"
  " preemption (exit code 75) costs none",
  lower_bound=0,
)

GRACE = 5.0  # seconds in which the others may end by themselves
SAVING = 60.0  # the same, after the first one that has saved and stopped


def commands(arguments: list[str], processes: int, port: int) -> list[list]:
  """Returns the command line of each process.

  Args:
    arguments: module of the experiment, and its flags.
    processes: number of processes.
    port: port on which process 0 listens.

  Returns:
    One list of arguments per process.
  """
  module, *rest = arguments
  return [
    [
      sys.executable,
      "-m",
      module,
      *rest,
      f"--coordinator=127.0.0.1:{port}",
      f"--processes={processes}",
      f"--process={number}",
    ]
    for number in range(processes)
  ]


def main(argv: list[str]) -> int:
  """Starts the processes and waits for them."""
  arguments = argv[1:]
  if not arguments:
    print(
      "no experiment to run\nname one after --, as in:"
      " -- experiments.language_model --workdir=DIR",
      file=sys.stderr,
    )
    return 2
  # On a CPU, each process has one device.
  environment = {"JAX_NUM_CPU_DEVICES": "1", **os.environ}
  signals: list[int] = []  # to forward; `wait` empties it
  stopped = False

  def forward(number, frame):
    nonlocal stopped
    del frame
    stopped = True
    signals.append(signal.SIGTERM if number == signal.SIGHUP else number)

  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, forward)

  def run_once():
    port = PORT.value or free_port()
    # Each process has a session of its own; otherwise a Ctrl-C would reach it
    # twice, from the terminal and from `wait`.
    running = [
      subprocess.Popen(command, env=environment, start_new_session=True)
      for command in commands(arguments, PROCESSES.value, port)
    ]
    return wait(running, signals=signals)

  if not RESTART.value:
    return run_once()
  workdirs = [x for x in arguments if re.match("--?workdir=", x)]
  workdir = workdirs[-1].partition("=")[2] if workdirs else ""
  return retry.supervise(
    run_once,
    lambda: retry.newest_checkpoint(workdir) if workdir else None,
    RETRIES.value,
    lambda text: print(f"launch: {text}", file=sys.stderr, flush=True),
    lambda: stopped,
    sleep=lambda seconds: _pause(seconds, lambda: stopped),
  )


def _pause(seconds, ended):
  """Sleeps, but ends as soon as `ended()`."""
  end = time.monotonic() + seconds
  while not ended() and time.monotonic() < end:
    time.sleep(0.05)


def wait(
  running: list[subprocess.Popen],
  grace: float = GRACE,
  saving: float = SAVING,
  signals: list[int] | None = None,
) -> int:
  """Waits for all processes, and kills the others when one has failed.

  Args:
    running: the processes.
    grace: seconds in which the others may end by themselves.
    saving: the same, after the first one that has saved and stopped.
    signals: numbers of signals to forward to all processes; may be added to at
      any time, and is emptied.

  Returns:
    The first exit code that is neither 0 nor 75; if there is none, 75 if a
    process returned that, or 0. A process that was killed by signal N has the
    code 128 + N, as in a shell; those that this function kills do not count.
  """
  codes: list[int] = []
  deadline, killed = math.inf, False
  waiting = list(running)
  while waiting:
    while signals:
      number = signals.pop(0)
      for process in waiting:
        process.send_signal(number)
    for process in list(waiting):
      code = process.poll()
      if code is None:
        continue
      waiting.remove(process)
      if killed:
        continue
      codes.append(128 - code if code < 0 else code)
      if code:
        allowed = saving if code == retry.PREEMPTED else grace
        deadline = min(deadline, time.monotonic() + allowed)
    if time.monotonic() > deadline:
      killed = True
      for process in waiting:
        process.kill()
    time.sleep(0.05)
  bad = [code for code in codes if code not in (0, retry.PREEMPTED)]
  return bad[0] if bad else max(codes, default=0)


def free_port() -> int:
  """Returns a free TCP port of this machine."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


if __name__ == "__main__":
  app.run(main)
