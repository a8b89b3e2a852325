"""Tests of the runner, with a tiny experiment that is called from Python."""

import contextlib
import dataclasses
import functools
import json
import logging
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import types

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import evaluate, language_model, runner
from recurrent import errors
from recurrent.errors import ConfigError, Preempted
from recurrent.metrics import Mean
from recurrent.training import checkpoint, digest, feed, step
from tests.experiments.scripts import rows


@dataclasses.dataclass(frozen=True)
class Config(runner.TrainConfig):
  """Flags of the toy.

  Args:
    noisy: whether the model has dropout and batch normalisation.
  """

  noisy: bool = True
  steps: int = 8
  batch_size: int = 8
  log_every: int = 3
  eval_every: int = 4
  learning_rate: float = 0.05


class Model(nnx.Module):
  """A line, with layers that have variables of their own."""

  def __init__(self, noisy, rngs):
    self.linear = nnx.Linear(3, 3, rngs=rngs)
    self.norm = nnx.BatchNorm(3, rngs=rngs) if noisy else None
    self.dropout = nnx.Dropout(0.5, rngs=rngs) if noisy else None

  def __call__(self, inputs):
    outputs = self.linear(inputs)
    if self.norm is not None:
      outputs = self.dropout(self.norm(outputs))
    return outputs.sum(-1)


class Batches:
  """Inputs drawn from the step, whose sum is to be found."""

  def __init__(self, rows):
    self._rows = rows

  def __getitem__(self, step):
    inputs = np.random.default_rng(step).normal(2, 3, (self._rows, 3))
    inputs = inputs.astype(np.float32)
    return {"inputs": inputs, "targets": inputs.sum(-1)}


def measure(model, batch, key):
  return {"squares": Mean.of((model(batch["inputs"]) - batch["targets"]) ** 2)}


loss = step.loss_of(measure, "squares")


def make_task(config):
  return runner.Task(
    name="toy",
    make_model=lambda rngs: Model(config.noisy, rngs),
    loss=loss,
    batches=Batches(config.batch_size),
    splits={"valid": [Batches(64)[10**6]], "test": [Batches(64)[10**7]]},
    objective="valid_squares",
    data_sha256="drawn",
  )


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
  """Registers the toy as an experiment that `evaluate` finds."""
  toy = types.ModuleType("experiments.toy")
  toy.Config, toy.make_task = Config, make_task
  monkeypatch.setitem(sys.modules, "experiments.toy", toy)
  monkeypatch.setattr(runner.figures, "curves", lambda *_: "not drawn")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
  """Result, rows and workdir of a run that nothing interrupts."""
  path = tmp_path_factory.mktemp("unbroken")
  with as_users_have_it():
    return train(path), rows(path), path


@contextlib.contextmanager
def as_users_have_it():
  """JAX's default promotion of dtypes and ranks, for any thread or scope."""
  with (
    jax.numpy_dtype_promotion("standard"),
    jax.numpy_rank_promotion("allow"),
  ):
    yield


def train(workdir, make=make_task, **values):
  return runner.train(Config(workdir=str(workdir), **values), make)


def stopping(where, number=signal.SIGTERM):
  """A toy that is sent a signal in its `where`-th evaluation."""
  asked = []

  class Stopping(list):
    def __iter__(self):
      asked.append(self)
      if len(asked) == where:
        os.kill(os.getpid(), number)
      return super().__iter__()

  def make(config):
    task = make_task(config)
    splits = {name: Stopping(split) for name, split in task.splits.items()}
    return task._replace(splits=splits)

  return make


def loaded(workdir):
  """Step and digest of what `evaluate` and `generate` load."""
  config = runner.read_config(workdir, "toy", Config)
  _, evaluated, step = runner.load_params(config, make_task(config).make_model)
  params = nnx.as_pure(
    nnx.split(Model(config.noisy, nnx.Rngs(0)), nnx.Param, ...)[1]
  )
  kept = digest.flatten(params).keys()
  flat = digest.flatten(evaluated)
  return step, {path: np.asarray(flat[path]) for path in kept}


def agree(workdir, result):
  """Whether `evaluate` loads what the result is about."""
  step, params = loaded(workdir)
  scores = evaluate.run(evaluate.Config(workdir=str(workdir), split="valid"))
  assert scores["valid_squares"] == pytest.approx(
    result["valid_squares"], rel=1e-6
  )
  assert digest.tree_sha256(params) == result["params_sha256"]
  return step == result["step"]


@pytest.mark.parametrize("where", [1, 2, 3, 4])
def test_a_signal_in_any_evaluation_leaves_no_trace(tmp_path, unbroken, where):
  # In training at 4 and at 8, then of the result's two splits.
  with pytest.raises(Preempted):
    train(tmp_path, stopping(where))
  assert train(tmp_path) == unbroken[0]
  assert rows(tmp_path) == unbroken[1]
  assert agree(tmp_path, unbroken[0])


