"""A part of `python -m tests.training.disk`: some of the calls of one save."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.training import disk


@pytest.mark.processes
@pytest.mark.skipif(
  not sys.platform.startswith("linux") or shutil.which("cc") is None,
  reason="needs Linux and a C compiler",
)
def test_a_save_that_ends_at_any_call_leaves_the_new_step_or_the_one_before(
  tmp_path,
):
  command = [sys.executable, "-m", "tests.training.disk"]
  done = subprocess.run(
    [*command, "--every=41", "--modes=kill,disk full"],
    env=disk.environment(disk.build(tmp_path)),
    capture_output=True,
    text=True,
    timeout=300,
  )
  rows = [json.loads(line) for line in done.stdout.splitlines()]
  assert done.returncode == 0, done.stderr
  assert [row["mode"] for row in rows] == ["kill", "disk full"]
  assert all(row["tried"] == row["2"] + row["3"] >= 2 for row in rows)
