"""The local launcher; two real processes: interruption_test.py."""

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