def test_a_crash_after_an_evaluation_that_was_made_up_for(tmp_path, unbroken):
  with pytest.raises(Preempted):
    train(tmp_path, stopping(1))

  def crash(config):
    task = make_task(config)
    sample = lambda graphdef: lambda params, step: 1 // 0
    return task._replace(make_sample=sample)

  for _ in range(2):
    with pytest.raises(ZeroDivisionError):
      train(tmp_path, crash)
  assert train(tmp_path) == unbroken[0]
  assert rows(tmp_path) == unbroken[1]


def test_a_longer_run_has_no_result_until_its_end(tmp_path):
  train(tmp_path)
  with pytest.raises(Preempted):
    train(tmp_path, stopping(1), steps=12)
  assert not (tmp_path / "result.json").exists()
  longer = train(tmp_path, steps=12)
  assert longer["last_step"] == 12
  assert agree(tmp_path, longer)


@pytest.mark.parametrize("steps", [2, 4, 5, 8])
def test_fewer_steps_than_were_taken_end_with_a_result(
  tmp_path, steps, caplog, monkeypatch
):
  # No batch is read ahead, so that the signal comes at the fifth step.
  source = functools.partial(feed.Feed, ahead=0)
  monkeypatch.setattr(runner.loop, "Feed", source)

  def stop_at_5(config):
    class Stopping(Batches):
      def __getitem__(self, step):
        if step == 4:
          os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(step)

    return make_task(config)._replace(batches=Stopping(config.batch_size))

  with pytest.raises(Preempted, match="step 5"):
    train(tmp_path, stop_at_5)
  result = train(tmp_path, steps=steps)
  assert result["last_step"] == max(steps, 5)
  assert ("no steps are left" in caplog.text) == (steps <= 5)
  assert agree(tmp_path, result)
  assert train(tmp_path, steps=steps) == result


def test_statistics_and_draws_are_resumed_exactly(tmp_path, unbroken):
  with pytest.raises(Preempted):
    train(tmp_path, stopping(1))
  train(tmp_path)
  found = digests(tmp_path, 8)
  assert found == digests(unbroken[2], 8)
  before = digests(tmp_path, 4)
  for name in ("norm/mean", "dropout/rngs/count"):
    assert found[f"variables/{name}"] != before[f"variables/{name}"]


def digests(workdir, step):
  """Of the arrays of a checkpoint, by path."""
  about = workdir / "checkpoints" / str(step) / "about" / "metadata"
  return json.loads(about.read_text())["digests"]


def test_evaluation_draws_nothing_and_takes_the_mean_statistics(tmp_path):
  result = train(tmp_path)
  for _ in range(2):  # dropout would give other numbers each time
    assert agree(tmp_path, result)
  config = runner.read_config(tmp_path, "toy", Config)
  graphdef, evaluated, _ = runner.load_params(
    config, make_task(config).make_model
  )
  model = nnx.merge(graphdef, evaluated)
  assert model.dropout.deterministic and model.norm.use_running_average
  assert not np.allclose(model.norm.mean[...], 0)


def test_a_row_is_whatever_the_task_describes(tmp_path):
  def describe(split, scores):
    if split == "train":
      return {"train_squares": scores.means["squares"], "scale": "log"}
    sums = np.concatenate(scores.predictions["sum"])
    assert sums.shape == (64,)
    return {
      f"{split}_squares": scores.means["squares"],
      f"{split}_about": {"largest": np.float32(sums.max()), "bad": math.nan},
    }

  def make(config):
    predict = lambda model, batch: {"sum": model(batch["inputs"])[:, None]}
    return make_task(config)._replace(describe=describe, predict=predict)

  result = train(tmp_path, make)
  assert result["test_about"]["largest"] > 0
  assert result["test_about"]["bad"] is None
  found = rows(tmp_path)
  assert {row["scale"] for row in found if "scale" in row} == {"log"}
  assert json.loads((tmp_path / "result.json").read_text()) == result


def test_a_split_that_a_task_lacks_is_named(tmp_path):
  train(tmp_path)
  with pytest.raises(ConfigError, match="toy has no train split"):
    evaluate.run(evaluate.Config(str(tmp_path), split="train"))


def test_a_task_that_is_not_named_as_its_module_is_refused(tmp_path):
  def make(config):
    return make_task(config)._replace(name="other")

  make.__module__ = "experiments.toy"
  with pytest.raises(ConfigError, match="'other', but its module is.*toy"):
    train(tmp_path / "run", make)
  assert not (tmp_path / "run").exists()


