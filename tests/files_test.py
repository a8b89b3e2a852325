import json
import math

import numpy as np
import pytest

from recurrent import files


def test_a_failed_write_leaves_the_old_text(tmp_path, monkeypatch):
  path = tmp_path / "notes.txt"
  files.write_text(path, "old\n")

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(files.os, "replace", full)
  with pytest.raises(OSError, match="No space"):
    files.write_text(path, "new\n")
  assert path.read_text() == "old\n"


def test_a_text_is_replaced_and_nothing_is_left_beside_it(tmp_path):
  path = tmp_path / "notes.txt"
  for text in ("старый\n", "新しい\n"):
    files.write_text(path, text)
    assert path.read_text(encoding="utf-8") == text
  assert list(tmp_path.iterdir()) == [path]


def test_numbers_that_are_not_finite_become_null_at_any_depth():
  value = {"a": math.nan, "b": [np.float32(-np.inf), (1, np.int64(2))]}
  assert json.loads(files.to_json(value)) == {"a": None, "b": [None, [1, 2]]}
  assert files.to_json({"a": 0.5, "b": None}) == '{"a": 0.5, "b": null}'
