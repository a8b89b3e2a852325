import subprocess
import sys
from pydoc_data.topics import topics

import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from recurrent.data import load_text, text
from recurrent.errors import ConfigError, DataError

PIECE = "Now is the winter\nof our discontent\r\n\tmade glorious – é 😀\n\n"
LONG = PIECE * 10


def prepare(folder, name, splits, feature="text", **features):
  """Writes a catalogue dataset with our own examples, as its code would."""

  class Fake(tfds.builder_cls(name), skip_registration=True):
    def _split_generators(self, dl_manager):
      del dl_manager
      return {key: self._generate_examples(key) for key in splits}

    def _generate_examples(self, key):
      for number, example in enumerate(splits[key]):
        yield number, {feature: example, **features}

  Fake.name = name
  Fake(data_dir=folder, file_format="array_record").download_and_prepare()


def cut(whole):
  n = len(whole)
  ends = int(0.9 * n), int(0.95 * n)
  return whole[: ends[0]], whole[ends[0] : ends[1]], whole[ends[1] :]


def test_importing_the_data_package_does_not_import_tfds():
  code = (
    "import sys, recurrent.data as data; "
    "heavy = {'tensorflow_datasets', 'tensorflow', 'sentencepiece', 'h5py'}; "
    "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_pydoc_is_the_contracts_text():
  whole = "\n".join(topics[name] for name in sorted(topics))
  train, valid, test = cut(whole)
  # The topics have no blank line with white space in it.
  kept = [
    paragraph
    for paragraph in test.split("\n\n")
    if not any(
      paragraph[start : start + 100] in seen
      for start in range(len(paragraph) - 99)
      for seen in (train, valid)
    )
  ]
  assert len(kept) < len(test.split("\n\n"))
  corpus = load_text()
  assert corpus == load_text("pydoc") == (train, valid, "\n\n".join(kept))


def test_what_occurs_in_an_earlier_split_is_logged(file, caplog):
  words = " ".join(f"word{number}" for number in range(2000))
  file.write_text(words + words[:400])
  with caplog.at_level("INFO", logger="recurrent.data.text"):
    corpus = load_text(text_file=file)
  [message] = caplog.messages
  share = 400 / len(corpus.test)
  assert f"and {100 * share:.1f} % of the test characters" in message
  assert message.startswith("0.0 % of the valid characters")


def test_stdlib_is_a_corpus_of_code():
  corpus = load_text("stdlib")
  assert all("def " in part for part in corpus)
  assert len(corpus.train) > 5_000_000


def test_a_catalogue_dataset_is_read_as_it_was_written(tmp_path):
  splits = {"train": [LONG], "validation": ["va\nlid"], "test": ["te\nst"]}
  prepare(tmp_path, "tiny_shakespeare", splits)
  corpus = load_text("tiny_shakespeare", data_dir=tmp_path)
  assert corpus == (LONG, "va\nlid", "te\nst")


def test_a_missing_valid_split_is_cut_off_the_train_split(tmp_path):
  splits = {"train": [LONG, LONG], "test": ["test"]}
  prepare(tmp_path, "lm1b", splits)
  whole = LONG + "\n" + LONG
  end = int(0.95 * len(whole))
  assert load_text("lm1b", data_dir=tmp_path) == (
    whole[:end],
    whole[end:],
    "test",
  )


def test_a_missing_test_split_is_cut_off_the_train_split(tmp_path):
  prepare(tmp_path, "tiny_shakespeare", {"train": [LONG], "dev": ["valid"]})
  end = int(0.95 * len(LONG))
  assert load_text("tiny_shakespeare", data_dir=tmp_path) == (
    LONG[:end],
    "valid",
    LONG[end:],
  )


def test_a_lone_train_split_is_cut_like_a_file(tmp_path):
  prepare(tmp_path, "tiny_shakespeare", {"train": [LONG]})
  assert load_text("tiny_shakespeare", data_dir=tmp_path) == cut(LONG)


def test_of_several_text_features_one_is_to_be_named(tmp_path):
  prepare(
    tmp_path, "gigaword", {"train": [LONG]}, feature="document", summary="short"
  )
  with pytest.raises(DataError, match="document, summary") as caught:
    load_text("gigaword", data_dir=tmp_path)
  assert "`dataset=gigaword#document`" in caught.value.remedy
  assert load_text("gigaword#document", data_dir=tmp_path) == cut(LONG)
  with pytest.raises(DataError, match="document, summary"):
    load_text("gigaword#title", data_dir=tmp_path)


def test_a_dataset_must_have_text_and_a_train_split(tmp_path):
  prepare(tmp_path, "tiny_shakespeare", {"test": [LONG]})
  with pytest.raises(DataError, match="no train split, only test"):
    load_text("tiny_shakespeare", data_dir=tmp_path)


def test_an_example_that_is_not_utf8_is_named(tmp_path):
  splits = {"train": [LONG, b"caf\xe9"], "test": ["test"]}
  prepare(tmp_path, "lm1b", splits)
  with pytest.raises(DataError, match="example . of train .* at byte 3"):
    load_text("lm1b", data_dir=tmp_path)


def test_a_dataset_stored_for_tensorflow_says_what_to_do(tmp_path):
  prepare(tmp_path, "tiny_shakespeare", {"train": [LONG]})
  (info,) = tmp_path.rglob("dataset_info.json")
  info.write_text(info.read_text().replace("array_record", "tfrecord"))
  with pytest.raises(DataError, match="not stored as array_record") as caught:
    load_text("tiny_shakespeare", data_dir=tmp_path)
  assert "--file_format=array_record" in caught.value.remedy


def test_a_damaged_dataset_is_told_and_not_touched(tmp_path):
  prepare(tmp_path, "tiny_shakespeare", {"train": [LONG]})
  (info,) = tmp_path.rglob("dataset_info.json")
  (shard,) = tmp_path.rglob("*array_record-*")
  shard.unlink()
  with pytest.raises(DataError, match="is damaged: .*No such file"):
    load_text("tiny_shakespeare", data_dir=tmp_path)
  info.write_text("{")
  with pytest.raises(DataError, match="cannot open dataset"):
    load_text("tiny_shakespeare", data_dir=tmp_path)


@pytest.fixture
def file(tmp_path):
  return tmp_path / "text.txt"


def test_a_file_is_cut_90_5_5_by_characters(file):
  file.write_bytes(LONG.encode())
  assert (
    load_text(text_file=file) == load_text(text_file=str(file)) == cut(LONG)
  )


def test_newlines_stay_as_they_are(file):
  whole = "a\r\nb\rc\nd\x85e\u2028" * 10
  file.write_bytes(whole.encode())
  assert "".join(load_text(text_file=file)) == whole


def test_only_a_leading_byte_order_mark_is_dropped(file):
  whole = "a\ufeffb" * 20
  file.write_bytes(b"\xef\xbb\xbf" + whole.encode())
  assert "".join(load_text(text_file=file)) == whole


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=40), st.integers(1, 9))
def test_the_size_of_a_chunk_does_not_matter(tmp_path_factory, whole, chunk):
  file = tmp_path_factory.getbasetemp() / "chunks.txt"
  file.write_bytes(whole.encode())
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(text, "_CHUNK", chunk)
    assert tuple(text._cut(text._read_file(file), (0.9, 0.05, 0.05))) == cut(
      whole.removeprefix("\ufeff")
    )


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
def test_text_that_is_not_utf8_is_located(file, chunk, monkeypatch):
  monkeypatch.setattr(text, "_CHUNK", chunk)
  file.write_bytes("é😀".encode() * 20 + b"\xff" + b"more")
  with pytest.raises(DataError, match="not UTF-8 at byte 120") as caught:
    load_text(text_file=file)
  assert str(file) in caught.value.cause
  file.write_bytes(b"ab" + "😀".encode()[:3])
  with pytest.raises(DataError, match="not UTF-8 at byte 2"):
    load_text(text_file=file)
  file.write_bytes("utf-16".encode("utf-16"))
  with pytest.raises(DataError, match="not UTF-8 at byte 0"):
    load_text(text_file=file)


