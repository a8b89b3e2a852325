"""Labels of tokens in figures."""

import numpy as np
import pytest

from experiments import figures, glyphs

# A character of a private use area is in no font.
NOWHERE = "\uf8fe"


@pytest.mark.parametrize(
  ("token", "label"),
  [
    ("a", "a"),
    ("март", "март"),
    (" the", "\u2423the"),
    ("\n", "\u21b5"),
    ("$5", r"\$5"),
    ("\u0301", "\u25cc\u0301"),
    (f"a{NOWHERE}", "aU+F8FE"),
    ("\u200f", "U+200F"),
    ("", ""),
  ],
  ids=ascii,
)
def test_every_token_has_a_label_without_boxes(token, label):
  labels = glyphs.Labels([token])
  assert labels.show(token) == label
  assert labels.fonts[:1] in ([], [glyphs.DEFAULT])


def test_a_picture_of_tokens_of_all_scripts_has_no_missing_glyph(tmp_path):
  # A missing glyph would be a warning, and warnings are errors here.
  source = [*"5. März", "年", "م", "\u0941", "$", NOWHERE, "\\x", "^"]
  path = tmp_path / "attention.png"
  one = figures.AttentionMap(np.eye(2, len(source)), source, ["1", "</s>"])
  figures.attention(path, [one, one])
  assert path.stat().st_size > 5000
