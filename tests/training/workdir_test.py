"""Tests that a workdir admits one running process and one configuration."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys

import pytest

from recurrent.errors import ConfigError, WorkdirError
from recurrent.training import writers
from recurrent.training.workdir import (
  Workdir,
  fingerprint,
  full_disks,
  read_config,
)


def test_the_same_configuration_is_let_in_again(tmp_path):
  for _ in range(2):
    with Workdir(tmp_path / "run") as workdir:
      workdir.claim({"features": 8}, {"device": "cpu"})
  assert json.loads((tmp_path / "run" / "config.json").read_text()) == {
    "config": {"features": 8},
    "device": "cpu",
  }


def test_another_configuration_is_refused_with_what_differs(tmp_path):
  with Workdir(tmp_path) as workdir:
    workdir.claim({"features": 8, "cell": "gru"}, {})
  with Workdir(tmp_path) as workdir, pytest.raises(ConfigError) as error:
    workdir.claim({"features": 9, "cell": "gru", "tied": True}, {})
  assert error.value.cause.splitlines()[1:] == [
    "  `features`: 8 in the workdir, 9 in this command",
    "  `tied`: (not there) in the workdir, True in this command",
  ]
  assert error.value.exit_code == 2


def test_a_live_run_keeps_others_out_and_a_dead_one_does_not(tmp_path):
  code = (
    "import sys, time\n"
    "from recurrent.training.workdir import Workdir\n"
    f"workdir = Workdir({str(tmp_path)!r})\n"
    "print('in', flush=True)\n"
    "time.sleep(60)\n"
  )
  holder = subprocess.Popen(
    [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
  )
  try:
    assert holder.stdout.readline() == "in\n"
    with pytest.raises(WorkdirError, match=f"in use.*pid {holder.pid}"):
      Workdir(tmp_path)
  finally:
    holder.kill()
    holder.wait()
    holder.stdout.close()
  Workdir(tmp_path).close()


def test_a_file_in_place_of_the_workdir_is_an_error_not_a_traceback(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(WorkdirError, match="cannot write to `workdir="):
    Workdir(tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_workdir_is_an_error_not_a_traceback(tmp_path):
  tmp_path.chmod(0o500)
  with pytest.raises(WorkdirError, match="cannot write to `workdir="):
    Workdir(tmp_path / "run")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_broken_config_file_is_an_error_not_a_traceback(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(WorkdirError, match=r"cannot read .*config\.json"):
    read_config(tmp_path)


def test_equal_configurations_have_equal_fingerprints():
  assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
  assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_rows_after_the_resumed_step_and_half_rows_are_dropped(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\n{"step": 2, "x": 0.5}\n{"step": 3}\n{"ste')
  with writers.MetricsWriter(tmp_path, 2) as writer:
    writer.write(4, {"x": float("nan")})
  assert path.read_text() == (
    '{"step": 1}\n{"step": 2, "x": 0.5}\n{"step": 4, "x": null}\n'
  )


def test_a_full_disk_is_an_error_of_the_workdir_and_other_errors_are_not():
  with pytest.raises(WorkdirError, match="run: No space left on device"):
    with full_disks("run"):
      raise OSError(errno.ENOSPC, "No space left on device")
  with pytest.raises(FileNotFoundError), full_disks("run"):
    raise FileNotFoundError(errno.ENOENT, "missing")


def test_a_disk_that_is_full_at_a_row_is_an_error_and_no_hang(tmp_path):
  limit = resource.getrlimit(resource.RLIMIT_FSIZE)
  old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  try:
    with pytest.raises(WorkdirError), full_disks(tmp_path):
      with writers.MetricsWriter(tmp_path, 0) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
        for step in range(1000):
          writer.write(step, {"loss": 1.0})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    signal.signal(signal.SIGXFSZ, old)
  assert writers.read(tmp_path / "metrics.jsonl")[0] == {"step": 0, "loss": 1.0}


def test_the_events_can_be_read_back(tmp_path):
  with writers.MetricsWriter(tmp_path, 4) as writer:
    writer.write(5, {"loss": 1.5})
    writer.text(6, "sample", "words")
  (path,) = tmp_path.glob("events.out.tfevents.*")
  content = path.read_bytes()
  assert b"loss" in content and b"words" in content


def test_rows_that_are_to_be_written_again_are_dropped(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 4, "loss": 1}\n{"step": 4, "valid": 2}\n')
  with writers.MetricsWriter(tmp_path, 4, lambda row: "valid" not in row):
    pass
  assert path.read_text() == '{"step": 4, "loss": 1}\n'
