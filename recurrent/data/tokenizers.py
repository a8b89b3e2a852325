"""Tokenizers, which convert text to integer ids and back.

Two tokenizers with the same vocabulary compare equal. `build` makes one from a
train text; `save` and `load` store it as JSON. Ids have the smallest dtype that
holds them (uint8, uint16 or int32), so that a text of a hundred million
characters does not take 800 MB.
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

from recurrent import files
from recurrent.errors import ConfigError, DataError

_CHUNK = 1 << 20  # Characters encoded at once.


@dataclasses.dataclass(frozen=True)
class Tokenizer(abc.ABC):
  """Base class of tokenizers. The fields of a subclass are its vocabulary."""

  name: ClassVar[str]
  # Whether `decode(encode(text)) == text` for every text. Only then is the loss
  # in bits per character that of the text: a single id for all unknown words
  # would cost next to nothing.
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
    """The text of `ids` [tokens]; ValueError if one is out of range."""

  def incremental_decoder(self) -> "IncrementalDecoder":
    """A decoder for ids that come in parts, such as blocks of drawn tokens."""
    return IncrementalDecoder(self)

  def unknown(self, text: str) -> list[str]:
    """Characters or words of `text` that the vocabulary lacks, sorted."""
    del text
    return []

  def save(self, path: str | os.PathLike) -> None:
    """Writes the tokenizer as JSON, atomically; `load` reads it."""
    content = {"tokenizer": self.name, **dataclasses.asdict(self)}
    files.write_text(path, json.dumps(content))


class IncrementalDecoder:
  """Decodes a sequence of ids in parts, and returns its text in parts.

  A character of several bytes may begin in one part and end in the next. The
  joined texts of all parts equal the text that `decode` returns for all ids.

  Args:
    tokenizer: any tokenizer whose `decode` joins the bytes of its ids.
  """

  # An unfinished UTF-8 character has at most 3 bytes, each decoded as U+FFFD.
  _UNFINISHED = 3

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer = tokenizer
    self._ids: list[int] = []  # The ids since the last whole character ...
    self._shown = 0  # ... and how many characters of their text were returned.

  def decode(self, ids: ArrayLike, *, final: bool = False) -> str:
    """Decodes the next ids and returns the new text.

    Args:
      ids: the next ids, [tokens].
      final: whether these are the last ids, so that all text is returned.

    Returns:
      The text that earlier calls have not returned, without a last character
      that later ids may still complete.

    Raises:
      ValueError: if an id is not in the vocabulary.
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
  """Tokens are the bytes of UTF-8; it needs no training and is exact.

  Example:
    >>> from recurrent import data
    >>> data.ByteTokenizer().encode("hi").tolist()
    [104, 105]
  """

  name = "byte"

  @classmethod
  def train(cls, text):
    """Returns the tokenizer, which does not depend on `text`."""
    del text
    return cls()

  @property
  def vocab_size(self):
    """The number of bytes, 256."""
    return 256

  def encode(self, text):
    """The bytes of `text`, uint8 [tokens]."""
    return np.frombuffer(text.encode("utf-8"), np.uint8)

  def decode(self, ids):
    """The text of the bytes; invalid UTF-8 becomes U+FFFD."""
    ids = _checked(ids, self.vocab_size)
    return ids.astype(np.uint8).tobytes().decode("utf-8", errors="replace")


