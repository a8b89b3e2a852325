import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurrent.data import overlap

TEXT = st.text("ab\n", max_size=60)


def slowly(text, others, length):
  """The definition."""
  return [
    any(text[start : start + length] in other for other in others)
    for start in range(max(0, len(text) - length + 1))
  ]


@settings(deadline=None)
@given(TEXT, st.lists(TEXT, max_size=3), st.integers(1, 9), st.integers(1, 20))
def test_runs_are_those_of_the_definition_whatever_the_chunk(
  text, others, length, chunk
):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(overlap, "_CHUNK", chunk)
    overlap._powers.cache_clear()
    begins = overlap.repeated(text, others, length)
    shared = overlap.share(text, others, length)
  overlap._powers.cache_clear()
  assert begins.tolist() == slowly(text, others, length)
  inside = {
    start + place for start in np.flatnonzero(begins) for place in range(length)
  }
  assert shared == pytest.approx(len(inside) / max(1, len(text)))


def test_a_run_of_one_character_less_does_not_count():
  text = "".join(map(chr, range(0x1F600, 0x1F600 + 99)))
  assert overlap.share("x" + text + "y", ["a" + text + "b"]) == 0
  assert overlap.share("x" + text + "b", ["a" + text + "b"]) == 100 / 101


@settings(deadline=None)
@given(TEXT, TEXT, st.integers(1, 9))
def test_paragraphs_with_a_run_are_left_out_and_the_others_stay(
  text, other, length
):
  kept = overlap.without_repeated_paragraphs(text, [other], length)
  split = lambda part: [p for p in re.split(r"\n\n+", part) if p]
  assert split(kept) == [
    paragraph
    for paragraph in split(text)
    if not any(slowly(paragraph, [other], length))
  ]


def test_lines_of_white_space_are_blank():
  text = "one two\n \t\nthree four\n\n\nfive six"
  left = overlap.without_repeated_paragraphs(text, ["- three four -"], 10)
  assert left == "one two\n \t\nfive six"
  assert overlap.without_repeated_paragraphs("", ["a"], 1) == ""


def test_of_long_texts_the_first_part_is_looked_at(monkeypatch):
  monkeypatch.setattr(overlap, "MOST", 20)
  monkeypatch.setattr(overlap, "MOST_OTHERS", 30)
  assert overlap.share("a" * 20 + "b" * 20, ["x" * 25, "a" * 9], 5) == 1
  assert overlap.share("a" * 20 + "b" * 20, ["x" * 25, "b" * 9], 5) == 0
  assert overlap.share("a" * 20, ["x" * 26, "a" * 9], 5) == 0


def test_a_length_that_is_not_positive_is_refused():
  with pytest.raises(ValueError, match="length must be 1 or more, got 0"):
    overlap.repeated("a", ["a"], 0)
