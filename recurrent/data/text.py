"""Loads a text in three splits, from a file or from a TFDS dataset.

TFDS is imported only if a dataset is loaded.
"""

import codecs
import collections
import logging
import os
from collections.abc import Sequence
from typing import NamedTuple

from recurrent.data import overlap
from recurrent.data.splits import SHARES, Shares, in_order
from recurrent.errors import ConfigError, DataError

LOG = logging.getLogger(__name__)

_CHUNK = 1 << 20  # Bytes decoded at once.
VALID_NAMES = ("valid", "validation", "dev", "val")

# A text as a queue of pieces. Cutting and joining them needs the text in memory
# only once, and a rare character widens only its own piece (PEP 393).
_Pieces = collections.deque[str]


class Corpus(NamedTuple):
  """A text in three splits; those cut from one text are in its order."""

  train: str
  valid: str
  test: str


def load_text(
  dataset: str = "pydoc",
  *,
  text_file: str | os.PathLike | None = None,
  data_dir: str | os.PathLike | None = None,
  shares: Shares = SHARES,
) -> Corpus:
  r"""Loads a text without any change to it; newlines are not translated.

  The text of a dataset is its examples joined by "\n". If it lacks a valid or
  test split, that split is cut off the end of the train text, valid before
  test. A file is cut in the same way; a byte-order mark is dropped. The share
  of valid that occurs in train, and of test that occurs in train or valid, is
  logged (see `overlap`).

  Args:
    dataset: `pydoc` or `stdlib`, which come with Python, or any prepared TFDS
      dataset with a text feature. If it has several and none of them is called
      `text`, append the name of one: `cnn_dailymail#article`.
    text_file: path of a UTF-8 file to read instead of a dataset.
    data_dir: the folder in which the dataset is prepared; by default that of
      TFDS, or the cache for `pydoc` and `stdlib`.
    shares: the shares of train, valid and test in a text without splits of its
      own, by characters; from `parse_shares`. If only valid or test is missing,
      its share is taken of train.

  Returns:
    The three splits, each of at least two characters.

  Raises:
    ConfigError: if there are both a `text_file` and a `data_dir`.
    DataError: if there is no such text, or it is damaged, or too short.
  """
  if text_file is None:
    folder = None if data_dir is None else os.path.expanduser(data_dir)
    corpus = _load_dataset(dataset, folder, shares)
    name = f"dataset {dataset!r}"
  elif data_dir is None:
    pieces = _read_file(text_file)
    if all(not piece or piece.isspace() for piece in pieces):
      raise DataError(
        f"text file {text_file} is empty, or all white space",
        "give `text_file` a text to learn from",
      )
    corpus = Corpus(*_cut(pieces, shares))
    name = f"text file {text_file}"
  else:
    raise ConfigError(
      "`data_dir` is where datasets are, and `text_file` is not one",
      "leave out one of the two",
    )
  for split, text in corpus._asdict().items():
    if len(text) < 2:  # One to read, one to predict.
      raise DataError(
        f"{name} is too short: {sum(map(len, corpus))} characters, "
        f"of which the {split} split has {len(text)}",
        "give a text of 40 characters or more; useful ones have 100,000",
      )
  _log_overlap(corpus)
  return corpus


def _log_overlap(corpus: Corpus) -> None:
  """Logs the shares of valid and test that occur in the splits before them."""
  valid = overlap.share(corpus.valid, [corpus.train])
  test = overlap.share(corpus.test, [corpus.train, corpus.valid])
  LOG.info(
    "%.1f %% of the valid characters stand in runs of %d or more that occur in"
    " train, and %.1f %% of the test characters in such that occur in train or"
    " valid%s.",
    100 * valid,
    overlap.LENGTH,
    100 * test,
    f" (looked at: {overlap.MOST:,} characters, and {overlap.MOST_OTHERS:,} of"
    " what is before them)"
    if max(map(len, corpus[1:])) > overlap.MOST
    or sum(map(len, corpus[:2])) > overlap.MOST_OTHERS
    else "",
  )


def _load_dataset(
  dataset: str, data_dir: str | os.PathLike | None, shares: Shares
) -> Corpus:
  from recurrent.data import builders, store  # Imports TFDS.

  name, _, feature = dataset.partition("#")
  if name not in builders.BUILDERS:
    return _read_dataset(store.catalogue(name, data_dir), feature, shares)
  try:
    return _read_dataset(store.own(name, data_dir), feature, shares)
  except store.Damaged:  # Our own dataset: prepare it again.
    again = store.own(name, data_dir, anew=True)
    return _read_dataset(again, feature, shares)


