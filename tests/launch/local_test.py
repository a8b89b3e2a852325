"""Tests of the local launcher; interruption_test.py runs two processes."""

import os
import signal
import subprocess
import sys
import time

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


FAKE = """
import pathlib, sys
flag = [x for x in sys.argv if x.startswith("--workdir=")][-1]
workdir = pathlib.Path(flag.partition("=")[2])
folder = workdir / "checkpoints"
number = len(list(folder.iterdir())) + 1
(folder / str(number)).mkdir()
sys.exit(CODES[number - 1])
"""


def restart(tmp_path, codes, *flags):
  (tmp_path / "checkpoints").mkdir()
  (tmp_path / "fake.py").write_text(FAKE.replace("CODES", repr(codes)))
  return subprocess.run(
    [
      *(sys.executable, "-m", "launch.local", "--processes=1", *flags),
      *("--", "fake", f"--workdir={tmp_path}"),
    ],
    env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.getcwd()}"},
    capture_output=True,
    text=True,
    check=False,
  )


def test_a_preempted_run_is_started_again_by_the_same_command(tmp_path):
  done = restart(tmp_path, [75, 75, 75, 0], "--restart", "--retries=0")
  assert done.returncode == 0, done.stderr
  assert len(list((tmp_path / "checkpoints").iterdir())) == 4


def test_nothing_is_started_again_unless_it_is_asked_for(tmp_path):
  assert restart(tmp_path, [75, 0]).returncode == 75


def test_failures_are_told_apart_from_preemptions(tmp_path):
  done = restart(tmp_path, [75, 3, 0], "--restart", "--retries=0")
  assert done.returncode == 3
  assert "failure 1 since the checkpoint of step 2 (exit code 3)" in done.stderr


def test_a_failure_counts_though_another_process_has_saved():
  assert (
    local.wait(processes("raise SystemExit(75)", "raise SystemExit(3)")) == 3
  )


def test_a_signal_is_forwarded_once_to_every_process(tmp_path):
  program = (
    "import pathlib, signal, sys, time\n"
    "def save(*_):\n"
    "  signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
    "  time.sleep(0.3)\n"
    "  sys.exit(75)\n"
    "signal.signal(signal.SIGTERM, save)\n"
    f"pathlib.Path({str(tmp_path)!r}, str(__import__('os').getpid())).touch()\n"
    "time.sleep(60)\n"
  )
  running = processes(program, program)
  end = time.monotonic() + 30
  while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < end:
    time.sleep(0.02)
  signals = [signal.SIGTERM]
  assert local.wait(running, signals=signals) == 75
  assert [process.returncode for process in running] == [75, 75]
  assert signals == []
