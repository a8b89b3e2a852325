"""Tests of the local launcher; interruption_test.py runs two processes."""

import signal
import subprocess
import sys

from launch import local


def test_every_process_gets_the_same_flags_and_who_it_is():
  found = local.commands(["experiments.x", "--prompt=a b;c"], 2, 1234)
  same = [sys.executable, "-m", "experiments.x", "--prompt=a b;c"]
  same += ["--coordinator=127.0.0.1:1234", "--processes=2"]
  assert found == [[*same, "--process=0"], [*same, "--process=1"]]


def test_nothing_to_run_is_an_error_with_a_remedy():
  done = subprocess.run(
    [sys.executable, "-m", "launch.local"], capture_output=True, text=True
  )
  assert done.returncode == 2
  assert "experiments.language_model" in done.stderr
  assert "Traceback" not in done.stderr


def processes(*programs):
  return [subprocess.Popen([sys.executable, "-c", p]) for p in programs]


def test_one_process_that_ends_badly_ends_the_others():
  running = processes("raise SystemExit(5)", "import time; time.sleep(600)")
  assert local.wait(running, grace=0.1) == 5
  assert running[1].returncode == -signal.SIGKILL


def test_others_that_end_by_themselves_do_not_change_the_exit_code():
  later = "import time; time.sleep(0.5); raise SystemExit(3)"
  assert local.wait(processes("raise SystemExit(5)", later)) == 5


def test_a_process_that_has_saved_waits_for_the_others_to_do_so():
  later = "import time; time.sleep(0.5); raise SystemExit(75)"
  running = processes("raise SystemExit(75)", later)
  assert local.wait(running, grace=0.0) == 75
  assert running[1].returncode == 75


def test_a_process_that_never_saves_does_not_keep_the_others():
  running = processes("raise SystemExit(75)", "import time; time.sleep(600)")
  assert local.wait(running, saving=0.1) == 75
  assert running[1].returncode == -signal.SIGKILL


def test_a_signal_that_ended_a_process_is_told_as_shells_do():
  code = "import os; os.kill(os.getpid(), 9)"
  assert local.wait(processes(code, code)) == 128 + 9
