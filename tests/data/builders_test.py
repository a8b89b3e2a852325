import sysconfig
from pydoc_data.topics import topics

import pytest
import tensorflow_datasets as tfds

from recurrent.data import builders, overlap
from recurrent.errors import DataError


def texts(builder_cls, folder):
  return builder_cls(data_dir=folder, file_format="array_record").texts()


def test_pydoc_is_the_sorted_topics_cut_at_90_and_95_percent(tmp_path):
  splits = texts(builders.Pydoc, tmp_path)
  whole = "\n".join(text for _, text in sorted(topics.items()))
  assert list(splits) == ["train", "valid", "test"]
  assert whole.startswith(splits["train"] + splits["valid"])
  assert len(splits["train"]) == int(0.9 * len(whole))
  last = whole[int(0.95 * len(whole)) :]
  assert set(splits["test"].split("\n\n")) < set(last.split("\n\n"))


def test_no_paragraph_of_pydocs_test_split_is_in_the_splits_before(tmp_path):
  splits = texts(builders.Pydoc, tmp_path)
  for paragraph in splits["test"].split("\n\n"):
    before = [splits["train"], splits["valid"]]
    assert not overlap.repeated(paragraph, before).any()
  # It is not what was cached under the version before it was cleaned.
  assert str(builders.Pydoc.VERSION) != str(builders.Stdlib.VERSION)


def test_stdlib_has_each_source_once_and_no_tests(tmp_path):
  splits = texts(builders.Stdlib, tmp_path)
  sources = dict(builders._sources(sysconfig.get_path("stdlib")))
  assert list(sources) == sorted(sources)
  assert {"json/decoder.py", "os.py", "unittest/case.py"} <= set(sources)
  assert not any("/test/" in name or "packages/" in name for name in sources)
  joins = len(sources) - len(splits)
  total = sum(map(len, sources.values())) + joins
  assert sum(map(len, splits.values())) == total
  assert 0.8 < len(splits["train"]) / total < 0.97


def test_stdlib_leaves_out_tests_packages_and_what_is_not_text(tmp_path):
  for name in ("b.py", "a/c.py", "a.py"):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(name)
  for name in ("test/x.py", "site-packages/x.py", "_sysconfigdata_linux.py"):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("no")
  (tmp_path / "latin.py").write_bytes(b"\xe9t\xe9")
  (tmp_path / "dangling.py").symlink_to(tmp_path / "nowhere")
  found = list(builders._sources(str(tmp_path)))
  assert found == [(name, name) for name in ("a.py", "a/c.py", "b.py")]


def test_a_file_is_in_the_same_split_on_every_machine():
  assert builders._split_of("json/decoder.py") == "train"
  names = [f"file{number}.py" for number in range(2000)]
  counts = [
    sum(builders._split_of(name) == split for name in names) / len(names)
    for split in ("train", "valid", "test")
  ]
  # Three standard deviations of 2000 draws.
  assert counts == pytest.approx([0.9, 0.05, 0.05], abs=0.02)


def test_records_are_whole_lines_in_order(tmp_path):
  class Hard(builders._Lines, skip_registration=True):
    name = "hard"

    def texts(self):
      lines = "\n".join(map(str, range(1000)))
      return {"train": lines, "valid": "\n\na\r\n\n", "test": "é"}

  builder = Hard(data_dir=tmp_path, file_format="array_record")
  builder.download_and_prepare()
  for split, text in builder.texts().items():
    source = builder.as_data_source(split)
    assert b"\n".join(one["text"] for one in source) == text.encode()
  assert len(builder.as_data_source("train")) == 8


def test_the_version_is_pythons(tmp_path):
  import platform

  builder = builders.Stdlib(data_dir=tmp_path, file_format="array_record")
  assert str(builder.version) == platform.python_version().rstrip("+")
  assert tfds.builder_cls("pydoc") is builders.Pydoc


def test_a_python_without_sources_is_a_data_error(tmp_path, monkeypatch):
  monkeypatch.setattr(builders.sysconfig, "get_path", lambda _: str(tmp_path))
  with pytest.raises(DataError, match="without the sources"):
    texts(builders.Stdlib, tmp_path)
