"""Reads records, one a row, from CSV and TSV files and from JSON lines."""

import csv
import io
import json
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from recurrent.data.text import read_text
from recurrent.errors import DataError


class Record(NamedTuple):
  """A row of a file.

  Attributes:
    line: number of its first line, from 1.
    values: its cells by column.
  """

  line: int
  values: dict[str, Any]


def read_records(
  path: str | os.PathLike,
  columns: Collection[str],
  *,
  flag: str,
  suffixes: Sequence[str] = (".csv", ".jsonl"),
) -> list[Record]:
  """Reads a .csv or .tsv file with a header, or a .jsonl file of objects.

  Blank lines are skipped. The cells of a CSV file are strings; those of JSON
  lines are whatever the file has. Tabs separate the cells of a .tsv file, in
  which quotes are characters like others.

  Args:
    path: path of the file, in UTF-8; its suffix tells its format.
    columns: columns that every row must have.
    flag: name of the flag that gave the path, for messages.
    suffixes: the formats that are read.

  Returns:
    One record per row, with all its columns.

  Raises:
    DataError: if the file cannot be read, has no rows, or a row is not as it
      should be; the message names file, line and column.
  """
  suffix = os.path.splitext(path)[1].lower()
  if suffix not in suffixes:
    raise DataError(
      f"`{flag}={path}` does not end in {' or '.join(suffixes)}",
      "give a file of such a format, with its suffix",
    )
  text = read_text(path, flag=flag)
  rows = _json_lines if suffix == ".jsonl" else _csv
  records = list(rows(path, text))
  if not records:
    raise DataError(f"{path} has no rows", "give a file with some")
  for line, values in records:
    header = line if suffix == ".jsonl" else 1
    for column in columns:
      if column not in values:
        raise DataError(
          f"{path}, line {header}: there is no column"
          f" {column!r}, only {', '.join(map(repr, values)) or 'nothing'}",
          f"name the columns {', '.join(columns)}",
        )
  return records


def csv_rows(
  path: str | os.PathLike, text: str
) -> Iterator[tuple[int, list[str]]]:
  """Reads the rows of CSV text that are not empty.

  Args:
    path: path of the file, for messages. If it ends in .tsv, tabs separate the
      cells, and quotes are characters like others.
    text: its content.

  Yields:
    The number of the row's first line, from 1, and the row's cells.

  Raises:
    DataError: if the quotes of a row are wrong.
  """
  # By default a cell may have 131,072 characters.
  csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
  style: dict[str, Any] = {"strict": True}
  if _has_tabs(path):
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
  reader = csv.reader(io.StringIO(text, newline=""), **style)
  line = 1
  try:
    for cells in reader:
      start, line = line, reader.line_num + 1
      if cells:
        yield start, cells
  except csv.Error as error:
    raise DataError(
      f"{path}, line {line}: {error}",
      "put cells with commas, quotes or newlines in double quotes, and write"
      ' a double quote within them as ""',
    ) from error


def _has_tabs(path) -> bool:
  return str(path).lower().endswith(".tsv")


def _csv(path, text) -> Iterator[Record]:
  header: Sequence[str] | None = None
  for line, cells in csv_rows(path, text):
    if header is None:
      header = [cell.strip() for cell in cells]
      _check_header(path, line, header)
    elif len(cells) != len(header):
      raise DataError(
        f"{path}, line {line}: {len(cells)} cells, and the header has"
        f" {len(header)}",
        "give each row a cell for each column, with one tab between them"
        if _has_tabs(path)
        else "give each row a cell for each column; put cells with commas or"
        " newlines in double quotes",
      )
    else:
      yield Record(line, dict(zip(header, cells, strict=True)))


def _check_header(path, line, header):
  for place, name in enumerate(header):
    if not name:
      raise DataError(
        f"{path}, line {line}: column {place + 1} of the header has no name",
        "begin the file with a line of column names",
      )
    if name in header[:place]:
      raise DataError(
        f"{path}, line {line}: two columns are called {name!r}",
        "rename or remove one of them",
      )


def _json_lines(path, text) -> Iterator[Record]:
  for line, content in enumerate(text.split("\n"), start=1):
    if not content.strip():
      continue
    try:
      values = json.loads(content, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
      raise DataError(
        f"{path}, line {line}: no JSON at column {error.colno}: {error.msg}",
        "write one JSON object a line",
      ) from error
    except (KeyError, RecursionError) as error:
      raise DataError(
        f"{path}, line {line}: {error.args[0]}", "write each name once"
      ) from error
    if not isinstance(values, dict):
      raise DataError(
        f"{path}, line {line}: a {type(values).__name__} and no JSON object",
        'write one object a line, such as {"text": "...", "label": "..."}',
      )
    yield Record(line, values)


def _without_duplicates(pairs):
  values = dict(pairs)
  if len(values) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise KeyError(f"two values are called {twice!r}")
  return values
