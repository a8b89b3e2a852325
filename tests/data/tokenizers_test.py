import builtins
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurrent.data import TOKENIZERS, load_text, tokenizers
from recurrent.errors import ConfigError, DataError

TRAIN = (
  "def walk(top):\n  for name in names:\n\tyield  top, name\n\n"
  "The cell keeps the carry; the carry keeps the past.\r\n"
) * 30
HARD = (
  "\n\n  a\t\tb \r\n ▁▁ x▁y é e\u0301 日本 😀 \x00 \ufeff <unk> <0x41>  \n "
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=60)


@pytest.fixture(scope="module")
def built():
  return {
    name: tokenizers.build(
      name, TRAIN, vocab_size=320 if name == "sentencepiece" else None
    )
    for name in TOKENIZERS
  }


@pytest.mark.parametrize("name", TOKENIZERS)
def test_decoding_the_train_text_is_exact(built, name):
  tokenizer = built[name]
  ids = tokenizer.encode(TRAIN)
  assert tokenizer.decode(ids) == TRAIN
  assert tokenizer.unknown(TRAIN) == []
  assert 0 <= ids.min() and ids.max() < tokenizer.vocab_size


@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_empty_text_has_no_ids(built, name):
  ids = built[name].encode("")
  assert ids.shape == (0,)
  assert np.issubdtype(ids.dtype, np.integer)
  assert built[name].decode(ids) == built[name].decode([]) == ""


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_saved_tokenizer_is_the_same_value(built, name, tmp_path):
  built[name].save(tmp_path / "tokenizer.json")
  loaded = tokenizers.load(tmp_path / "tokenizer.json")
  assert loaded == built[name]
  assert hash(loaded) == hash(built[name])
  assert (loaded.encode(HARD) == built[name].encode(HARD)).all()
  assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_same_text_builds_the_same_tokenizer(built, name):
  size = 320 if name == "sentencepiece" else None
  assert tokenizers.build(name, TRAIN, vocab_size=size) == built[name]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_id_outside_of_the_vocabulary_is_a_value_error(built, name):
  for wrong in (-1, built[name].vocab_size):
    with pytest.raises(ValueError, match=f"got some in \\[.*{wrong}"):
      built[name].decode([0, wrong])


EXACT = [name for name, kind in TOKENIZERS.items() if kind.exact]


def test_all_but_words_are_exact():
  assert EXACT == ["byte", "char", "sentencepiece"]


@pytest.mark.parametrize("name", EXACT)
@settings(deadline=None)
@given(text=TEXT)
def test_exact_tokenizers_give_back_any_text(built, name, text):
  assert built[name].decode(built[name].encode(text)) == text
  if name != "char":
    assert built[name].unknown(text) == []


@pytest.mark.parametrize("name", EXACT)
def test_exact_tokenizers_give_back_hard_text(built, name):
  assert built[name].decode(built[name].encode(HARD)) == HARD


@settings(deadline=None)
@given(train=st.text(min_size=1, max_size=9), text=st.text(max_size=60))
def test_characters_that_the_train_text_lacks_are_spelt_out(train, text):
  tokenizer = tokenizers.build("char", train)
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert not ids.size or ids.max() < tokenizer.vocab_size
  lacking = sum(c not in train for c in text)
  digits = np.ceil(np.log(0x110000) / np.log(tokenizer.vocab_size))
  assert len(ids) == len(text) + lacking * digits


@pytest.mark.parametrize(
  "ids", [[0], [0, 1], [0, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]]
)
def test_what_spells_no_character_is_decoded_as_one_replacement(ids):
  # To the base of 3 the largest code point has 13 digits.
  tokenizer = tokenizers.CharTokenizer("ab")
  assert len(tokenizer.encode("c")) == 14
  assert tokenizer.decode([1, *ids]) == "a\ufffd"
  assert tokenizer.decode([0, *[2] * 13, 1]) == "\ufffda"


# Ids that come in parts.


def in_parts(tokenizer, ids, cuts):
  """The parts of the text that an incremental decoder gives."""
  decoder = tokenizer.incremental_decoder()
  parts = np.split(np.asarray(ids, int), sorted(cuts))
  texts = [decoder.decode(part) for part in parts]
  return [*texts, decoder.decode([], final=True)]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None)
@given(data=st.data())
def test_ids_in_parts_are_the_text_of_all_ids(built, name, data):
  tokenizer = built[name]
  # Any ids: as bytes most are no UTF-8. And those of hard text.
  any_id = st.integers(0, tokenizer.vocab_size - 1)
  hard = tokenizer.encode(HARD).tolist()
  ids = data.draw(st.lists(any_id, max_size=40) | st.just(hard))
  cuts = data.draw(st.lists(st.integers(0, len(ids)), max_size=10))
  assert "".join(in_parts(tokenizer, ids, cuts)) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", ["byte", "sentencepiece"])
def test_only_an_unfinished_character_is_held_back(built, name):
  tokenizer = built[name]
  ids = tokenizer.encode(HARD)
  *texts, last = in_parts(tokenizer, ids, range(1, len(ids)))
  assert last == "" and not any("\ufffd" in text for text in texts)
  shown = ""
  for count, text in enumerate(texts, 1):
    shown += text
    assert shown == tokenizer.decode(ids[:count]).rstrip("\ufffd")


