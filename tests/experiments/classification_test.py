"""The experiment of classification: from files to predictions."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest

from experiments import classification, evaluate, predict
from tests.experiments.scripts import call, refused, result, rows

TINY = (
  "--features=8",
  "--layers=1",
  "--batch_size=8",
  "--steps=6",
  "--log_every=3",
  "--eval_every=3",
  "--warmup_steps=2",
)
SPLITS = ["train"] * 16 + ["valid"] * 8 + ["test"] * 9


def write_arrays(path, **change):
  """Two classes of series with gaps, all of one length."""
  rng = np.random.default_rng(0)
  labels = np.arange(33) % 2
  inputs = rng.normal(size=(33, 5, 2)) + 3 * labels[:, None, None]
  inputs[rng.random(inputs.shape) < 0.2] = np.nan
  arrays = {"inputs": inputs, "labels": labels, "split": np.array(SPLITS)}
  np.savez(path, **(arrays | change))
  return path


def write_tags(path, labelled=True):
  """Sentences whose words have tags."""
  lines = []
  for i, split in enumerate(SPLITS):
    place = ["rome", "new york", "oslo"][i % 3].split()
    words = ["fly", "to", *place]
    tags = ["O", "O", "B-city", "I-city"][: len(words)]
    row = {"text": " ".join(words), "split": split}
    lines.append(json.dumps(row | {"labels": tags} if labelled else row))
  path.write_text("\n".join(lines))
  return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
  """A run on series, its file, and its result."""
  root = tmp_path_factory.mktemp("classification")
  file = write_arrays(root / "a.npz")
  workdir = root / "run"
  # As in conftest.py, whose fixture is for one test.
  with (
    jax.numpy_dtype_promotion("standard"),
    jax.numpy_rank_promotion("allow"),
  ):
    found = classification.run(config(workdir, file))
  return workdir, file, found


def config(workdir, file, *flags):
  argv = ["", f"--workdir={workdir}", f"--data_file={file}", *TINY, *flags]
  return classification.runner.config_lib.parse(classification.Config, argv)


def test_the_result_has_every_metric_of_the_task(trained):
  workdir, _, found = trained
  names = "accuracy precision_macro recall_macro f1_macro auc ece nats"
  assert {f"test_{name}" for name in names.split()} <= found.keys()
  assert found == json.loads((workdir / "result.json").read_text())
  assert {"train_accuracy", "train_nats"} <= rows(workdir)[0].keys()
  for name in ("confusion_test.png", "curves.png"):
    assert (workdir / "figures" / name).stat().st_size > 1000


def test_evaluation_scores_alike_and_shows_each_class(trained, caplog):
  workdir, _, found = trained
  caplog.set_level("INFO")
  again = evaluate.run(evaluate.Config(workdir=str(workdir)))
  for name in ("test_accuracy", "test_auc", "test_nats"):
    assert again[name] == pytest.approx(found[name], abs=1e-6)
  assert "precision    recall  f1-score   support" in caplog.text
  assert "confusion_test.png" in caplog.text


def test_predictions_are_those_that_were_scored(trained, tmp_path):
  workdir, file, found = trained
  new = tmp_path / "new.npz"
  with np.load(file) as arrays:
    labels = arrays["labels"][-9:]
    np.savez(new, inputs=arrays["inputs"][-9:])
  output = tmp_path / "o.jsonl"
  assert (
    call(
      predict, f"--workdir={workdir}", f"--input={new}", f"--output={output}"
    )
    == 0
  )
  lines = [json.loads(line) for line in output.read_text().splitlines()]
  right = [
    line["label"] == str(x) for line, x in zip(lines, labels, strict=True)
  ]
  assert np.mean(right) == pytest.approx(found["test_accuracy"])
  for line in lines:
    assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert (
      max(line["probabilities"], key=line["probabilities"].get) == line["label"]
    )


def test_a_run_that_is_resumed_ends_with_the_same_parameters(trained, tmp_path):
  _, file, found = trained
  short = dataclasses.replace(
    config(tmp_path / "run", file, "--schedule=constant"), steps=3
  )
  whole = dataclasses.replace(short, steps=6)
  classification.run(short)
  resumed = classification.run(whole)
  other = dataclasses.replace(whole, workdir=str(tmp_path / "other"))
  once = classification.run(other)
  assert resumed["params_sha256"] == once["params_sha256"]
  assert found["params"] == once["params"]


@pytest.mark.several_devices
def test_several_devices_give_the_numbers_of_one(tmp_path):
  file = write_arrays(tmp_path / "a.npz")
  found = [
    classification.run(config(tmp_path / str(n), file, f"--devices={n}"))
    for n in (1, 2, 8)
  ]
  for one in found[1:]:
    for name in ("test_nats", "test_accuracy", "test_auc", "valid_nats"):
      assert one[name] == pytest.approx(found[0][name], abs=1e-5)


def test_a_run_begins_with_the_parameters_of_another(trained, tmp_path, caplog):
  workdir, file, _ = trained
  caplog.set_level("INFO")
  flags = f"--init_from={workdir}", "--learning_rate=1e-9", "--ema=0"
  tuned = classification.run(config(tmp_path / "a", file, *flags))
  assert tuned["test_nats"] == pytest.approx(trained[2]["test_nats"], abs=1e-3)
  assert "Initialised anew" not in caplog.text
  caplog.clear()
  three = write_arrays(tmp_path / "b.npz", labels=np.arange(33) % 3)
  classification.run(config(tmp_path / "b", three, *flags))
  assert (
    "Initialised anew: output/bias (3,), output/kernel (16, 3)" in caplog.text
  )


def test_an_init_from_that_does_not_fit_is_refused(trained, tmp_path, capsys):
  _, file, _ = trained
  flags = f"--workdir={tmp_path / 'a'}", f"--data_file={file}", *TINY
  for place in (tmp_path, trained[0] / "checkpoints" / "999"):
    said = refused(capsys, 4, classification, *flags, f"--init_from={place}")
    assert "holds no checkpoint" in said


@pytest.mark.parametrize(
  "flags",
  [
    ("--missing=drop", "--pooling=mean", "--class_weights=balanced"),
    ("--missing=decay", "--nobidirectional"),
    ("--missing=model", "--pooling=max"),
    ("--cell=transformer", "--heads=2", "--pooling=attention"),
  ],
  ids=" ".join,
)
def test_the_flags_of_series_train(trained, tmp_path, flags):
  found = classification.run(config(tmp_path / "run", trained[1], *flags))
  assert np.isfinite(found["test_nats"])


@pytest.mark.parametrize("kind", ["tags", "steps"])
def test_time_steps_are_classified(tmp_path, kind):
  pytest.importorskip("seqeval")
  if kind == "tags":
    file = write_tags(tmp_path / "a.jsonl")
    new = write_tags(tmp_path / "new.jsonl", labelled=False)
    lengths = [2 + (1, 2, 1)[i % 3] for i in range(33)]
    labels = {"O", "B-city", "I-city"}
  else:
    steps = np.arange(33 * 5).reshape(33, 5) % 3
    inputs = np.eye(3)[steps]
    file = write_arrays(tmp_path / "a.npz", inputs=inputs, labels=steps)
    new = tmp_path / "new.npz"
    np.savez(new, inputs=inputs)
    lengths, labels = [5] * 33, {"0", "1", "2"}
  workdir = tmp_path / "run"
  found = classification.run(config(workdir, file))
  assert 0 <= found["test_slot_f1"] <= 1
  lines = [*classification.predict(str(workdir), str(new))]
  assert [len(line["labels"]) for line in lines] == lengths
  assert set(lines[0]["labels"]) <= labels


def test_texts_are_classified_with_word_vectors(tmp_path):
  texts = [["good film", "bad film"][i % 2] for i in range(33)]
  table = zip(texts, np.arange(33) % 2, SPLITS, strict=True)
  lines = ["text,label,split", *(f"{a},{b},{c}" for a, b, c in table)]
  file = tmp_path / "a.csv"
  file.write_text("\n".join(lines))
  vectors = tmp_path / "vectors.txt"
  vectors.write_text("good 1 0 1\nbad 0 1 0\n")
  flags = f"--embeddings={vectors}", "--freeze_embeddings"
  workdir = tmp_path / "run"
  found = classification.run(config(workdir, file, *flags))
  vectors.unlink()
  (tmp_path / "new.csv").write_text("text\nGOOD\nnever seen\n")
  lines = [*classification.predict(str(workdir), str(tmp_path / "new.csv"))]
  assert [set(line["probabilities"]) for line in lines] == [{"0", "1"}] * 2
  stack = 2 * (3 * 8 * (3 + 8) + 3 * 8 + 8)
  assert found["params"] == stack + 2 * 8 * 2 + 2


def test_the_default_run_is_that_of_the_digits(tmp_path, capsys):
  assert call(classification, f"--workdir={tmp_path / 'run'}", "--smoke") == 0
  found = result(capsys.readouterr().out)
  assert found["step"] <= 4
  assert 0 <= found["test_accuracy"] <= 1


CSV = "text,label,split\n"


@pytest.mark.parametrize(
  ("code", "name", "content", "flags", "words"),
  [
    (3, "a.csv", "text\na\n", (), "line 1: there is no column 'label'"),
    (3, "a.csv", CSV + "a,b\n", (), "line 2: 2 cells, and the header has 3"),
    (3, "a.csv", CSV + "a,x,train\n ,x,test\n", (), "line 3, column text"),
    (3, "a.csv", CSV + "a,x,train\n" * 9, (), "no row is left for the valid"),
    (
      3,
      "a.csv",
      CSV + "a a,x,train\nb,x,train\nb,x,valid\nb,x,test\n",
      (),
      "one class only, 'x'",
    ),
    (
      3,
      "a.csv",
      CSV + "a a,x,train\nb,y,train\nb,x,valid\nb,z,test\n",
      (),
      "line 5: the train split has no label 'z'",
    ),
    (3, "a.csv", b"text,label\n\xff,x\n", (), "not UTF-8 at byte 11"),
    (3, "a.npz", b"no zip", (), "a.npz is no .npz file"),
    (3, "no.npz", None, (), "cannot read"),
    (2, "a.npz", {}, ("--dataset=digits",), "--dataset does nothing"),
    (2, "a.npz", {}, ("--stop_words=english",), "--stop_words is for text"),
    (2, "a.npz", {}, ("--tokenizer=char",), "--tokenizer is for text"),
    (2, "a.npz", {}, ("--splits=50,50",), "--splits=50,50"),
    (2, "a.npz", {}, ("--missing=decay",), "add --nobidirectional"),
    (2, "a.npz", {}, ("--freeze_embeddings",), "add --embeddings"),
    (2, "a.npz", {}, ("--pooling=median",), "use one of last, mean"),
    (3, "a.npz", {"inputs": np.full((33, 2), np.nan)}, (), "with NaN"),
    (3, "a.npz", {"labels": -np.arange(33)}, (), "row 1: out of range"),
    (3, "a.npz", {"lengths": np.full(33, 9)}, (), "have 5 time steps"),
    (3, "a.npz", {"labels": np.array([{}] * 33)}, (), "pickled objects"),
  ],
)
def test_bad_input_is_refused_and_leaves_no_workdir(
  tmp_path, capsys, code, name, content, flags, words
):
  path = tmp_path / name
  if isinstance(content, dict):
    write_arrays(path, **content)
  elif content is not None:
    path.write_bytes(
      content if isinstance(content, bytes) else content.encode()
    )
  files = os.listdir(tmp_path)
  said = refused(
    capsys,
    code,
    classification,
    f"--workdir={tmp_path / 'run'}",
    f"--data_file={path}",
    *flags,
  )
  assert words in said
  assert os.listdir(tmp_path) == files


@pytest.mark.parametrize(
  ("name", "words"),
  [("digit", "digits"), ("qqq", "--data_file"), ("mnist", "tfds build mnist")],
)
def test_an_unknown_dataset_says_what_there_is(tmp_path, capsys, name, words):
  workdir = f"--workdir={tmp_path / 'run'}"
  flags = f"--dataset={name}", f"--data_dir={tmp_path}"
  assert words in refused(capsys, 3, classification, workdir, *flags)
  assert os.listdir(tmp_path) == []


def test_the_data_of_a_prediction_must_be_of_the_kind_trained_on(
  trained, tmp_path, capsys
):
  new = tmp_path / "new.csv"
  new.write_text("text\nhello\n")
  said = refused(
    capsys,
    3,
    predict,
    f"--workdir={trained[0]}",
    f"--input={new}",
    f"--output={tmp_path / 'o'}",
  )
  assert "the data are text, and the model was trained on values" in said
