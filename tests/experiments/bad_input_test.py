"""Bad input gives a cause, a remedy and an exit code, and leaves no files."""

import os

import pytest

from experiments import compare, language_model
from tests.experiments.scripts import TINY, call, refused


@pytest.mark.parametrize(
  ("flag", "words"),
  [
    ("--feaures=8", "did you mean --features"),
    ("--nonsense_of_mine=8", "no flag --nonsense_of_mine"),
    ("--steps=ten", "steps"),
    ("--steps=0", "--steps=0 is out of range"),
    ("--steps=-5", "out of range"),
    ("--batch_size=2.5", "batch_size"),
    ("--learning_rate=nan", "--learning_rate=nan"),
    ("--learning_rate=inf", "finite"),
    ("--learning_rate=1e400", "finite"),
    ("--learning_rate=-0.1", "out of range"),
    ("--clip_norm=-1", "out of range"),
    ("--dropout=1", "below 1"),
    ("--output_dropout=nan", "out of range"),
    ("--cell=lstn", "--cell=lstn is unknown"),
    ("--cell=gru_d", "--cell=gru_d is unknown"),
    ("--optimizer=adamww", "did you mean --optimizer=adamw?"),
    ("--optimizer=chain", "--optimizer=chain is unknown"),
    ("--schedule=cosin", "cosine"),
    ("--tokenizer=chars", "char"),
    ("--dtype=float16x", "bfloat16"),
    ("--method=fastest", "--method=fastest"),
    ("--tied=maybe", "tied"),
    ("--remat=-1", "--remat=-1 is out of range"),
    ("--remat=1.5", "--remat=1.5 is unknown"),
    ("--remat=gate", "use a whole number or gates"),
    ("--lr=1", "did you mean --learning_rate?"),
    ("--hidden_size=8", "did you mean --features?"),
    ("--num-layers=2", "did you mean --layers?"),
    ("--epochs=3", "did you mean --steps, in batches, not epochs?"),
    ("--bptt=8", "did you mean --seq_len?"),
    ("--cell=LSTM", "did you mean --cell=lstm?"),
    ("--dtype=BFloat16", "did you mean --dtype=bfloat16?"),
    ("--optimizer=AdamW", "did you mean --optimizer=adamw?"),
    ("--steps=1e400", "not a whole number"),
    ("--steps=2.5e0", "not a whole number"),
    ("stray", "unexpected argument 'stray'"),
    ("--workdir=", "--workdir is missing"),
  ],
)
def test_a_bad_flag(tmp_path, capsys, flag, words):
  said = refused(
    capsys, 2, language_model, f"--workdir={tmp_path / 'run'}", *TINY, flag
  )
  assert words in said
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
  ("cells", "words"),
  [("lstn", "did you mean 'lstm'?"), ("lstm,conv_lstm", "takes no vectors")],
)
def test_cells_that_cannot_be_compared(capsys, cells, words):
  assert words in refused(capsys, 2, compare, f"--cells={cells}")


@pytest.mark.parametrize(
  "flags",
  [
    ("--dataset=pydoc", "--text_file=x"),
    ("--data_dir=x", "--text_file=x"),
    ("--vocab_size=100",),
    ("--min_count=2",),
    ("--tied", "--embedding_features=9"),
    ("--schedule=constant", "--final_learning_rate=0.1"),
    ("--plateau_patience=3",),
    ("--plateau_min=0.1",),
    ("--optimizer=sgd", "--b2=0.9"),
    ("--cell=gru_reset_before", "--method=fused"),
    ("--cell=gru_reset_before", "--remat=gates"),
    ("--method=scan", "--remat=gates"),
  ],
  ids=" ".join,
)
def test_flags_that_contradict(tmp_path, capsys, flags):
  workdir = f"--workdir={tmp_path / 'run'}"
  refused(capsys, 2, language_model, workdir, *TINY, *flags)
  assert os.listdir(tmp_path) == []


@pytest.mark.several_devices
def test_a_batch_that_the_devices_do_not_divide(tmp_path, capsys):
  workdir = f"--workdir={tmp_path / 'run'}"
  said = refused(
    capsys, 2, language_model, workdir, *TINY, "--batch_size=9", "--devices=4"
  )
  assert "use --batch_size=8 or --batch_size=12" in said
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (b"", "empty"),
    (b" \n\t \n", "white space"),
    (b"x", "too short"),
    (b"abc\xff\xfedef" * 40, "byte 3"),
    (
      b"only a short text, too short for the windows of a batch." * 2,
      "longer text",
    ),
  ],
)
def test_a_bad_text_file(tmp_path, capsys, content, words):
  path = tmp_path / "text.txt"
  path.write_bytes(content)
  workdir = f"--workdir={tmp_path / 'run'}"
  said = refused(
    capsys, 3, language_model, workdir, *TINY, f"--text_file={path}"
  )
  assert words in said
  assert os.listdir(tmp_path) == ["text.txt"]


def test_a_missing_file_a_folder_and_an_unknown_dataset(tmp_path, capsys):
  workdir = f"--workdir={tmp_path / 'run'}"
  for flag, words in [
    (f"--text_file={tmp_path / 'missing.txt'}", "missing.txt"),
    (f"--text_file={tmp_path}", "directory"),
    ("--dataset=pydocs", "pydoc"),
    ("--dataset=tiny_shakespeare", "tfds build"),
  ]:
    said = refused(capsys, 3, language_model, workdir, *TINY, flag)
    assert words in said
  assert os.listdir(tmp_path) == []


def test_a_workdir_of_another_configuration(tmp_path, capsys):
  workdir = f"--workdir={tmp_path / 'run'}"
  assert call(language_model, workdir, *TINY) == 0
  capsys.readouterr()
  said = refused(capsys, 2, language_model, workdir, *TINY, "--cell=gru")
  assert "--cell: lstm_coupled in the workdir, gru in this command" in said


def test_a_workdir_of_the_same_flags_over_another_text(tmp_path, capsys):
  workdir = f"--workdir={tmp_path / 'run'}"
  path = tmp_path / "text.txt"
  path.write_text("a first text\n" * 200)
  flags = (workdir, *TINY, f"--text_file={path}")
  assert call(language_model, *flags) == 0
  capsys.readouterr()
  path.write_text("another text\n" * 200)
  assert "data_sha256" in refused(capsys, 2, language_model, *flags)


def test_a_workdir_that_cannot_be(tmp_path, capsys):
  (tmp_path / "file").write_text("")
  workdir = f"--workdir={tmp_path / 'file' / 'run'}"
  refused(capsys, 5, language_model, workdir, *TINY)


def test_checkpoints_that_are_all_damaged(tmp_path, capsys):
  workdir = f"--workdir={tmp_path}"
  assert call(language_model, workdir, *TINY, "--steps=6") == 0
  capsys.readouterr()
  for file in tmp_path.glob("checkpoints/*/about/metadata"):
    file.write_text("{}")
  said = refused(capsys, 4, language_model, workdir, *TINY, "--steps=9")
  assert "none of the checkpoints" in said


@pytest.mark.parametrize("rate", ["1e30", "100"])
def test_a_learning_rate_that_diverges(tmp_path, capsys, rate):
  workdir = f"--workdir={tmp_path}"
  flags = ("--steps=30", "--eval_every=30", f"--learning_rate={rate}")
  said = refused(capsys, 6, language_model, workdir, *TINY, *flags)
  assert "smaller --learning_rate" in said
  assert not (tmp_path / "checkpoints").exists()
