"""A workdir belongs to one live run and to one configuration."""

import json
import os
import subprocess
import sys

import pytest

from recurrent.errors import ConfigError, WorkdirError
from recurrent.training import writers
from recurrent.training.workdir import Workdir, fingerprint, read_config


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
    "  --features: 8 in the workdir, 9 in this command",
    "  --tied: (not there) in the workdir, True in this command",
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
  with pytest.raises(WorkdirError, match="cannot write to --workdir"):
    Workdir(tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_workdir_is_an_error_not_a_traceback(tmp_path):
  tmp_path.chmod(0o500)
  with pytest.raises(WorkdirError, match="cannot write to --workdir"):
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
