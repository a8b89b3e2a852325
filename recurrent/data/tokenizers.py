"""Tokenizers: text to integer ids and back. Each is a value: equal if alike.

`build` makes one from a train text; `save` and `load` keep it as JSON. Ids are
of the smallest type that holds them (uint8, uint16, int32): a text of a hundred
million characters should not take 800 MB.
"""

import abc
import base64
import collections
import dataclasses
import functools
import inspect
import io
import itertools
import json
import os
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from recurrent.errors import ConfigError, DataError

_CHUNK = 1 << 20  # Characters encoded at once.


@dataclasses.dataclass(frozen=True)
class Tokenizer(abc.ABC):
  """What every tokenizer does. Its fields are its vocabulary."""

  name: ClassVar[str]
  # Whether decoding gives back every text. Only then are bits a character
  # those of the text: an unknown word that is one id costs next to nothing.
  exact: ClassVar[bool] = True

  @classmethod
  @abc.abstractmethod
  def train(cls, text: str) -> Self:
    """Makes a tokenizer with the vocabulary of `text`."""

  @property
  @abc.abstractmethod
  def vocab_size(self) -> int:
    """The number of ids: they run from 0 to `vocab_size - 1`."""

  @abc.abstractmethod
  def encode(self, text: str) -> np.ndarray:
    """The ids of `text`, [tokens]: uint8, uint16 or int32."""

  @abc.abstractmethod
  def decode(self, ids: ArrayLike) -> str:
    """The text of `ids`, [tokens]; ValueError for an id that there is not."""

  def incremental_decoder(self) -> "IncrementalDecoder":
    """Decodes ids that come in parts, such as blocks of drawn tokens."""
    return IncrementalDecoder(self)

  def unknown(self, text: str) -> list[str]:
    """What in `text` the vocabulary lacks, sorted, each once."""
    del text
    return []

  def save(self, path: str | os.PathLike) -> None:
    """Writes JSON for `load`, whole or not at all."""
    path = pathlib.Path(path)
    content = {"tokenizer": self.name, **dataclasses.asdict(self)}
    scratch = path.with_name(path.name + ".incomplete")
    scratch.write_text(json.dumps(content), encoding="ascii")
    os.replace(scratch, path)


class IncrementalDecoder:
  """Turns parts of a sequence of ids into parts of its text.

  A character of several bytes may begin in one part and end in the next. The
  texts of all parts, joined, are what `decode` makes of all ids at once.

  Args:
    tokenizer: any tokenizer whose `decode` joins the bytes of its ids.
  """

  # Bytes of a UTF-8 character that lacks its end, each U+FFFD at most once.
  _UNFINISHED = 3

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer = tokenizer
    self._ids: list[int] = []  # The ids since the last whole character ...
    self._shown = 0  # ... and how many characters of their text were returned.

  def decode(self, ids: ArrayLike, *, final: bool = False) -> str:
    """The text that is certain now and was not before.

    Args:
      ids: the next ids, [tokens].
      final: whether these are the last, so that nothing may be held back.

    Returns:
      The text, without a last character that later ids may still complete.

    Raises:
      ValueError: for an id that there is not.
    """
    pending = self._ids + np.asarray(ids).tolist()
    text = self._tokenizer.decode(pending)
    certain = len(text)
    if not final:
      replaced = certain - len(text.rstrip("\ufffd"))
      certain -= min(replaced, self._UNFINISHED)
    new = text[self._shown : certain]
    if certain == len(text):
      self._ids, self._shown = [], 0
    else:
      self._ids, self._shown = pending, max(self._shown, certain)
    return new


@dataclasses.dataclass(frozen=True)
class ByteTokenizer(Tokenizer):
  """The bytes of UTF-8: nothing to learn, nothing unknown."""

  name = "byte"

  @classmethod
  def train(cls, text):
    """There is nothing to learn from `text`."""
    del text
    return cls()

  @property
  def vocab_size(self):
    """256."""
    return 256

  def encode(self, text):
    """The bytes."""
    return np.frombuffer(text.encode("utf-8"), np.uint8)

  def decode(self, ids):
    """The text; what is no UTF-8 becomes U+FFFD."""
    ids = _checked(ids, self.vocab_size)
    return ids.astype(np.uint8).tobytes().decode("utf-8", errors="replace")


