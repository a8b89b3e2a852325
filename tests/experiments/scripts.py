"""Helpers that run a script in this process or in a process of its own."""

import json
import subprocess
import sys
from unittest import mock

from experiments import runner

TINY = (
  "--features=16",
  "--embedding_features=8",
  "--seq_len=16",
  "--batch_size=8",
  "--steps=12",
  "--log_every=3",
  "--eval_every=6",
  "--eval_rows=2",
  "--warmup_steps=2",
)


def call(module, *flags):
  """Runs a script's `main` in this process.

  Returns:
    Its exit code; what it prints is left to `capsys`.
  """
  argv = [module.__name__, *map(str, flags)]
  with mock.patch.object(sys, "argv", argv):
    try:
      runner.main(module.run, module.Config)
    except SystemExit as stop:
      return stop.code
  return 0


def refused(capsys, code, module, *flags):
  """Asserts that a script exits with `code` and two or more plain lines.

  Returns:
    What it printed on stderr.
  """
  assert call(module, *flags) == code
  printed = capsys.readouterr()
  assert "Traceback" not in printed.err
  assert len(printed.err.strip().splitlines()) >= 2, printed.err
  assert printed.out == ""
  return printed.err


def start(name, *flags, **popen):
  """Starts `python -m NAME` as a process of its own."""
  return subprocess.Popen(
    [sys.executable, "-m", name, *map(str, flags)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **popen,
  )


def result(out):
  """The JSON object in the last line of stdout."""
  return json.loads(out.strip().splitlines()[-1])


def rows(workdir):
  """All rows of a run's metrics.jsonl."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]
