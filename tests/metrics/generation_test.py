"""Metrics of generated texts."""

import pytest

from recurrent.metrics import generation


def test_the_share_of_repeated_words_is_counted_within_each_text():
  assert generation.repeated_share(["a b a b a b", "a b"], n=2) == 3 / 6
  assert generation.repeated_share(["a b c", "a b c"]) == 0
  assert generation.repeated_share(["A, b! a; B."], n=2) == 1 / 3
  assert generation.repeated_share(["", "a"]) == 0


def test_the_share_of_copied_words_is_counted_within_each_pair():
  sources = ["One two three.", "four"]
  assert generation.copied_share(["two ONE!", "one"], sources) == 2 / 3
  assert generation.copied_share([""], ["a"]) == 0


@pytest.mark.parametrize(
  ("text", "first"),
  [
    ("One. Two.", "One."),
    ("Is it? Yes", "Is it?"),
    ("See a.b for more", "See a.b for more"),
    ("Version 1.2 is out! Really", "Version 1.2 is out!"),
    ("", ""),
  ],
)
def test_the_lead_is_the_first_sentence(text, first):
  assert generation.first_sentence(text) == first


def test_rouge_is_the_f1_of_common_words_and_pairs_of_them():
  pytest.importorskip("rouge_score")
  found = generation.rouge(["the cat sat"], ["the cats sleep now"])
  # Two of three and four words are common after stemming, and one pair.
  assert found["rouge1"] == pytest.approx(100 * 2 * 2 / (3 + 4))
  assert found["rouge2"] == pytest.approx(100 * 2 * 1 / (2 + 3))
  assert found["rougeL"] == found["rouge1"]
  assert set(generation.rouge(["a"], ["a"]).values()) == {100, 0}


def test_translations_are_scored_with_signatures():
  pytest.importorskip("sacrebleu")
  same = ["one two three four", "five six seven eight"]
  found = generation.translation(same, same)
  assert found["exact_match"] == 1 and found["bleu"] == pytest.approx(100)
  assert "version:" in found["bleu_signature"]