@dataclasses.dataclass(frozen=True)
class CharTokenizer(Tokenizer):
  """Characters; one that the train text lacks is spelt out: exact.

  It is written as id 0 and then its code point, in digits to the base of
  `vocab_size`, as many as the largest code point has. So a text with rare
  characters needs no larger vocabulary. What is no code point is decoded as
  U+FFFD.

  Args:
    alphabet: the characters of ids 1, 2, ...

  Raises:
    ValueError: if there is none.
  """

  alphabet: str

  name = "char"

  def __post_init__(self):
    if not self.alphabet:
      raise ValueError("alphabet must have a character, got none")

  @classmethod
  def train(cls, text):
    """The characters of `text`, sorted."""
    return cls("".join(sorted(set(text))))

  @property
  def vocab_size(self):
    """The characters, and 0."""
    return len(self.alphabet) + 1

  @functools.cached_property
  def _places(self) -> np.ndarray:
    """What the digits of a code point count, the greatest first."""
    places = [1]
    while places[0] * self.vocab_size <= sys.maxunicode:
      places.insert(0, places[0] * self.vocab_size)
    return np.array(places)

  @functools.cached_property
  def _codes(self) -> np.ndarray:
    return _codepoints("\ufffd" + self.alphabet)

  @functools.cached_property
  def _ids(self) -> np.ndarray:
    """Ids by code point; the last entry, 0, is for all code points above."""
    known = self._codes[1:]
    size = int(known.max(initial=0)) + 2
    ids = np.zeros(size, _id_type(self.vocab_size))
    ids[known] = np.arange(1, self.vocab_size)
    return ids

  def encode(self, text):
    """One id a known character, 0 and digits for another."""
    parts = [self._ids[:0]]
    for start in range(0, len(text), _CHUNK):
      codes = _codepoints(text[start : start + _CHUNK])
      ids = self._ids[np.minimum(codes, len(self._ids) - 1)]
      [lacking] = np.nonzero(ids == 0)
      digits = codes[lacking, None] // self._places % self.vocab_size
      after = np.repeat(lacking + 1, len(self._places))
      parts.append(np.insert(ids, after, digits.ravel()))
    return np.concatenate(parts)

  def decode(self, ids):
    """The characters."""
    ids = _checked(ids, self.vocab_size)
    codes, place = [], 0
    for zero in np.flatnonzero(ids == 0).tolist():
      if zero < place:
        continue  # A digit.
      codes.append(self._codes[ids[place:zero]])
      place = zero + 1 + len(self._places)
      digits = ids[zero + 1 : place]
      code = int(self._codes[0])
      if len(digits) == len(self._places):
        spelt = int(digits @ self._places)
        code = spelt if spelt <= sys.maxunicode else code
      codes.append(np.array([code], self._codes.dtype))
    codes.append(self._codes[ids[place:]])
    joined = np.concatenate(codes).tobytes()
    return joined.decode("utf-32-le", errors="surrogatepass")

  def unknown(self, text):
    """The characters that the train text lacks."""
    return sorted(set(text).difference(self.alphabet))