def test_without_a_workdir_nothing_is_written(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for run, config in [
    (language_model.run, language_model.Config(smoke=True)),
    (evaluate.run, evaluate.Config()),
  ]:
    with pytest.raises(ConfigError, match="--workdir is missing"):
      run(config)
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
  ("values", "words"),
  [
    ({"cell": "LSTM"}, "--cell=LSTM is unknown\ndid you mean --cell=lstm"),
    ({"steps": 0}, "--steps=0 is out of range"),
    ({"steps": 1e3}, "--steps=1000.0 is a float"),
    ({"learning_rate": "high"}, "--learning_rate='high' is a str"),
    ({"vocab_size": 100}, "--vocab_size does nothing"),
    ({"remat": "gate"}, "use a whole number or gates"),
  ],
  ids=str,
)
def test_a_configuration_built_in_python_is_checked_too(
  tmp_path, values, words
):
  config = language_model.Config(workdir=str(tmp_path / "run"), **values)
  with pytest.raises(ConfigError) as error:
    language_model.run(config)
  assert words in str(error.value)
  assert not (tmp_path / "run").exists()


def test_an_error_says_its_remedy_and_survives_pickling():
  error = errors.DataError("no data", "get some")
  assert str(error) == "no data\nget some"
  again = pickle.loads(pickle.dumps(error))
  assert (again.cause, again.remedy) == ("no data", "get some")


def test_another_thread_can_train(tmp_path, unbroken):
  found = []

  def target():
    with as_users_have_it():
      found.append(train(tmp_path))

  thread = threading.Thread(target=target)
  thread.start()
  thread.join()
  assert found == [unbroken[0]]


def test_the_advice_at_the_end_is_a_command_that_works_from_python_too(
  tmp_path, capsys
):
  train(tmp_path, noisy=False)
  said = capsys.readouterr().err
  command = f"python -m experiments.toy --workdir={tmp_path} --nonoisy"
  assert f"  {command}   # goes on" in said
  about = json.loads((tmp_path / "config.json").read_text())
  assert " ".join(about["command"]) == command


@pytest.fixture
def notebook(monkeypatch):
  """The logger of a process in which logging is not configured."""
  root, log = logging.getLogger(), logging.getLogger("recurrent")
  monkeypatch.setattr(log, "handlers", [])
  monkeypatch.setattr(log, "propagate", True)
  monkeypatch.setattr(log, "disabled", False)
  level = log.level
  log.setLevel(logging.NOTSET)
  yield root
  log.setLevel(level)


def test_python_sees_each_line_of_progress_once(tmp_path, capsys, notebook):
  notebook.handlers.clear()  # pytest has put its own there by now
  train(tmp_path / "a")
  train(tmp_path / "b")
  said = capsys.readouterr().err
  assert said.count("step 3/8: ") == 2
  assert "valid_squares" in said


def test_lines_go_to_the_handlers_of_the_root_if_there_are_any(
  tmp_path, capsys, notebook
):
  notebook.handlers.clear()
  train(tmp_path / "a")
  capsys.readouterr()
  seen = []
  handler = logging.Handler()
  handler.emit = lambda record: seen.append(record.getMessage())
  notebook.handlers[:] = [handler]
  train(tmp_path / "b")
  assert sum("step 3/8: " in line for line in seen) == 1
  assert "step 3/8" not in capsys.readouterr().err


def test_the_line_says_what_was_evaluated(tmp_path, caplog):
  with caplog.at_level(logging.INFO, "recurrent"):
    train(tmp_path / "plain")
    assert "moving average" not in caplog.text
    train(tmp_path / "average", ema=0.9)
  lines = [r.getMessage() for r in caplog.records]
  assert any("valid_squares" in x and "moving average" in x for x in lines)


def test_help_through_a_pipe_that_closes_is_quiet():
  code = "import sys; sys.stdout.close()"
  command = f"{sys.executable} -m experiments.evaluate --help"
  done = subprocess.run(
    [
      "bash",
      "-c",
      f"{command} | {sys.executable} -c '{code}'; echo $PIPESTATUS",
    ],
    capture_output=True,
    text=True,
  )
  assert done.stderr == ""


def test_a_failing_save_ends_the_run_with_what_was_saved_before(
  tmp_path, monkeypatch
):
  real = checkpoint.ocp.CheckpointManager.save
  steps = []

  def save(self, step, *args, **kwargs):
    if len(steps) == 2:
      raise ValueError("RESOURCE_EXHAUSTED: [OS error 28: ENOSPC No space]\nx")
    steps.append(step)
    return real(self, step, *args, **kwargs)

  monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "save", save)
  with pytest.raises(errors.WorkdirError, match="cannot be saved: ENOSPC No"):
    train(tmp_path, checkpoint_every=2)
  monkeypatch.undo()
  assert sorted(d.name for d in (tmp_path / "checkpoints").iterdir()) == [
    "2",
    "4",
  ]
