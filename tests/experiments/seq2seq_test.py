"""What translation and summarization share: bad input, and the flags."""

import json
import re

import pytest

from experiments import predict, summarization, translation
from tests.experiments.scripts import call, refused
from tests.experiments.summarization_test import TINY as SUMMARIZE
from tests.experiments.translation_test import TINY as TRANSLATE

pytest.importorskip("rouge_score")
pytest.importorskip("sacrebleu")

GOOD = b"a b\nb c\nc a\n"


def row(**values):
  return json.dumps(values).encode() + b"\n"


DOCUMENT = row(document="a b c.", summary="a")


@pytest.mark.parametrize(
  ("source", "flags", "code", "words"),
  [
    (b"a\nb\n", [], 3, "train.src has 2 lines, and"),
    (b"\n \n\n", [], 3, "train.src has no text"),
    (b"", [], 3, "train.src has no text"),
    ("ä\nb\nc\n".encode("latin-1"), [], 3, "not UTF-8 at byte 0"),
    (GOOD.decode().encode("utf-16"), [], 3, "not UTF-8 at byte 0"),
    (b"a b c d\n" * 3, ["--max_length=2"], 3, "a larger --max_length"),
    (GOOD, ["--max_target_length=1"], 3, "--max_target_length"),
    (b"a\n" * 3, ["--tokenizer=word", "--vocab_size=1"], 2, "one token only"),
    (GOOD, ["--vocab_size=30"], 2, "--vocab_size does nothing"),
    (GOOD, ["--beams=0"], 2, "--beams=0 is out of range"),
    (GOOD, ["--beams=-1"], 2, "--beams=-1 is out of range"),
    (GOOD, ["--coverage", "--attention=dot"], 2, "--coverage does nothing"),
    (GOOD, ["--coverage_loss=1", "--attention=none"], 2, "needs attention"),
    (GOOD, ["--attention_window=3"], 2, "--attention_window does nothing"),
    (
      GOOD,
      ["--joint", "--copying", "--attention=local_p"],
      2,
      "weights that sum to one",
    ),
  ],
  ids=str,
)
def test_bad_parallel_files_and_flags_are_refused(
  tmp_path, capsys, source, flags, code, words
):
  for split in ("train", "valid", "test"):
    (tmp_path / f"{split}.tgt").write_bytes(GOOD)
    (tmp_path / f"{split}.src").write_bytes(
      source if split == "train" else GOOD
    )
  files = [
    f"--{split}_files={tmp_path}/{split}.src,{tmp_path}/{split}.tgt"
    for split in ("train", "valid", "test")
  ]
  here = f"--workdir={tmp_path / 'run'}"
  said = refused(capsys, code, translation, here, *TRANSLATE, *files, *flags)
  assert words in said
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (DOCUMENT + row(summary="b"), "line 2: there is no column 'document'"),
    (DOCUMENT + row(document="b"), "line 2: there is no column 'summary'"),
    (row(document="", summary="b"), "line 1, column document: the text is"),
    (row(document="b", summary=" "), "line 1, column summary: ' ' is no text"),
    (row(document=["b"], summary="b"), "line 1, column document: ['b'] is no"),
    (
      DOCUMENT + row(document="b", summary="b", split="dev"),
      "line 1, column split: None is no split",
    ),
    (row(document="b", summary="b", split="dev"), "'dev' is no split"),
    (DOCUMENT + b"{\n", "line 2: no JSON at column 2"),
    (DOCUMENT + b"[1]\n", "line 2: a list and no JSON object"),
    (b"\n\n", "has no rows"),
    (b'{"document": "\xe4", "summary": "b"}', "not UTF-8 at byte 14"),
    (DOCUMENT, "no row is left for the"),
  ],
  ids=str,
)
def test_bad_lines_of_documents_are_refused(tmp_path, capsys, content, words):
  file = tmp_path / "data.jsonl"
  file.write_bytes(content)
  flags = f"--workdir={tmp_path / 'run'}", f"--data_file={file}", *SUMMARIZE
  said = refused(capsys, 3, summarization, *flags)
  assert words in said
  if "line" in words:
    assert str(file) in said
  assert not (tmp_path / "run").exists()


def test_the_tokenizers_of_another_run_are_those_of_init_from(tmp_path, capsys):
  def flags(folder, name, text):
    folder.mkdir()
    (folder / "a").write_text(text)
    files = [f"--{x}_files={folder}/a,{folder}/a" for x in translation.FILES]
    here = f"--workdir={tmp_path / name}"
    return [here, *TRANSLATE, *files, "--steps=1", "--nobidirectional"]

  assert call(translation, *flags(tmp_path / "x", "one", "ab\nba\n")) == 0
  more = f"--init_from={tmp_path / 'one'}"
  other = flags(tmp_path / "y", "two", "abb\nbaa\n")
  assert call(translation, *other, more) == 0
  said = capsys.readouterr().err
  assert re.search(r"(\d+) of \1 arrays of parameters\.", said)
  for name in ("source_tokenizer.json", "target_tokenizer.json"):
    texts = [(tmp_path / run / name).read_text() for run in ("one", "two")]
    assert texts[0] == texts[1]


def test_documents_to_predict_need_the_column(tmp_path, capsys):
  file = tmp_path / "new.jsonl"
  file.write_bytes(row(text="a"))
  with pytest.raises(Exception, match="no column 'document'"):
    summarization.parallel.read_sources(file, "document")
  flags = f"--workdir={tmp_path}", f"--input={file}", "--output=x"
  refused(capsys, 4, predict, *flags)