@dataclasses.dataclass(frozen=True)
class WordTokenizer(Tokenizer):
  """Words, each with the space before it: a closed vocabulary.

  Runs of other white space, and of punctuation, are words as well. Id 0 is a
  word that is not in the vocabulary, decoded as ` <unk>`.

  Args:
    words: the words of ids 1, 2, ...

  Reference:
    The leading space: Radford et al., "Language models are unsupervised
    multitask learners", 2019.
  """

  words: tuple[str, ...]

  name = "word"
  exact = False

  @classmethod
  def train(cls, text, *, min_count=2, vocab_size=None):
    """The words of `text`, the most frequent first.

    Args:
      text: the train text.
      min_count: leave out words with fewer occurrences.
      vocab_size: keep at most so many ids; None for no limit.

    Returns:
      The tokenizer.

    Raises:
      ConfigError: if no word has as many occurrences.
    """
    counts = collections.Counter(_words(text))
    words = sorted(
      (word for word, count in counts.items() if count >= min_count),
      key=lambda word: (-counts[word], word),
    )
    if not words:
      raise ConfigError(
        f"no word of the train text occurs {min_count} times",
        "choose a smaller min_count, or give a longer text",
      )
    return cls(tuple(words if vocab_size is None else words[: vocab_size - 1]))

  @property
  def vocab_size(self):
    """The words and the unknown one."""
    return len(self.words) + 1

  @functools.cached_property
  def _ids(self) -> dict[str, int]:
    return {word: index for index, word in enumerate(self.words, start=1)}

  def encode(self, text):
    """One id a word."""
    ids = (self._ids.get(word, 0) for word in _words(text))
    return np.fromiter(ids, _id_type(self.vocab_size))

  def decode(self, ids):
    """The words, joined by nothing."""
    words = (" <unk>", *self.words)
    return "".join(
      [words[index] for index in _checked(ids, self.vocab_size).tolist()]
    )

  def unknown(self, text):
    """The words that the vocabulary lacks."""
    return sorted(set(_words(text)).difference(self._ids))


@dataclasses.dataclass(frozen=True)
class SentencePieceTokenizer(Tokenizer):
  """Pieces of words by a unigram model, bytes where there is no piece: exact.

  Args:
    model: SentencePiece's model, in base64.

  Reference:
    Kudo & Richardson, "SentencePiece", 2018; the unigram model: Kudo, "Subword
    regularization", 2018.
  """

  model: str

  name = "sentencepiece"

  @classmethod
  def train(cls, text, *, vocab_size=2000):
    """Fits pieces to the lines of `text`; the same text, the same model.

    Args:
      text: the train text; from a long one, lines evenly spaced.
      vocab_size: the number of pieces, bytes included; it may get fewer if
        the text has not so many.

    Returns:
      The tokenizer.

    Raises:
      ConfigError: if `vocab_size` does not hold the bytes and the common
        characters.
    """
    library = _sentencepiece()
    stride = 1 + len(text) // _TRAINED_CHARACTERS
    model = io.BytesIO()
    try:
      library.SentencePieceTrainer.train(
        sentence_iterator=itertools.islice(_lines(text), 0, None, stride),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        max_sentence_length=4 * _LINE + 1,  # In bytes.
        # All that keeps the text as it is:
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        user_defined_symbols=["\n"],
        # Indentation is worth a piece: argparse.py takes 27 thousand of 1000
        # kinds with it, 48 thousand without.
        allow_whitespace_only_pieces=True,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        minloglevel=2,
      )
    except RuntimeError as error:
      reason = str(error).rpartition("] ")[2].partition(" Increase")[0]
      raise ConfigError(
        f"no sentencepiece model with vocab_size {vocab_size}: "
        + (reason or "the text has no words"),
        "choose a larger vocab_size, a longer text, or another tokenizer",
      ) from error
    return cls(base64.b64encode(model.getvalue()).decode("ascii"))

  @functools.cached_property
  def _processor(self):
    processor = _sentencepiece().SentencePieceProcessor()
    # Unlike the constructor, this refuses an empty model.
    processor.LoadFromSerializedProto(
      base64.b64decode(self.model, validate=True)
    )
    return processor

  @functools.cached_property
  def _space_sign(self) -> list[int]:
    """The bytes of U+2581, with which SentencePiece writes a space."""
    pieces = [f"<0x{byte:02X}>" for byte in "\u2581".encode()]
    return [self._processor.piece_to_id(piece) for piece in pieces]

  @property
  def vocab_size(self):
    """The pieces."""
    return self._processor.get_piece_size()

  def encode(self, text):
    """The most likely pieces, line by line."""
    pieces = itertools.chain.from_iterable(map(self._encode, _lines(text)))
    return np.fromiter(pieces, _id_type(self.vocab_size))

  def _encode(self, line: str) -> list[int]:
    first, *rest = line.split("\u2581")
    ids = self._processor.encode(first)
    for part in rest:
      ids += self._space_sign + self._processor.encode(part)
    return ids

  def decode(self, ids):
    """The text; what is no UTF-8 becomes U+FFFD."""
    return self._processor.decode(_checked(ids, self.vocab_size).tolist())


