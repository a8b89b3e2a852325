"""Faults of the machine and of other processes (see tests/faults.py).

Those that take long run under `make faults` only.
"""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import pytest

from experiments import language_model
from recurrent.training import checkpoint, loop
from tests.experiments.phases_test import (
  FLAGS,
  PREEMPTED,
  folder,
  resumes_exactly,
  told,
  train,
  unbroken,
)
from tests.experiments.scripts import TINY, call, refused, start

__all__ = ["folder", "unbroken"]  # fixtures

# Orbax leaves coroutines of saves that fail to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"
)

slow = pytest.mark.skipif(
  "RECURRENT_ALL_FAULTS" not in os.environ, reason="runs in `make faults`"
)


def test_a_run_that_is_stopped_every_few_steps_ends_with_the_same_bits(
  folder, unbroken
):
  codes = []
  while 0 not in codes[-1:]:
    assert len(codes) < 20
    # Each session makes some steps and meets another phase of the loop.
    with mock.patch.object(loop, "_due", told(loop._due, at=7)):
      codes.append(train(folder))
  assert codes.count(PREEMPTED) >= 3
  assert resumes_exactly(folder, unbroken)


@pytest.mark.processes
def test_a_second_signal_during_the_last_save_loses_no_earlier_step(tmp_path):
  flags = (f"--workdir={tmp_path}", *TINY, "--steps=100000")
  process = start("experiments.language_model", *flags, "--checkpoint_every=20")
  saved = tmp_path / "checkpoints"
  while not (saved / "20").is_dir():
    assert process.poll() is None
    time.sleep(0.01)
  process.terminate()
  time.sleep(0.02)
  process.terminate()
  _, err = process.communicate(timeout=60)
  assert process.returncode in (PREEMPTED, -signal.SIGTERM), err
  assert "Traceback" not in err
  again = call(language_model, *flags[:-1], "--steps=20")
  assert again == 0 and not list(saved.parent.glob("*.damaged"))


@pytest.mark.parametrize(
  "jump",
  [3600, -3600, -time.time()],
  ids=["an hour", "an hour back", "to 1970"],
)
def test_a_clock_that_jumps_loses_nothing(folder, unbroken, jump):
  clock, ticks = time.time, itertools.count()
  jumping = lambda: clock() + jump * (next(ticks) // 50 % 2)
  with mock.patch("time.time", jumping):
    # Orbax may take the jump for a save that hangs, and then the run ends.
    assert train(folder) in (0, 5)
  assert resumes_exactly(folder, unbroken)


@pytest.mark.parametrize("kind", ["absent", "empty", "a file", "dangling"])
def test_a_run_to_begin_with_that_is_none_is_refused(tmp_path, capsys, kind):
  source = tmp_path / "source"
  if kind == "empty":
    source.mkdir()
  elif kind == "a file":
    source.write_text("x")
  elif kind == "dangling":
    source.symlink_to(tmp_path / "nothing")
  said = refused(
    capsys,
    4,
    language_model,
    f"--workdir={tmp_path / 'run'}",
    f"--init_from={source}",
    *TINY,
  )
  assert "holds no checkpoint" in said
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  "name", ["../x", "-rf", "a b;c", "$(touch evil)", "ü\u0430\u202e", "x" * 200]
)
def test_a_workdir_of_any_name_is_that_folder_and_nothing_else(
  tmp_path, monkeypatch, name
):
  (tmp_path / "here").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  assert call(language_model, f"--workdir={name}", *TINY, "--smoke") == 0
  place = os.path.normpath(tmp_path / "here" / name)
  assert os.path.isdir(place)
  found = [*os.scandir(tmp_path), *os.scandir(tmp_path / "here")]
  assert {e.path for e in found} == {str(tmp_path / "here"), place}


def test_a_name_that_no_folder_can_have_is_refused(tmp_path, capsys):
  flags = (f"--workdir={tmp_path}/{'x' * 300}", *TINY)
  refused(capsys, 5, language_model, *flags)


@pytest.mark.processes
def test_a_bare_environment_and_a_closed_stdout_change_nothing(tmp_path):
  command = [sys.executable, "-m", "experiments.language_model"]
  keep = ("JAX_PLATFORMS", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "PATH")
  keep += ("PYTHONPATH", "RECURRENT_CACHE")
  environment = {k: os.environ[k] for k in keep if k in os.environ}
  process = subprocess.Popen(
    [*command, f"--workdir={tmp_path / 'run'}", *FLAGS],
    env={**environment, "LC_ALL": "C"},
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    umask=0o077,
  )
  process.stdout.close()
  with process.stderr:
    err = process.stderr.read().decode()
  assert process.wait(timeout=120) == 0, err
  assert "Traceback" not in err
  assert (tmp_path / "run" / "result.json").stat().st_mode & 0o077 == 0


# Several processes, without a launcher that would end the others.


