"""Runs an experiment as several processes of this machine.

  python -m launch.local --processes=2 -- experiments.language_model \
      --workdir=runs/pydoc

Each process gets the same flags, and its own number. A SIGTERM, SIGINT or
SIGHUP is forwarded to all of them. If one process fails, the others are killed
some seconds later, since they would wait for it; if one has saved and stopped,
they get a minute to do so. The exit code is the first one that is not zero.
"""

import math
import os
import signal
import socket
import subprocess
import sys
import time

from absl import app, flags

PROCESSES = flags.DEFINE_integer(
  "processes", 2, "how many processes", lower_bound=1
)
PORT = flags.DEFINE_integer("port", 0, "of process 0; 0: one that is free")

PREEMPTED = 75  # exit code of a process that was told to stop and has saved
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
  # Each process has a session of its own; otherwise a Ctrl-C would reach it
  # twice, from the terminal and from `forward`.
  running = [
    subprocess.Popen(command, env=environment, start_new_session=True)
    for command in commands(
      arguments, PROCESSES.value, PORT.value or free_port()
    )
  ]

  def forward(number, frame):
    del frame
    for process in running:
      process.send_signal(number)

  signal.signal(signal.SIGTERM, forward)
  signal.signal(signal.SIGINT, forward)
  signal.signal(signal.SIGHUP, lambda _, frame: forward(signal.SIGTERM, frame))
  return wait(running)


def wait(
  running: list[subprocess.Popen], grace: float = GRACE, saving: float = SAVING
) -> int:
  """Waits for all processes, and kills the others when one has failed.

  Args:
    running: the processes.
    grace: seconds in which the others may end by themselves.
    saving: the same, after the first one that has saved and stopped.

  Returns:
    The first exit code that is not zero, or 0. A process that was killed by
    signal N has the code 128 + N, as in a shell.
  """
  found, deadline = 0, math.inf
  waiting = list(running)
  while waiting:
    for process in list(waiting):
      code = process.poll()
      if code is None:
        continue
      waiting.remove(process)
      found = found or (128 - code if code < 0 else code)
      if code:
        allowed = saving if code == PREEMPTED else grace
        deadline = min(deadline, time.monotonic() + allowed)
    if time.monotonic() > deadline:
      for process in waiting:
        process.kill()
    time.sleep(0.05)
  return found


def free_port() -> int:
  """Returns a free TCP port of this machine."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


if __name__ == "__main__":
  app.run(main)