TOKENIZERS: dict[str, type[Tokenizer]] = {
  "byte": ByteTokenizer,
  "char": CharTokenizer,
  "word": WordTokenizer,
  "sentencepiece": SentencePieceTokenizer,
}


def build(
  name: str,
  train_text: str,
  *,
  vocab_size: int | None = None,
  min_count: int | None = None,
) -> Tokenizer:
  """Makes the tokenizer called `name` for a train text.

  Args:
    name: a key of `TOKENIZERS`.
    train_text: what its vocabulary is from.
    vocab_size: of `sentencepiece`, and at most of `word`; None for its own
      default.
    min_count: occurrences that make a word one, for `word`; None for 2.

  Returns:
    The tokenizer.

  Raises:
    ConfigError: if there is no such tokenizer, or it has no such option, or a
      package is missing.
  """
  if name not in TOKENIZERS:
    raise ConfigError(
      f"there is no tokenizer {name!r}",
      f"choose one of {', '.join(TOKENIZERS)}",
    )
  train = TOKENIZERS[name].train
  given = {"vocab_size": vocab_size, "min_count": min_count}
  options = {key: value for key, value in given.items() if value is not None}
  for option, value in options.items():
    if option not in inspect.signature(train).parameters:
      raise ConfigError(
        f"the {name} tokenizer has no {option}", f"leave out --{option}"
      )
    if value < 1:
      raise ConfigError(
        f"{option} must be 1 or more, got {value}", f"choose another --{option}"
      )
  return train(train_text, **options)


def load(path: str | os.PathLike) -> Tokenizer:
  """Reads what `Tokenizer.save` wrote.

  Args:
    path: the JSON file.

  Returns:
    A tokenizer equal to the one saved.

  Raises:
    DataError: if the file is missing or not a tokenizer.
    ConfigError: if it needs a package that is missing.
  """
  try:
    content = json.loads(pathlib.Path(path).read_text(encoding="ascii"))
    if isinstance(content.get("words"), list):
      content["words"] = tuple(content["words"])
    tokenizer = TOKENIZERS[content.pop("tokenizer")](**content)
    tokenizer.vocab_size  # noqa: B018 - opens a SentencePiece model
  except OSError as error:
    raise DataError(
      f"cannot read tokenizer {path}: {error.strerror}",
      "it is written where training starts: train again, or restore it",
    ) from error
  except (
    AttributeError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
  ) as error:
    raise DataError(
      f"{path} is not a tokenizer, or is damaged",
      "it is written where training starts: train again, or restore it",
    ) from error
  return tokenizer


_WORD = re.compile(r" ?\w+| ?[^\w\s]+|\s+")
_LINE = 4096  # Characters; a longer line is cut.
_TRAINED_CHARACTERS = 8 << 20


def _words(text: str) -> Iterator[str]:
  return (match[0] for match in _WORD.finditer(text))


def _lines(text: str) -> Iterator[str]:
  """Lines with their newlines, the long ones cut."""
  pattern = re.compile(rf"[^\n]{{1,{_LINE}}}\n?|\n")
  return (match[0] for match in pattern.finditer(text))


def _codepoints(text: str) -> np.ndarray:
  return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _id_type(vocab_size: int) -> type[np.integer]:
  for kind in (np.uint8, np.uint16):
    if vocab_size - 1 <= np.iinfo(kind).max:
      return kind
  return np.int32


def _checked(ids: ArrayLike, vocab_size: int) -> np.ndarray:
  """The ids as an array, none of them outside of the vocabulary."""
  ids = np.asarray(ids)
  if not ids.size:
    return ids.astype(np.uint8)
  low, high = ids.min(), ids.max()
  if low < 0 or high >= vocab_size:
    raise ValueError(
      f"ids must be in [0, {vocab_size}), got some in [{low}, {high}]"
    )
  return ids


def _sentencepiece():
  try:
    import sentencepiece
  except ImportError as error:
    raise ConfigError(
      "the sentencepiece tokenizer needs a package that is not installed",
      "pip install 'recurrent[text]', or choose another tokenizer",
    ) from error
  return sentencepiece
