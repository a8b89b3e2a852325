"""Ends a process that makes no progress, and says where it was.

A process that is stuck, in a collective that another process never joins or on
a file system that does not answer, would otherwise hold its machines for ever.
"""

import contextlib
import faulthandler
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

from recurrent.errors import PeerError

# Seconds in which the stacks are to be written; the disk may be what hangs.
WRITING = 5.0
# Python's own timer ends the process after so many times the limit, where a
# compiled function holds the interpreter's lock and no thread of Python runs.
# Its exit code is 1.
LAST_RESORT = 3


class Watchdog:
  """Context manager that ends the process if `beat` is not called for long.

  The stacks of all threads are written to stderr and to a file, and the exit
  code is 7. Time in which the process did not run, such as that of a suspended
  machine, does not count.

  Args:
    seconds: the longest time between two beats; 0: there is no limit.
    file: where to write the stacks, besides stderr.
  """

  def __init__(self, seconds: float, file: Path | None = None):
    self._seconds = seconds
    self._file = file
    self._beats = 0
    self._phase = "start-up"
    self._ended = threading.Event()

  def __enter__(self):
    if self._seconds:
      threading.Thread(target=self._watch, daemon=True).start()
    return self

  def __exit__(self, *_):
    self._ended.set()

  def beat(self, phase: str = "") -> None:
    """Notes that there was progress.

    Args:
      phase: what begins now, for the message; by default what it was before.
    """
    self._beats += 1
    self._phase = phase or self._phase

  def _watch(self):
    interval = self._seconds / 10
    seen, idle, last = self._beats, 0.0, time.monotonic()
    try:
      while not self._ended.wait(interval):
        with contextlib.suppress(OSError, ValueError, AttributeError):
          faulthandler.dump_traceback_later(
            LAST_RESORT * self._seconds, exit=True, file=sys.__stderr__
          )
        now = time.monotonic()
        # A longer time between two looks is one in which nothing ran.
        idle += min(now - last, 2 * interval)
        last = now
        if self._beats != seen:
          seen, idle = self._beats, 0.0
        elif idle > self._seconds:
          self._end(idle)
    finally:
      faulthandler.cancel_dump_traceback_later()

  def _end(self, idle):
    timer = threading.Timer(WRITING, os._exit, (PeerError.exit_code,))
    timer.daemon = True
    timer.start()
    with tempfile.TemporaryFile("w+") as stacks:
      faulthandler.dump_traceback(stacks)
      stacks.seek(0)
      text = stacks.read()
    said = (
      f"no progress for {idle:.1f} s in this phase: {self._phase}\n"
      "run the same command again; if that may take longer, with a larger"
      " `heartbeat_seconds`"
    )
    print(f"{text}\n{said}", file=sys.stderr, flush=True)
    if self._file is not None:
      with contextlib.suppress(OSError):
        self._file.write_text(f"{said}\n\n{text}")
    os._exit(PeerError.exit_code)