@dataclasses.dataclass(frozen=True)
class CharTokenizer(Tokenizer):
  """Tokens are the characters of the train text; others are spelt out.

  A character that the train text lacks is encoded as id 0, followed by the
  digits of its code point to the base `vocab_size`, as many as the largest code
  point has. Thus every text can be encoded exactly, with a small vocabulary.
  Ids that spell no valid code point are decoded as U+FFFD.

  Example:
    >>> from recurrent import data
    >>> tokenizer = data.CharTokenizer.train("hello")
    >>> tokenizer.encode("hole").tolist(), tokenizer.vocab_size
    ([2, 4, 3, 1], 5)
    >>> tokenizer.decode(tokenizer.encode("help"))  # p is not in the alphabet
    'help'

  Args:
    alphabet: the characters of ids 1, 2, ...

  Raises:
    ValueError: if `alphabet` is empty.
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
    """The number of characters in the alphabet, and one for id 0."""
    return len(self.alphabet) + 1

  @functools.cached_property
  def _places(self) -> np.ndarray:
    """The place values of the digits of a code point, greatest first."""
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
    """One id per known character; 0 and digits for any other."""
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
  """Tokens are words, each with the space before it, of a closed vocabulary.

  Runs of other white space and of punctuation are words as well. Id 0 stands
  for every word that is not in the vocabulary, and is decoded as ` <unk>`.

  Example:
    >>> from recurrent import data
    >>> tokenizer = data.WordTokenizer.train(" to be or not to be")
    >>> tokenizer.decode(tokenizer.encode(" be or be"))  # "or" is rare
    ' be <unk> be'

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
      min_count: words with fewer occurrences are left out.
      vocab_size: largest number of ids, id 0 included; None for no limit.

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
    """The number of words, and one for id 0."""
    return len(self.words) + 1

  @functools.cached_property
  def _ids(self) -> dict[str, int]:
    return {word: index for index, word in enumerate(self.words, start=1)}

  def encode(self, text):
    """One id per word."""
    ids = (self._ids.get(word, 0) for word in _words(text))
    return np.fromiter(ids, _id_type(self.vocab_size))

  def decode(self, ids):
    """The words, joined without separators."""
    words = (" <unk>", *self.words)
    return "".join(
      [words[index] for index in _checked(ids, self.vocab_size).tolist()]
    )

  def unknown(self, text):
    """The words that the vocabulary lacks."""
    return sorted(set(_words(text)).difference(self._ids))


@dataclasses.dataclass(frozen=True)
class SentencePieceTokenizer(Tokenizer):
  """Tokens are pieces of words from a unigram model, or bytes elsewhere.

  Characters that no piece contains are encoded as bytes, so every text can be
  encoded exactly.

  Args:
    model: the serialized SentencePiece model, in base64.

  Reference:
    Kudo & Richardson, "SentencePiece", 2018; the unigram model: Kudo, "Subword
    regularization", 2018.
  """

  model: str

  name = "sentencepiece"

  @classmethod
  def train(cls, text, *, vocab_size=2000):
    """Fits pieces to the lines of `text`, deterministically.

    Args:
      text: the train text; of a long one, evenly spaced lines are used.
      vocab_size: the number of pieces, bytes included; there may be fewer if
        the text does not have so many.

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
        # Options under which the text is not changed:
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        user_defined_symbols=["\n"],
        # Pieces for indentation: with them argparse.py takes 27 thousand tokens
        # of a vocabulary of 1000, without them 48 thousand.
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
    """The number of pieces."""
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
    """The text of the pieces; invalid UTF-8 becomes U+FFFD."""
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
    train_text: the text from which its vocabulary is made.
    vocab_size: size of the vocabulary of `sentencepiece`, or largest size of
      that of `word`; None for the tokenizer's default.
    min_count: least number of occurrences of a word in the vocabulary of
      `word`; None for 2.

  Returns:
    The tokenizer.

  Raises:
    ConfigError: if there is no tokenizer of this name, it does not have a given
      option, a package is missing, or the vocabulary has one token only.
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
  tokenizer = train(train_text, **options)
  if tokenizer.vocab_size < 2:
    raise ConfigError(
      f"the vocabulary of the {name} tokenizer has one token only",
      "choose a larger vocab_size, or give a longer text",
    )
  return tokenizer


def load(path: str | os.PathLike) -> Tokenizer:
  """Reads a tokenizer that `Tokenizer.save` wrote.

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
  """The ids as an array; raises ValueError if one is out of range."""
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