@settings(deadline=None)
@given(text=TEXT)
def test_an_unknown_word_gets_id_zero(text):
  tokenizer = tokenizers.build("word", "a b, c\nd  e", min_count=1)
  pieces = list(tokenizers._words(text))
  assert "".join(pieces) == text
  ids = tokenizer.encode(text)
  assert len(ids) == len(pieces)
  lacking = {piece for piece, id_ in zip(pieces, ids, strict=True) if id_ == 0}
  assert tokenizer.unknown(text) == sorted(lacking)
  assert tokenizer.decode(ids) == "".join(
    " <unk>" if piece in lacking else piece for piece in pieces
  )


@settings(deadline=None)
@given(train=st.text(min_size=1, max_size=60), data=st.data())
def test_char_ids_are_positions_in_the_sorted_alphabet(train, data):
  tokenizer = tokenizers.build("char", train)
  text = data.draw(st.text(sorted(set(train)), max_size=60))
  alphabet = sorted(set(train))
  assert tokenizer.vocab_size == len(alphabet) + 1
  assert tokenizer.encode(text).tolist() == [
    1 + alphabet.index(c) for c in text
  ]


def test_char_ids_do_not_depend_on_the_chunk(monkeypatch, built):
  whole = built["char"].encode(TRAIN + HARD)
  monkeypatch.setattr(tokenizers, "_CHUNK", 7)
  np.testing.assert_array_equal(built["char"].encode(TRAIN + HARD), whole)


def test_ids_take_the_smallest_type(built):
  assert built["byte"].encode("a").dtype == np.uint8
  assert built["char"].encode("a").dtype == np.uint8
  assert built["sentencepiece"].encode("a").dtype == np.uint16
  for size, kind in [(256, np.uint8), (257, np.uint16), (65536, np.uint16)]:
    assert tokenizers._id_type(size) is kind
  assert tokenizers._id_type(65537) is np.int32
  wide = tokenizers.build("char", "".join(map(chr, range(0x4E00, 0x4F00))))
  assert wide.encode("\u4eff").tolist() == [256]


def test_words_carry_the_space_before_them():
  assert list(tokenizers._words("The cat, sat.\n\n  On a  mat")) == [
    "The",
    " cat",
    ",",
    " sat",
    ".",
    "\n\n  ",
    "On",
    " a",
    "  ",
    "mat",
  ]


def test_words_are_sorted_by_count_and_cut():
  text = "x b b b a a c c d"
  assert tokenizers.build("word", text).words == (" b", " a", " c")
  assert tokenizers.build("word", text, vocab_size=3).words == (" b", " a")
  assert tokenizers.build("word", text, min_count=3).words == (" b",)
  everything = tokenizers.build("word", text, min_count=1).words
  assert everything == (" b", " a", " c", " d", "x")


def test_pieces_learn_words_and_indentation():
  text = load_text("pydoc").train
  pieces = tokenizers.build("sentencepiece", text, vocab_size=1000)
  assert len(pieces.encode("the value of the expression")) <= 7
  assert len(pieces.encode("    ")) < 4


def test_lines_however_long_are_trained_on_and_encoded():
  text = "the carry keeps the past " * 2000
  tokenizer = tokenizers.build("sentencepiece", text, vocab_size=300)
  ids = tokenizer.encode(text)
  assert len(ids) < len(text) / 2
  assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("bytes", {}, "no tokenizer 'bytes'"),
    ("byte", {"vocab_size": 8}, "the byte tokenizer has no vocab_size"),
    ("char", {"min_count": 2}, "the char tokenizer has no min_count"),
    ("sentencepiece", {"min_count": 2}, "has no min_count"),
    ("sentencepiece", {"vocab_size": 10}, "vocab_size 10: .*10 vs"),
    ("word", {"min_count": 0}, "min_count must be 1 or more"),
    ("word", {"min_count": 999}, "occurs 999 times"),
  ],
)
def test_a_tokenizer_that_cannot_be_built_is_told(
  name, options, message, capfd
):
  with pytest.raises(ConfigError, match=message) as caught:
    tokenizers.build(name, TRAIN, **options)
  assert "\n" not in caught.value.cause + caught.value.remedy
  assert capfd.readouterr() == ("", "")


def test_training_pieces_is_silent(capfd):
  tokenizers.build("sentencepiece", TRAIN, vocab_size=300).encode(HARD)
  assert capfd.readouterr() == ("", "")


def test_pieces_need_the_extra(built, monkeypatch):
  real = builtins.__import__

  def without(name, *args, **kwargs):
    if name == "sentencepiece":
      raise ImportError(name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", without)
  with pytest.raises(ConfigError) as caught:
    tokenizers.build("sentencepiece", TRAIN)
  assert "pip install 'recurrent[text]'" in caught.value.remedy


@pytest.mark.parametrize(
  "content",
  [
    "",
    "[]",
    "{}",
    json.dumps({"tokenizer": "morse"}),
    json.dumps({"tokenizer": "char"}),
    json.dumps({"tokenizer": "char", "alphabet": "a", "extra": 1}),
    json.dumps({"tokenizer": "char", "alphabet": 3}),
    json.dumps({"tokenizer": "char", "alphabet": ""}),
    json.dumps({"tokenizer": "sentencepiece", "model": "?"}),
    json.dumps({"tokenizer": "sentencepiece", "model": "AAAA"}),
    "\xff",
  ],
)
def test_a_file_that_is_no_tokenizer_is_told(tmp_path, content, capfd):
  path = tmp_path / "tokenizer.json"
  path.write_text(content, encoding="latin-1")
  with pytest.raises(DataError, match="tokenizer.json is not a tokenizer"):
    tokenizers.load(path)
  assert capfd.readouterr().out == ""


def test_a_missing_tokenizer_is_told(tmp_path):
  with pytest.raises(DataError, match="No such file"):
    tokenizers.load(tmp_path / "tokenizer.json")
