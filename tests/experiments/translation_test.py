"""The translator, from a command line to a translation."""

import json

import jax
import numpy as np
import pytest

from experiments import evaluate, generate, predict, translation
from recurrent.data import dates, parallel
from recurrent.errors import DataError
from tests.experiments.scripts import call, refused, result

pytest.importorskip("sacrebleu")
pytest.importorskip("babel")

TINY = (
  "--features=16",
  "--embedding_features=8",
  "--batch_size=8",
  "--steps=2",
  "--log_every=2",
  "--eval_every=2",
  "--max_length=8",
  "--beams=2",
  "--warmup_steps=1",
)
WORDS = ["a b", "b c a", "c", "a a b c", "b", "c b"]


@pytest.fixture(scope="session")
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pairs")
  for split, times in (("train", 4), ("valid", 1), ("test", 1)):
    lines = WORDS * times
    (folder / f"{split}.src").write_text("\n".join(lines) + "\n")
    (folder / f"{split}.tgt").write_text("\n".join(x[::-1] for x in lines))
  return folder


def flags_for(files):
  return [
    f"--{split}_files={files}/{split}.src,{files}/{split}.tgt"
    for split in ("train", "valid", "test")
  ]


@pytest.fixture(scope="session")
def trained(files, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  # Enough to learn to reverse the words.
  more = ("--steps=150", "--eval_every=150", "--learning_rate=0.02")
  flags = (f"--workdir={workdir}", *TINY, *flags_for(files), *more)
  with (
    jax.numpy_dtype_promotion("standard"),
    jax.numpy_rank_promotion("allow"),
  ):
    assert call(translation, *flags) == 0
  return workdir


def test_a_run_has_the_keys_of_the_contract(trained):
  found = json.loads((trained / "result.json").read_text())
  assert found["test_exact_match"] == 1 and 0 <= found["test_bleu"] < 100.1
  assert "version" in found["test_bleu_signature"]
  assert (trained / "figures" / "curves.png").exists()


def test_evaluate_finds_what_the_run_found(trained, capsys):
  assert call(evaluate, f"--workdir={trained}", "--split=test") == 0
  found = result(capsys.readouterr().out)
  whole = json.loads((trained / "result.json").read_text())
  for name in ("test_nats", "test_bleu", "test_exact_match"):
    assert found[name] == pytest.approx(whole[name], rel=1e-5)


def test_every_line_has_a_translation_and_its_alternatives(
  trained, files, tmp_path, capsys
):
  out = tmp_path / "out.jsonl"
  new = tmp_path / "new.src"
  new.write_text("\n".join(WORDS * 3))  # More than a batch.
  flags = (f"--workdir={trained}", f"--input={new}", f"--output={out}")
  assert call(predict, *flags) == 0
  rows = [json.loads(line) for line in out.read_text().splitlines()]
  assert [row["source"] for row in rows] == WORDS * 3
  for row in rows:
    scores = [beam["score"] for beam in row["n_best"]]
    assert scores == sorted(scores, reverse=True) and len(scores) <= 2
    assert row["text"] == row["n_best"][0]["text"]
  # A source has the same translation in every batch.
  for row in range(len(WORDS)):
    assert rows[row]["text"] == rows[row + len(WORDS)]["text"]
  capsys.readouterr()
  assert call(generate, f"--workdir={trained}", "--prompt=b c a") == 0
  assert result(capsys.readouterr().out)["texts"] == [rows[1]["text"]]
  refused(
    capsys, 2, generate, f"--workdir={trained}", "--prompt=b", "--top_k=3"
  )


@pytest.mark.parametrize(
  "flags",
  [
    ("--cell=transformer", "--heads=2", "--context=16", "--joint"),
    (
      "--joint",
      "--copying",
      "--attention=general",
      "--nobidirectional",
      "--scheduled_sampling=0.3",
      "--label_smoothing=0.1",
    ),
  ],
  ids=str,
)
def test_flags_go_together(files, tmp_path, flags, capsys):
  here = f"--workdir={tmp_path}"
  assert call(translation, here, *TINY, *flags_for(files), *flags) == 0
  assert np.isfinite(result(capsys.readouterr().out)["test_nats"])


@pytest.mark.parametrize(
  ("flags", "code"),
  [
    (["--beams=0"], 2),
    (["--train_files=a,b"], 2),
    (["--train_files=a", "--valid_files=b,c", "--test_files=d,e"], 2),
    (["--feeding", "--attention=none"], 2),
    (["--copying"], 2),
    (["--cell=transformer", "--copying", "--joint"], 2),
    (["--train_files=no,no", "--valid_files=no,no", "--test_files=no,no"], 3),
  ],
  ids=str,
)
def test_what_cannot_be_is_refused(files, tmp_path, capsys, flags, code):
  whole = flags if "_files" in flags[0] else [*flags_for(files), *flags]
  here = f"--workdir={tmp_path / 'run'}"
  refused(capsys, code, translation, here, *TINY, *whole)
  assert not (tmp_path / "run").exists()


def test_files_of_unequal_length_are_refused(tmp_path):
  (tmp_path / "a").write_text("one\ntwo\n")
  (tmp_path / "b").write_text("eins\n")
  with pytest.raises(DataError, match="2 lines, and .*b 1"):
    parallel.read_parallel(tmp_path / "a", tmp_path / "b")
  (tmp_path / "b").write_text(" \n\n")
  with pytest.raises(DataError, match="has no text"):
    parallel.read_parallel(tmp_path / "a", tmp_path / "b")


def test_a_separator_of_unicode_does_not_end_a_line(tmp_path):
  (tmp_path / "a").write_text("one\u2028two\r\n\u3000three\u0085 \n", "utf-8")
  assert parallel.read_lines(tmp_path / "a") == ["one\u2028two", "three"]


def test_dates_of_valid_and_test_are_never_seen_in_training():
  found = dates.load_dates(3000)
  days = {name: set(pairs.targets) for name, pairs in found.items()}
  assert not days["train"] & (days["valid"] | days["test"])
  assert sum(len(pairs.targets) for pairs in found.values()) == 3000
  assert len(found["test"].targets) > 80
  assert all(len(day) == 10 for day in days["test"])
  assert found == dates.load_dates(3000)
  texts = " ".join(found["train"].sources)
  for word in ("März", "marzo", "марта", "mars", "年", "مارس"):
    assert word in texts