@pytest.mark.parametrize("content", ["", "\ufeff", " \n\t\r\n", " " * 100])
def test_a_file_without_words_is_refused(file, content):
  file.write_text(content, encoding="utf-8")
  with pytest.raises(DataError, match="empty, or all white space"):
    load_text(text_file=file)


@pytest.mark.parametrize("content", ["a", "é", "a" * 29])
def test_a_file_too_short_for_three_splits_is_refused(file, content):
  file.write_text(content, encoding="utf-8")
  with pytest.raises(DataError, match=f"too short: {len(content)} char"):
    load_text(text_file=file)


def test_forty_characters_are_enough(file):
  file.write_text("a" * 40)
  assert tuple(map(len, load_text(text_file=file))) == (36, 2, 2)


def test_a_missing_file_and_a_directory_are_told(file, tmp_path):
  with pytest.raises(DataError, match="text.txt: No such file"):
    load_text(text_file=file)
  with pytest.raises(DataError, match="Is a directory"):
    load_text(text_file=tmp_path)
  with pytest.raises(DataError, match="No such file"):
    load_text(text_file="")


def test_a_file_that_may_not_be_read_is_told(file, monkeypatch):
  def deny(path, *args):
    raise PermissionError(13, "Permission denied", path)

  monkeypatch.setattr(text, "open", deny, raising=False)
  with pytest.raises(DataError, match="text.txt: Permission denied") as caught:
    load_text(text_file=file)
  assert caught.value.exit_code == 3


def test_a_file_has_no_data_dir(file):
  with pytest.raises(ConfigError, match="`data_dir`"):
    load_text(text_file=file, data_dir="/data")
