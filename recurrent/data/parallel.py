"""Pairs of a source and a target text, such as sentences and translations."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recurrent.data import tokenizers
from recurrent.data.records import Record, read_records
from recurrent.data.splits import NAMES, SHARES, Shares, check_split, complete
from recurrent.data.text import read_text
from recurrent.errors import DataError


class Pairs(NamedTuple):
  """Source and target texts, the same number of both."""

  sources: list[str]
  targets: list[str]


class Vocabulary(NamedTuple):
  """The tokenizers of both sides; the id after the last one ends a target.

  The same id is the first input of a decoder.
  """

  source: tokenizers.Tokenizer
  target: tokenizers.Tokenizer

  @staticmethod
  def file(side: str) -> str:
    """The name of the file that holds the tokenizer of a side."""
    return f"{side}_tokenizer.json"

  @property
  def stop(self) -> int:
    """The id that begins and ends a target."""
    return self.target.vocab_size

  def encode(self, source: str) -> np.ndarray:
    """The ids of a source, int32 [tokens]."""
    return self.source.encode(source).astype(np.int32)

  def examples(self, pairs: Pairs) -> list[dict[str, np.ndarray]]:
    """The ids of pairs; targets end with `stop`, and inputs begin with it."""
    found = []
    for source, target in zip(*pairs, strict=True):
      ids = np.append(self.target.encode(target).astype(np.int32), self.stop)
      found.append(
        {
          "source": self.encode(source),
          "inputs": np.roll(ids, 1),
          "targets": ids,
        }
      )
    return found

  def save(self, folder: Path) -> None:
    """Writes both tokenizers to a folder."""
    for side, tokenizer in self._asdict().items():
      tokenizer.save(folder / self.file(side))

  @classmethod
  def load(cls, folder: Path) -> "Vocabulary":
    """Reads what `save` wrote."""
    return cls(*(tokenizers.load(folder / cls.file(x)) for x in cls._fields))


def read_lines(path: str | os.PathLike) -> list[str]:
  """Reads the lines of a UTF-8 file, without the white space around them.

  Only a line feed ends a line, with or without a carriage return before it;
  other separators of Unicode may occur within a sentence.

  Raises:
    DataError: if the file cannot be read, is not UTF-8, or is empty.
  """
  text = read_text(path)
  lines = [line.strip() for line in text.removesuffix("\n").split("\n")]
  if not any(lines):
    raise DataError(f"{path} has no text", "give one sentence a line")
  return lines


def read_parallel(
  source: str | os.PathLike, target: str | os.PathLike
) -> Pairs:
  """Reads two files of which equal lines are a pair.

  Pairs of which one side is empty are kept, so that every line has a result.

  Raises:
    DataError: as `read_lines` does, and if the files differ in length.
  """
  pairs = Pairs(read_lines(source), read_lines(target))
  counts = [len(side) for side in pairs]
  if counts[0] != counts[1]:
    raise DataError(
      f"{source} has {counts[0]} lines, and {target} {counts[1]}",
      "give two files of which equal lines are translations of each other",
    )
  return pairs


def read_pairs(
  path: str | os.PathLike,
  columns: tuple[str, str],
  *,
  shares: Shares = SHARES,
  flag: str = "data_file",
) -> dict[str, Pairs]:
  """Reads pairs from a .jsonl file, or from a .csv file with a header.

  A column `split` with "train", "valid" or "test" divides them. Splits that the
  file lacks are drawn from train by a hash of each row.

  Args:
    path: path of the file.
    columns: the columns of the source and of the target.
    shares: the shares of the splits that are drawn.
    flag: name of the flag that gave the path, for messages.

  Returns:
    The pairs of "train", "valid" and "test".

  Raises:
    DataError: if a row lacks a column or has no text there, or a split is
      empty; the message names file and line.
  """
  records = read_records(path, columns, flag=flag)
  rows = [[_text(path, record, name) for name in columns] for record in records]
  given = None
  if any("split" in record.values for record in records):
    given = [
      check_split(r.values.get("split"), f"{path}, line {r.line}, column split")
      for r in records
    ]
  splits = complete(
    given, len(rows), lambda i: "\0".join(rows[i]).encode(), shares
  )
  found = {name: Pairs([], []) for name in NAMES}
  for row, split in zip(rows, splits, strict=True):
    for side, text in zip(found[split], row, strict=True):
      side.append(text)
  return found


def read_sources(path: str | os.PathLike, column: str) -> list[str]:
  """Reads sources: a column of a .jsonl or .csv file, or the lines of another.

  Raises:
    DataError: as `read_pairs` and `read_lines` do.
  """
  if not str(path).lower().endswith((".jsonl", ".csv")):
    return read_lines(path)
  records = read_records(path, (column,), flag="input")
  return [_text(path, record, column) for record in records]


def _text(path, record: Record, column: str) -> str:
  """The text in a column of a row, with single spaces."""
  value = record.values[column]
  if not isinstance(value, str) or not value.strip():
    raise DataError(
      f"{path}, line {record.line}, column {column}: "
      + ("the text is empty" if value == "" else f"{value!r} is no text"),
      "give each row a text there, or leave the row out",
    )
  return " ".join(value.split())


def load_parallel(
  dataset: str, data_dir: str | os.PathLike | None = None
) -> dict[str, Pairs]:
  """Reads a prepared dataset of pairs of texts of the TFDS catalogue.

  Args:
    dataset: its name, such as `ted_hrlr_translate/pt_to_en` or `gigaword`.
    data_dir: the folder in which it was prepared; by default that of TFDS.

  Returns:
    The pairs of "train", "valid" and "test".

  Raises:
    DataError: if there is no such dataset, or it lacks pairs or a split.
  """
  from recurrent.data import store  # Imports TFDS.

  builder = store.catalogue(dataset, data_dir)
  keys = builder.info.supervised_keys
  if not keys or len(keys) != 2:
    raise DataError(
      f"dataset {dataset!r} has no pairs of texts", "choose another dataset"
    )
  found = {}
  for name, names in (
    ("train", ("train",)),
    ("valid", ("validation", "valid", "dev")),
    ("test", ("test",)),
  ):
    there = next((n for n in names if n in builder.info.splits), None)
    if there is None:
      raise DataError(
        f"dataset {dataset!r} has no {name} split, only"
        f" {', '.join(builder.info.splits)}",
        "choose another dataset, or write it to files",
      )
    pairs = Pairs([], [])
    for record in store.records(builder, there):
      for side, key in zip(pairs, keys, strict=True):
        side.append(record[key].decode("utf-8").strip())
    found[name] = pairs
  return found