def _read_dataset(builder, feature: str, shares: Shares) -> Corpus:
  feature = _text_feature(builder, feature)
  splits = builder.info.splits
  if "train" not in splits:
    raise DataError(
      f"dataset {builder.info.full_name!r} has no train split, only "
      + ", ".join(splits),
      "choose another `dataset`",
    )
  valid = next((name for name in VALID_NAMES if name in splits), None)
  test = "test" if "test" in splits else None
  missing = [
    share
    for name, share in ((valid, shares.valid), (test, shares.test))
    if not name
  ]
  train, *carved = _cut(
    _read_split(builder, "train", feature), (1 - sum(missing), *missing)
  )
  others = (
    "".join(_read_split(builder, name, feature)) if name else carved.pop(0)
    for name in (valid, test)
  )
  return Corpus(train, *others)


def _text_feature(builder, feature: str) -> str:
  """The feature to read: the one asked for, `text`, or the only one."""
  import tensorflow_datasets as tfds

  texts = sorted(
    name
    for name, kind in builder.info.features.items()
    if isinstance(kind, tfds.features.Text)
  )
  name = builder.info.full_name
  if not texts:
    raise DataError(f"dataset {name!r} has no text", "choose another `dataset`")
  if feature in texts:
    return feature
  if not feature and len(texts) == 1:
    return texts[0]
  if not feature and "text" in texts:
    return "text"
  raise DataError(
    f"dataset {name!r} has the text features {', '.join(texts)}",
    f"name one of them: `dataset={builder.info.name}#{texts[0]}`",
  )


def _read_split(builder, split: str, feature: str) -> _Pieces:
  """The examples of a split and the newlines between them."""
  from recurrent.data import store

  pieces = _Pieces()
  for number, record in enumerate(store.records(builder, split)):
    try:
      pieces.extend(("\n", record[feature].decode("utf-8")))
    except UnicodeDecodeError as error:
      raise DataError(
        f"dataset {builder.info.full_name!r}: example {number} of {split} is "
        f"not UTF-8 at byte {error.start}",
        "choose another `dataset`, or mend it and give it as `text_file`",
      ) from error
  if pieces:
    pieces.popleft()
  return pieces


def read_text(path: str | os.PathLike, *, flag: str = "text_file") -> str:
  """Reads a UTF-8 file without any change but that of a byte-order mark.

  Args:
    path: path of the file.
    flag: name of the flag that gave the path, for messages.

  Raises:
    DataError: if the file cannot be read, or is not UTF-8.
  """
  return "".join(_read_file(path, flag))


def _read_file(path: str | os.PathLike, flag: str = "text_file") -> _Pieces:
  """Decodes a file piece by piece, and without its byte-order mark."""
  path = os.path.expanduser(path)
  decoder = codecs.getincrementaldecoder("utf-8")()
  pieces, done, chunk = _Pieces(), 0, b"more"
  try:
    with open(path, "rb") as file:
      while chunk:
        chunk = file.read(_CHUNK)
        held = len(decoder.getstate()[0])  # Bytes of a cut character.
        pieces.append(decoder.decode(chunk, final=not chunk))
        done += len(chunk)
  except OSError as error:
    raise DataError(
      f"cannot read text file {path}: {error.strerror}",
      f"give `{flag}` a file of UTF-8 text that you can read",
    ) from error
  except UnicodeDecodeError as error:
    raise DataError(
      f"text file {path} is not UTF-8 at byte {done - held + error.start}",
      "convert it, for example: iconv -f LATIN1 -t UTF-8 FILE > NEW_FILE",
    ) from error
  pieces[0] = pieces[0].removeprefix("\ufeff")
  return pieces


def _cut(pieces: _Pieces, shares: Sequence[float]) -> list[str]:
  """Joins `pieces` into texts with these shares; empties `pieces`."""
  ends = in_order(sum(map(len, pieces)), shares)
  return [
    _take(pieces, end - start)
    for start, end in zip([0, *ends], ends, strict=False)
  ]


def _take(pieces: _Pieces, length: int) -> str:
  """Removes the first `length` characters of `pieces` and returns them."""
  taken = []
  while length:
    piece = pieces.popleft()
    taken.append(piece[:length])
    if rest := piece[length:]:
      pieces.appendleft(rest)
    length -= len(taken[-1])
  return "".join(taken)
