"""The memory tasks, from the command line to the files of a run."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import compare, evaluate, memory, predict
from recurrent.data.synthetic import TASKS
from tests.experiments.scripts import call, refused, result

TINY = (
  "--features=8",
  "--steps=6",
  "--batch_size=8",
  "--log_every=2",
  "--eval_every=3",
  "--length=12",
  "--test_examples=20",
  "--warmup_steps=2",
  "--schedule=constant",
)


@pytest.fixture(scope="session")
def parity(tmp_path_factory):
  """The directory and the result of a tiny run."""
  workdir = tmp_path_factory.mktemp("memory") / "parity"
  config = dict(part[2:].split("=") for part in TINY)
  config = {k: int(v) if v.isdigit() else v for k, v in config.items()}
  config = memory.Config(
    workdir=str(workdir), cell="rnn", test_lengths="24,12", **config
  )
  with (
    jax.numpy_dtype_promotion("standard"),
    jax.numpy_rank_promotion("allow"),
  ):
    return workdir, memory.run(config)


def test_a_run_scores_each_length(parity):
  workdir, found = parity
  assert json.loads((workdir / "result.json").read_text()) == found
  assert found["task"] == "parity"
  assert found["baseline_loss"] == pytest.approx(np.log(2))
  assert [*found["test_by_length"]] == ["12", "24"]
  own = found["test_by_length"]["12"]
  assert found["test_loss"] == own["loss"]
  assert found["test_accuracy"] == own["accuracy"]
  assert (workdir / "figures" / "lengths.png").stat().st_size > 5000


def test_evaluate_finds_the_same(parity, capsys):
  workdir, found = parity
  assert call(evaluate, f"--workdir={workdir}") == 0
  again = result(capsys.readouterr().out)
  assert again["test_by_length"] == found["test_by_length"]


@pytest.mark.parametrize("name", TASKS)
def test_a_new_network_is_about_as_good_as_one_without_memory(name):
  config = memory.Config(
    workdir="x", task=name, features=8, length=12, batch_size=50, cell="rnn"
  )
  graphdef, params = nnx.split(memory.make_model(config, nnx.Rngs(0)))

  @jax.jit
  def loss(params, batch):
    found = memory.measure(nnx.merge(graphdef, params), batch, None)["cost"]
    return found.total / found.weight

  value = loss(params, memory.make_batches(config)[0])
  baseline = config.bound().baseline(12)
  assert 0.7 * baseline < value < 10 * baseline


def test_a_resumed_run_ends_with_the_same_parameters(parity, tmp_path):
  flags = [f"--workdir={tmp_path / 'run'}", *TINY]
  flags += ["--cell=rnn", "--test_lengths=24,12"]
  assert call(memory, *flags, "--steps=3") == 0
  assert call(memory, *flags) == 0
  again = json.loads((tmp_path / "run" / "result.json").read_text())
  assert again["params_sha256"] == parity[1]["params_sha256"]
  assert again["test_by_length"] == parity[1]["test_by_length"]


@pytest.mark.several_devices
def test_results_do_not_depend_on_the_number_of_devices(tmp_path):
  losses = []
  for devices in (1, 2, 8):
    flags = ["--task=mqar", "--length=20", f"--devices={devices}"]
    assert (
      call(memory, f"--workdir={tmp_path / str(devices)}", *TINY, *flags) == 0
    )
    found = json.loads((tmp_path / str(devices) / "result.json").read_text())
    losses.append([row["loss"] for row in found["test_by_length"].values()])
  np.testing.assert_allclose(losses, [losses[0]] * 3, rtol=1e-5)


@pytest.mark.parametrize(
  ("task", "loss"),
  [("adding", memory.score), ("parity", memory.score)],
)
def test_a_perfect_network_has_no_loss(task, loss):
  config = memory.Config(workdir="x", task=task, length=9)
  batch = memory.make_batches(config)[0]
  targets = batch["targets"]
  outputs = targets[..., None] if task == "adding" else 50 * np.eye(2)[targets]
  cost, right, found = loss(np.float32(outputs), targets)
  assert cost.max() < 1e-6
  assert right.min() == 1
  np.testing.assert_array_equal(found, targets)


def test_the_curriculum_lengthens_the_sequences_and_keeps_the_time_steps():
  config = memory.Config(
    workdir="x", task="copy", length=40, curriculum=True, steps=80, batch_size=2
  )
  batches = memory.make_batches(config)
  shapes = [batches[step]["inputs"].shape for step in (0, 10, 20, 30, 40, 79)]
  lengths = (2, 5, 10, 20, 40, 40)
  assert shapes == [(2 * (40 // n), n + 20) for n in lengths]
  short = memory.make_batches(
    memory.Config(workdir="x", task="mqar", length=13)
  )
  assert short[0]["inputs"].shape == (64, 13)


def test_predict_reads_both_formats(parity, tmp_path):
  workdir, _ = parity
  rows = [[0, 1, 1], [1], [1, 0, 0, 1, 1]]
  lines = tmp_path / "new.jsonl"
  lines.write_text("".join(json.dumps({"inputs": row}) + "\n" for row in rows))
  arrays = tmp_path / "new.npz"
  padded = np.zeros((3, 5), int)
  for i, row in enumerate(rows):
    padded[i, : len(row)] = row
  np.savez(arrays, inputs=padded, lengths=[len(row) for row in rows])
  outputs = []
  for file in (lines, arrays):
    out = tmp_path / "out.jsonl"
    flags = [f"--workdir={workdir}", f"--input={file}", f"--output={out}"]
    assert call(predict, *flags) == 0
    outputs.append(
      [json.loads(line)["outputs"] for line in out.read_text().splitlines()]
    )
  assert outputs[0] == outputs[1]
  assert [len(row) for row in outputs[0]] == [3, 1, 5]


@pytest.mark.parametrize(
  ("content", "words"),
  [
    ('{"inputs": [0, 1]}\n{"inputs": [0, 2]}', "line 2, inputs: this is no"),
    ('{"inputs": [0, -1]}', "give whole numbers from 0 to 1"),
    ('{"inputs": [0.5]}', "line 1, inputs"),
    ('{"inputs": []}', "line 1, inputs"),
    ('{"inputs": [[0, 1], [1]]}', "line 1, inputs"),
    ('{"inputs": [0, NaN]}', "line 1, inputs"),
    ('{"inputs": "01"}', "line 1, inputs"),
    ('{"inputs": [0, 1}', "line 1: no JSON"),
    ('{"tokens": [0, 1]}', "line 1"),
    ("", "no rows"),
  ],
)
def test_predict_names_the_line_that_is_wrong(
  parity, tmp_path, capsys, content, words
):
  file = tmp_path / "new.jsonl"
  file.write_text(content)
  flags = [f"--workdir={parity[0]}", f"--input={file}"]
  out = tmp_path / "out.jsonl"
  assert words in refused(capsys, 3, predict, *flags, f"--output={out}")
  assert not out.exists()


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["--task=copying"], "did you mean --task=copy?"),
    (["--test_lengths=40,x"], "--test_lengths=40,x has what is no length"),
    (["--task=mqar", "--test_lengths=9"], "at least 12"),
    (["--task=mqar", "--length=9"], "length must be 12 or more"),
    (["--symbols=5"], "--task=parity: symbols is no option"),
    (["--t_max=2"], "--t_max must be at least 3"),
    (["--cell=qrnn", "--t_max=9"], "no initialisation by --t_max"),
    (["--cell=transformer", "--mlp_features=9"], "--mlp_features does nothing"),
  ],
  ids=str,
)
def test_bad_flags(tmp_path, capsys, flags, words):
  workdir = tmp_path / "run"
  assert words in refused(capsys, 2, memory, f"--workdir={workdir}", *flags)
  assert not workdir.exists()


GRID = (
  "--experiment=memory",
  "--grid=task=parity;cell=rnn,transformer+heads=2+context=8",
  "--params=4000",
  "--steps=2",
)
REST = ("--length=8", "--test_examples=8", "--batch_size=4", "--test_lengths=8")


def test_compare_resumes_and_adds_to_its_table(tmp_path, capsys):
  flags = [f"--workdir={tmp_path}", *GRID]
  assert call(compare, *flags, "--", *REST) == 0
  first = result(capsys.readouterr().out)["runs"]
  assert len(first) == 2
  for row in first.values():
    assert 2000 < row["params"] <= 4000
    assert row["steps"] == 2
    assert row["test_loss"] > 0
  times = {
    path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")
  }
  assert call(compare, *flags, "--", *REST) == 0
  assert result(capsys.readouterr().out)["runs"] == first
  assert {path: path.stat().st_mtime_ns for path in times} == times

  more = ["--grid=task=adding;cell=rnn", "--params=0"]
  assert call(compare, *flags, *more, "--", *REST, "--features=8") == 0
  assert len(result(capsys.readouterr().out)["runs"]) == 3
  table = (tmp_path / "table.md").read_text().splitlines()
  assert "task | cell | features | params | valid_loss" in table[0]
  assert len(table) == 2 + 3


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["--experiment=juggling"], "--experiment=juggling is no experiment"),
    (["--experiment=figures"], "--experiment=figures is no experiment"),
    (["--grid=task"], "'task' is not a flag and its values"),
    (["--grid=task=copy;task=sort"], "write each flag once"),
    (["--grid=cell=gru", "--cells=gru"], "--cells and --grid"),
    (["--grid=features=8", "--cells=gru"], "chooses the features"),
    (["--experiment=memory", "--grid=task=cpy"], "did you mean --task=copy"),
    (["--cells=gru", "--", "--lr=1"], "did you mean --learning_rate"),
  ],
  ids=str,
)
def test_comparisons_that_cannot_be_made(tmp_path, capsys, flags, words):
  workdir = tmp_path / "runs"
  assert words in refused(capsys, 2, compare, f"--workdir={workdir}", *flags)
  assert not workdir.exists()
