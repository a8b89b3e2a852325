import multiprocessing
import os
import time

import pytest
import tensorflow_datasets as tfds

from recurrent.data import builders, load_text, store
from recurrent.errors import DataError

VERSION = str(builders.Pydoc.VERSION)


def shard(folder):
  return folder / "pydoc" / VERSION / "pydoc-train.array_record-00000-of-00001"


def test_ours_is_prepared_once_and_in_silence(cache, capfd):
  first = load_text("pydoc")
  written = shard(cache).stat().st_mtime_ns
  assert load_text("pydoc") == first
  assert shard(cache).stat().st_mtime_ns == written
  assert {path.name for path in cache.iterdir()} == {"pydoc", "pydoc.lock"}
  assert capfd.readouterr() == ("", "")


def test_ours_goes_to_data_dir_if_one_is_given(cache, tmp_path):
  load_text("pydoc", data_dir=tmp_path / "elsewhere")
  assert shard(tmp_path / "elsewhere").exists()
  assert not cache.exists()


def test_ours_is_what_tfds_reads_by_name(cache):
  corpus = load_text("pydoc")
  source = tfds.data_source(
    "pydoc", split="valid", data_dir=cache, download=False
  )
  assert "\n".join(one["text"].decode() for one in source) == corpus.valid


def test_what_a_killed_preparation_left_is_prepared_again(cache):
  left = cache / "pydoc.incomplete" / "pydoc" / f"incomplete.X_{VERSION}"
  left.mkdir(parents=True)
  (left / "half").write_text("half")
  assert load_text("pydoc").train
  assert not left.exists()


@pytest.mark.parametrize(
  "damage",
  [
    os.remove,
    lambda path: os.truncate(path, 0),
    lambda path: os.truncate(path, 70_000),
    lambda path: (path.parent / "dataset_info.json").write_text("{"),
    lambda path: (path.parent / "features.json").unlink(),
    lambda path: [other.unlink() for other in path.parent.iterdir()],
  ],
  ids=["missing", "empty", "cut", "bad info", "no features", "emptied"],
)
def test_damage_to_ours_is_mended(cache, damage):
  corpus = load_text("pydoc")
  damage(shard(cache))
  assert load_text("pydoc") == corpus


def test_damage_that_cannot_be_mended_is_told(cache, monkeypatch):
  load_text("pydoc")
  monkeypatch.setattr(store, "_prepare", lambda *args, **kwargs: None)
  os.truncate(shard(cache), 70_000)
  with pytest.raises(DataError, match="pydoc.*is damaged: Corrupted"):
    load_text("pydoc")


def test_a_cache_that_cannot_be_written_is_a_data_error(cache):
  cache.write_text("a file in its place")
  with pytest.raises(DataError, match="cannot write 'pydoc'") as caught:
    load_text("pydoc")
  assert "RECURRENT_CACHE" in caught.value.remedy


def test_a_full_disk_is_a_data_error(monkeypatch):
  def fail(*args, **kwargs):
    raise RuntimeError("write() failed: No space left on device; writing x")

  monkeypatch.setattr(builders.Pydoc, "_download_and_prepare", fail)
  with pytest.raises(DataError, match="cannot write 'pydoc'.*No space left"):
    load_text("pydoc")


def test_what_a_builder_lacks_is_told(tmp_path, monkeypatch):
  monkeypatch.setattr(builders.sysconfig, "get_path", lambda _: str(tmp_path))
  with pytest.raises(DataError, match="without the sources") as caught:
    load_text("stdlib")
  assert "`dataset=pydoc`" in caught.value.remedy


def test_a_prepared_cache_need_not_be_writable(cache, monkeypatch):
  corpus = load_text("pydoc")
  monkeypatch.setattr(store, "_locked", None)
  assert load_text("pydoc") == corpus


def test_ours_is_not_prepared_in_a_bucket():
  with pytest.raises(DataError, match="gs://bucket: not a local folder"):
    load_text("pydoc", data_dir="gs://bucket")


def load_and_count(results):
  corpus = load_text("pydoc")
  results.put(sum(map(len, corpus)))


@pytest.mark.processes
def test_two_runs_may_prepare_at_once(cache):
  context = multiprocessing.get_context("spawn")
  results = context.SimpleQueue()
  runs = [
    context.Process(target=load_and_count, args=(results,)) for _ in range(2)
  ]
  for run in runs:
    run.start()
  for run in runs:
    run.join()
  assert results.get() == results.get() == sum(map(len, load_text("pydoc")))
  assert {path.name for path in cache.iterdir()} == {"pydoc", "pydoc.lock"}


def test_an_unknown_dataset_names_the_near_ones_quickly():
  start = time.monotonic()
  with pytest.raises(DataError, match="there is no dataset") as caught:
    load_text("tiny_shakespear")
  assert "tiny_shakespeare?" in caught.value.remedy
  with pytest.raises(DataError) as caught:
    load_text("pydocs")
  assert "pydoc" in caught.value.remedy
  assert time.monotonic() - start < 10


@pytest.mark.parametrize("name", ["", "qqq", "two words", "huggingface:x"])
def test_an_unknown_dataset_is_never_looked_for_elsewhere(name):
  with pytest.raises(DataError, match="there is no dataset") as caught:
    load_text(name)
  assert "`text_file`" in caught.value.remedy


@pytest.mark.parametrize("name", ["tiny_shakespeare", "gigaword", "glue/cola"])
def test_an_unprepared_dataset_says_how_to_prepare_it(name, tmp_path):
  with pytest.raises(DataError, match="is not prepared in") as caught:
    load_text(name, data_dir=tmp_path)
  assert "pip install 'recurrent[prepare]'" in caught.value.remedy
  assert caught.value.remedy.endswith(
    f"tfds build {name} --file_format=array_record --data_dir={tmp_path}"
  )
  with pytest.raises(DataError) as caught:
    load_text(name)
  assert "--data_dir" not in caught.value.remedy


def test_errors_are_one_line_of_cause_and_one_of_remedy(tmp_path):
  for name in ("a/b/c/d", "tiny_shakespeare", "nothing_like_it"):
    with pytest.raises(DataError) as caught:
      load_text(name, data_dir=tmp_path)
    assert "\n" not in caught.value.cause + caught.value.remedy
    assert caught.value.exit_code == 3
