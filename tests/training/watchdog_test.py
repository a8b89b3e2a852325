"""Tests that a process which makes no progress ends, and says where it was."""

import os
import signal
import subprocess
import sys
import time

import pytest

START = """
import ctypes, sys, time
from pathlib import Path
from recurrent.training.watchdog import Watchdog
file = Path(sys.argv[1])

def stuck_here():
  time.sleep(60)

"""


def start(tmp_path, code):
  return subprocess.Popen(
    [sys.executable, "-c", START + code, str(tmp_path / "hang.txt")],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.processes
def test_a_process_that_hangs_says_where_and_ends(tmp_path):
  process = start(
    tmp_path,
    "with Watchdog(0.5, file) as dog:\n  dog.beat('reading')\n  stuck_here()",
  )
  _, err = process.communicate(timeout=60)
  assert process.returncode == 7
  for text in (err, (tmp_path / "hang.txt").read_text()):
    assert "in this phase: reading" in text
    assert "in stuck_here" in text


@pytest.mark.processes
def test_the_stacks_are_shown_where_they_cannot_be_written(tmp_path):
  code = "with Watchdog(0.5, file / 'no' / 'folder'):\n  stuck_here()"
  process = start(tmp_path, code)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 7 and "in stuck_here" in err


@pytest.mark.processes
def test_a_process_that_holds_the_interpreter_ends_too(tmp_path):
  # PyDLL keeps the lock of the interpreter, so no thread of Python runs.
  process = start(
    tmp_path,
    "with Watchdog(0.5, file):\n"
    "  time.sleep(0.2)\n"
    "  ctypes.PyDLL(None).sleep(60)",
  )
  _, err = process.communicate(timeout=60)
  assert process.returncode == 1
  assert "Timeout" in err and "most recent call first" in err


@pytest.mark.processes
def test_progress_and_the_end_of_the_context_keep_it_alive(tmp_path):
  process = start(
    tmp_path,
    "with Watchdog(0.5, file) as dog:\n"
    "  for _ in range(20):\n"
    "    time.sleep(0.05); dog.beat()\n"
    "time.sleep(2)",
  )
  process.communicate(timeout=60)
  assert process.returncode == 0 and not (tmp_path / "hang.txt").exists()


@pytest.mark.processes
def test_a_process_that_was_stopped_may_go_on(tmp_path):
  process = start(
    tmp_path,
    "with Watchdog(2, file) as dog:\n"
    "  print('in', flush=True)\n"
    "  for _ in range(20):\n"
    "    time.sleep(0.05); dog.beat()\n",
  )
  assert process.stdout.readline() == "in\n"
  time.sleep(0.3)
  os.kill(process.pid, signal.SIGSTOP)
  time.sleep(3)
  os.kill(process.pid, signal.SIGCONT)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 0, err