def peers(workdir, *flags, count=2, own=()):
  """Starts the processes of a run; `own` are more flags of the last one."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  common = (f"--workdir={workdir}", *TINY, "--steps=100000", *flags)
  return [
    start(
      "experiments.language_model",
      *common,
      f"--coordinator=127.0.0.1:{port}",
      f"--processes={count}",
      f"--process={number}",
      *(own if number == count - 1 else ()),
      env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
    )
    for number in range(count)
  ]


@contextlib.contextmanager
def running(processes, workdir):
  """Waits for the first step that is saved; ends what is left at the end."""
  try:
    saved = workdir / "checkpoints"
    while not (saved.is_dir() and checkpoint.Checkpoints(saved, "").steps()):
      assert all(process.poll() is None for process in processes)
      time.sleep(0.05)
    yield
  finally:
    for process in processes:
      if process.poll() is None:
        process.kill()
      process.communicate()


def goes_on(workdir):
  """Whether one process can go on from what the others have left."""
  step = checkpoint.Checkpoints(workdir / "checkpoints", "").steps()[-1]
  flags = (f"--workdir={workdir}", *TINY, f"--steps={step + 10}")
  return call(language_model, *flags) == 0


@pytest.mark.processes
@pytest.mark.parametrize(
  "victim", [1, pytest.param(0, marks=slow)], ids=["worker", "coordinator"]
)
def test_a_process_that_is_killed_ends_the_others(tmp_path, victim):
  processes = peers(tmp_path)
  with running(processes, tmp_path):
    processes[victim].kill()
    code = processes[1 - victim].wait(timeout=60)
  # JAX itself aborts a process that learns of it from the coordinator, or of
  # the coordinator's end.
  assert code in (7, -signal.SIGABRT)
  assert goes_on(tmp_path)


@slow
@pytest.mark.processes
def test_in_a_run_of_four_all_others_end(tmp_path):
  processes = peers(tmp_path, count=4)
  with running(processes, tmp_path):
    processes[2].kill()
    for process in (processes[0], processes[1], processes[3]):
      assert process.wait(timeout=60) in (7, -signal.SIGABRT)
  assert goes_on(tmp_path)


@slow
@pytest.mark.processes
def test_a_process_that_is_stuck_ends_the_others(tmp_path):
  processes = peers(tmp_path, "--heartbeat_seconds=8")
  with running(processes, tmp_path):
    processes[1].send_signal(signal.SIGSTOP)
    assert processes[0].wait(timeout=30) == 7
    assert "most recent call first" in processes[0].stderr.read()
    assert (tmp_path / "hang.0.txt").exists()
  assert goes_on(tmp_path)


@pytest.mark.processes
def test_processes_of_other_flags_all_end(tmp_path):
  processes = peers(tmp_path, own=("--learning_rate=0.1",))
  for process in processes:
    _, err = process.communicate(timeout=90)
    assert process.returncode == 2, err
    assert "not those of process 0" in err and "Traceback" not in err


@slow
@pytest.mark.processes
def test_a_process_without_its_data_ends_the_others(tmp_path):
  processes = peers(tmp_path, own=("--text_file=/nowhere",))
  codes = []
  for process in reversed(processes):
    _, err = process.communicate(timeout=90)
    codes.append(process.returncode)
  assert codes[0] == 3 and codes[1] != 0


@slow
@pytest.mark.processes
def test_a_process_whose_peer_never_starts_gives_up(tmp_path):
  code = (
    "import sys; from experiments import language_model as script, runner\n"
    "runner.JOINING = 5\n"
    "runner.main(script.run, script.Config)"
  )
  flags = ["--coordinator=127.0.0.1:1", "--processes=2", "--process=1"]
  done = subprocess.run(
    [sys.executable, "-c", code, f"--workdir={tmp_path}", *flags],
    capture_output=True,
    text=True,
    timeout=90,
  )
  # The client of JAX's service aborts the process where it cannot connect.
  assert done.returncode in (7, -signal.SIGABRT)
  assert "DEADLINE_EXCEEDED" in done.stderr or "cannot join" in done.stderr


def test_processes_restore_the_last_step_that_all_of_them_see(monkeypatch):
  seen = [[2, 4, 6], [2, 4], list(range(0, 40, 2))]

  def gather(own):
    rows = np.full((len(seen), len(own)), -1)
    for row, steps in zip(rows, seen, strict=True):
      newest = steps[-len(own) :]
      row[: len(newest)] = newest
    assert own.tolist() == rows[0].tolist()
    return rows

  monkeypatch.setattr(checkpoint.jax, "process_count", lambda: len(seen))
  monkeypatch.setattr(checkpoint.multihost_utils, "process_allgather", gather)
  assert checkpoint._common(seen[0]) == []
  seen[2] = [0, 2, 4, 8]
  assert checkpoint._common(seen[0]) == [2, 4]
