"""Tests of signals before there is anything to save, and after."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from recurrent.errors import Preempted
from recurrent.training.preemption import Preemption

NUMBERS = [signal.SIGTERM, signal.SIGINT]


@pytest.mark.parametrize("number", NUMBERS)
def test_with_nothing_to_save_a_signal_ends_the_context_at_once(number):
  before = signal.getsignal(number)
  with pytest.raises(Preempted, match="nothing to save"):
    with Preemption():
      try:
        os.kill(os.getpid(), number)
        threading.Event().wait(60)
      except Exception:  # What reads a damaged file must not swallow it.
        raise AssertionError from None
  assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", NUMBERS)
def test_with_something_to_save_a_signal_is_seen_at_the_next_poll(number):
  with Preemption() as preemption:
    preemption.hold()
    assert not preemption.agreed() and not preemption.caught
    os.kill(os.getpid(), number)
    assert preemption.caught and preemption.agreed() and preemption.agreed()


def test_the_context_leaves_no_thread_and_no_pipe():
  files = len(os.listdir("/proc/self/fd"))
  for _ in range(5):
    with Preemption():
      pass
  for thread in threading.enumerate():
    if thread.name == "signals":
      thread.join(10)
      assert not thread.is_alive()
  assert len(os.listdir("/proc/self/fd")) <= files


@pytest.mark.processes
def test_a_process_that_waits_in_compiled_code_ends_too():
  # A mutex that is locked twice: no handler of Python runs any more.
  code = (
    "import ctypes\n"
    "from recurrent.training.preemption import Preemption\n"
    "with Preemption():\n"
    "  print('in', flush=True)\n"
    "  mutex = ctypes.create_string_buffer(64)\n"
    "  for _ in range(2):\n"
    "    ctypes.CDLL(None).pthread_mutex_lock(mutex)\n"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", code],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "in\n"
  time.sleep(1)  # Until then it waits for the mutex.
  process.terminate()
  _, err = process.communicate(timeout=60)
  assert process.returncode == 75
  assert "nothing to save" in err and "Traceback" not in err
