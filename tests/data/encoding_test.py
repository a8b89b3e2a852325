"""Labelled sequences as examples."""

import numpy as np
import pytest

from recurrent.data import encoding, labelled, tokenizers
from recurrent.errors import DataError

SPLITS = np.array(["train", "train", "test"])


def values(**fields):
  inputs = [
    np.array([[1.0, 5.0], [np.nan, 5.0], [3.0, 5.0]]),
    np.array([[5.0, 5.0]]),
    np.array([[np.nan, 5.0], [100.0, 5.0]]),
  ]
  return labelled.Labelled(
    "values", inputs, np.array(["b", "a", "b"]), SPLITS, **fields
  )


def texts(**fields):
  inputs = ["The cat sat", "a cat", "the dog"]
  return labelled.Labelled(
    "text", inputs, np.array([1, 0, 1]), SPLITS, **fields
  )


def word_tokenizer(text):
  return tokenizers.build("word", text, min_count=1)


def test_values_are_scaled_by_what_train_observes():
  data = values()
  encoder = encoding.fit(data)
  np.testing.assert_allclose(encoder.mean, [3, 5])
  np.testing.assert_allclose(encoder.scale, [np.sqrt(8 / 3), 1])
  [first, second, _] = encoder.encode(data).examples
  np.testing.assert_allclose(first["inputs"][:, 0], [-1.2247, 0, 0], 1e-4)
  np.testing.assert_array_equal(first["inputs"][:, 1], 0)
  assert [first["labels"], second["labels"]] == [1, 0]


def test_values_can_be_scaled_alike_or_not_at_all():
  data = values()
  alike = encoding.fit(data, scaling="all")
  seen = np.array([1, 5, 5, 3, 5, 5, 5])
  np.testing.assert_allclose(alike.mean, [seen.mean()])
  np.testing.assert_allclose(alike.scale, [seen.std()])
  plain = encoding.fit(data, scaling="none").encode(data).examples[0]
  np.testing.assert_array_equal(plain["inputs"], [[1, 5], [3, 5], [3, 5]])


def test_dropped_and_cut_time_steps_have_no_place():
  data = values(times=[np.arange(3.0), np.zeros(1), np.arange(2.0)])
  encoder = encoding.fit(data, strategy="drop")
  found = encoder.encode(data)
  assert len(found.examples[0]["inputs"]) == 2
  assert found.steps[0].tolist() == [0, -1, 1]
  short = encoding.fit(data, max_length=2).encode(data)
  assert short.steps[0].tolist() == [0, 1, -1]


def test_a_cut_is_counted_in_the_log(caplog):
  caplog.set_level("INFO")
  data = values()
  encoding.fit(data, max_length=2).encode(data)
  assert "1 of 3 sequences have more than max_length=2" in caplog.text


def test_gaps_are_shown_to_networks_that_read_them():
  data = values(times=[np.array([7.0, 8, 11]), np.ones(1), np.arange(2.0)])
  encoder = encoding.fit(data, strategy="decay")
  example = encoder.encode(data).examples[0]
  assert example["observed"].tolist() == [
    [True, True],
    [False, True],
    [True] * 2,
  ]
  # The unit of times is the mean span of a training sequence: (4 + 0) / 2.
  np.testing.assert_allclose(example["times"], [0, 0.5, 2])
  assert encoder.ragged.keys() == {"inputs", "observed", "times"}


def test_texts_are_prepared_before_they_are_encoded():
  encoder = encoding.fit(texts(), tokenizer=word_tokenizer, stop_words=True)
  assert encoder.tokenizer.unknown(" cat sat") == []
  assert encoder.vocab_size == encoder.tokenizer.vocab_size
  inputs = [x["inputs"].tolist() for x in encoder.encode(texts()).examples]
  assert [len(x) for x in inputs] == [2, 1, 1]
  assert inputs[2] == [0]  # Train has no "dog".


def test_the_first_word_is_the_same_token_as_elsewhere():
  data = labelled.Labelled(
    "text", ["cat dog", "dog"], np.arange(2), np.array(["train"] * 2)
  )
  encoder = encoding.fit(data, tokenizer=word_tokenizer)
  first, second = [x["inputs"] for x in encoder.encode(data).examples]
  assert first[1] == second[0] != 0


@pytest.mark.parametrize("kind", ["word", "char"])
def test_the_label_of_a_word_is_at_its_last_token(kind):
  labels = [
    np.array(["a", "b", "a"]),
    np.array(["a", "b"]),
    np.array(["b"] * 2),
  ]
  data = labelled.Labelled(
    "text", texts().inputs, labels, SPLITS, per_step=True
  )
  tokenizer = lambda text: tokenizers.build(
    kind, text, min_count=1 if kind == "word" else None
  )
  encoder = encoding.fit(data, tokenizer=tokenizer)
  found = encoder.encode(data)
  lengths = {"word": 1, "char": 4}[kind] * np.arange(1, 4) - 1
  assert found.steps[0].tolist() == lengths.tolist()
  got = found.examples[0]["labels"]
  assert got[found.steps[0]].tolist() == [0, 1, 0]
  assert (got == encoding.UNLABELLED).sum() == len(got) - 3
  assert found.targets().tolist() == [0, 1, 0, 0, 1, 1, 1]
  padded = [np.pad(x["labels"], (0, 3)) for x in found.examples]
  np.testing.assert_array_equal(found.flatten(padded), found.targets())
  again = found.unflatten(found.targets())
  assert [x.tolist() for x in again] == [[0, 1, 0], [0, 1], [1, 1]]


@pytest.mark.parametrize("data", [values(), texts()], ids=["values", "texts"])
def test_a_saved_encoder_encodes_alike(tmp_path, data):
  encoder = encoding.fit(data, tokenizer=word_tokenizer, strategy="linear")
  encoder.save(tmp_path)
  again = encoding.load(tmp_path)
  for one, two in zip(
    encoder.encode(data).examples, again.encode(data).examples, strict=True
  ):
    np.testing.assert_array_equal(one["inputs"], two["inputs"])
    np.testing.assert_array_equal(one["labels"], two["labels"])


def test_data_of_another_kind_or_width_are_refused(tmp_path):
  encoder = encoding.fit(values())
  with pytest.raises(DataError, match="the data are text"):
    encoder.encode(texts())
  wide = labelled.Labelled("values", [np.zeros((2, 3))], None)
  with pytest.raises(DataError, match="sequence 0: 3 variables, not 2"):
    encoder.encode(wide)
  tokens = labelled.Labelled(
    "tokens", [np.array([1, 4]), np.array([0])], np.arange(2), SPLITS[:2]
  )
  new = labelled.Labelled("tokens", [np.array([5])], None)
  with pytest.raises(DataError, match="token 5, and the largest"):
    encoding.fit(tokens).encode(new)
  with pytest.raises(DataError, match=r"cannot read .*encoder\.json"):
    encoding.load(tmp_path)
