"""Tests that a signal in any phase of a run saves what there is, and ends it.

The run sends itself the signal from within the phase.
"""

import importlib
import json
import signal
import threading
from unittest import mock

import jax
import orbax.checkpoint as ocp
import pytest

from experiments import language_model
from recurrent.data import bptt
from recurrent.training import checkpoint, loop, object_store
from tests.experiments.scripts import TINY, call, refused, rows

PREEMPTED = 75
FLAGS = (*TINY, "--checkpoint_every=3", "--tokenizer=byte")


def told(function, at=1, wait=False, after=False):
  """Wraps a function so that its call number `at` sends SIGTERM."""
  calls = []

  def wrapped(*args, **options):
    calls.append(args)
    found = function(*args, **options) if after else None
    if len(calls) == at:
      signal.raise_signal(signal.SIGTERM)
      if wait:
        threading.Event().wait(60)
    return found if after else function(*args, **options)

  return wrapped


# Where the signal comes, and the step that is saved (0: none).
PHASES = {
  "reading the data": (language_model.data, "load_text", {}, 0),
  "compiling the step": (language_model, "loss", {"at": 2}, 0),
  "a step": (loop, "_due", {"at": 9}, range(1, 12)),
  "waiting for a batch": (
    bptt.ContiguousBatches,
    "__getitem__",
    {"at": 7, "wait": True},
    range(1, 12),
  ),
  "an evaluation": (bptt.EvalStreams, "__getitem__", {"at": 3}, [6]),
  "saving": (
    ocp.CheckpointManager,
    "save",
    {"at": 2, "after": True},
    range(6, 12),
  ),
  "scoring the end": (loop, "fit", {"after": True}, [12]),
}


def train(folder):
  text = folder.parent / "text.txt"
  text.write_text(" ".join(str(number**2) for number in range(1000)))
  flags = (f"--workdir={folder}", f"--text_file={text}", *FLAGS)
  return call(language_model, *flags)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
  folder = tmp_path_factory.mktemp("unbroken") / "run"
  with jax.numpy_dtype_promotion("standard"):
    assert train(folder) == 0
  return json.loads((folder / "result.json").read_text()), rows(folder)


@pytest.fixture
def folder(tmp_path):
  return tmp_path / "run"


def run(folder, phase):
  where, name, options, _ = PHASES[phase]
  with mock.patch.object(where, name, told(getattr(where, name), **options)):
    return train(folder)


def resumes_exactly(folder, unbroken):
  assert train(folder) == 0
  found = json.loads((folder / "result.json").read_text())
  return (found, rows(folder)) == unbroken


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_any_phase_saves_and_says_run_me_again(
  folder, unbroken, phase, capfd
):
  code = run(folder, phase)
  err = capfd.readouterr().err
  assert code == PREEMPTED, err
  assert "run the same command again" in err and "Traceback" not in err
  saved = PHASES[phase][-1]
  steps = checkpoint.Checkpoints(folder / "checkpoints", "").steps()
  assert (steps[-1] in saved) if saved else not steps
  assert resumes_exactly(folder, unbroken)


def test_a_signal_while_a_checkpoint_is_read_sets_none_aside(folder, unbroken):
  run(folder, "a step")
  restore = ocp.PyTreeCheckpointer.restore
  with mock.patch.object(ocp.PyTreeCheckpointer, "restore", told(restore)):
    assert train(folder) == PREEMPTED
  assert not (folder / "checkpoints.damaged").exists()
  assert resumes_exactly(folder, unbroken)


def test_a_run_in_an_object_store_resumes_exactly(folder, unbroken, capfd):
  url = f"file://{folder}"
  local = folder.parent / "other"
  text = (f"--text_file={folder.parent / 'text.txt'}", *FLAGS)
  train(local)  # writes the text
  where, name, options, _ = PHASES["a step"]
  with mock.patch.object(where, name, told(getattr(where, name), **options)):
    assert call(language_model, f"--workdir={url}", *text) == PREEMPTED
  assert call(language_model, f"--workdir={url}", *text) == 0
  found = json.loads((folder / "result.json").read_text())
  assert (found, rows(folder)) == unbroken
  names = {path.name for path in folder.iterdir()}
  assert {"tokenizer.json", "figures", "checkpoints", "config.json"} <= names
  assert any(name.startswith("events") for name in names)


@pytest.mark.parametrize("script", ["evaluate", "generate", "benchmark"])
def test_a_script_that_cannot_use_a_url_says_so(
  script, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  module = importlib.import_module(f"experiments.{script}")
  refused(capsys, 2, module, "--workdir=gs://bucket/run")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("url", "said"), [("ftp://host/x", "no store"), ("gs://bucket/x", "gcsfs")]
)
def test_a_url_never_becomes_a_local_folder(
  url, said, tmp_path, monkeypatch, capsys
):
  monkeypatch.setitem(object_store.PACKAGES, "gs", "no_such_gcsfs")
  monkeypatch.chdir(tmp_path)
  flags = (f"--workdir={url}", "--smoke")
  assert said in refused(capsys, 2, language_model, *flags)
  assert not list(tmp_path.iterdir())
