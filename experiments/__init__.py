"""Experiments: scripts to run as `python -m experiments.NAME --help`."""

import os
import signal
import sys


def _stop_at_start(*_):
  """Ends a script that is told to stop while Python still imports modules.

  The exit code is that of `recurrent.errors.Preempted`, which is not imported
  yet: nothing was done that could be lost, and the command is to be run again.
  """
  os.write(2, b"told to stop at the start: nothing to save\n")
  os._exit(75)


# Python puts "-m" there while it looks for the module of `python -m`. A SIGTERM
# that the user has told the process to ignore stays ignored.
if (
  sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
):
  signal.signal(signal.SIGTERM, _stop_at_start)
