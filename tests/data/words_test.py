"""Words of texts, and their vectors."""

import numpy as np
import pytest

from recurrent.data import words
from recurrent.errors import DataError


def test_texts_are_lower_cased_and_lose_stop_words():
  text = "The cat, it SAT  on 'the' mat."
  assert words.prepare(text, lower=False) == text
  assert words.prepare(text, lower=True) == text.lower()
  drop = words.stop_words()
  assert words.prepare(text, lower=False, drop=drop) == "cat, SAT mat."


VECTORS = "cat 1 2\nthe 3 4\n. . . 5 6\nCAT 7 8\n"


@pytest.mark.parametrize("header", ["", "4 2\n"])
def test_vectors_of_both_formats(tmp_path, header):
  path = tmp_path / "vectors.txt"
  path.write_text(header + VECTORS)
  vocabulary = [" cat", " The", " . . .", "CAT", " dog"]
  found, known = words.read_vectors(path, vocabulary)
  np.testing.assert_array_equal(
    found[:4], np.array([[1, 2], [3, 4], [5, 6], [7, 8]], np.float32)
  )
  assert known.tolist() == [True] * 4 + [False]
  again, _ = words.read_vectors(path, vocabulary)
  np.testing.assert_array_equal(found, again)
  assert np.isfinite(found).all()


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("cat 1 2\nthe 3\n", "line 2: 1 numbers, and the lines before have 2"),
    ("cat 1 2\nthe 3 x\n", "line 2: could not convert"),
    ("cat 1 nan\n", "line 1: a number is not finite"),
    ("dog 1 2\n", "none of the 2 words"),
  ],
)
def test_bad_vectors_are_refused_with_the_line(tmp_path, content, message):
  path = tmp_path / "vectors.txt"
  path.write_text(content)
  with pytest.raises(DataError) as error:
    words.read_vectors(path, [" cat", " the"])
  assert message in error.value.cause
