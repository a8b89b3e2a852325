"""Rows of CSV files and of JSON lines."""

import json

import pytest

from recurrent.data import records
from recurrent.errors import DataError


def read(tmp_path, name, content, columns=("text",)):
  path = tmp_path / name
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return records.read_records(path, columns, flag="data_file")


def test_both_formats_give_the_same_rows_with_their_lines(tmp_path):
  rows = [{"text": 'a, "b"\nc', "label": "x"}, {"text": "ü", "label": "y"}]
  lines = "\n\n".join(json.dumps(row) for row in rows)
  cells = '\ufefftext,label\r\n"a, ""b""\nc",x\r\n\r\nü,y\r\n'
  from_json = read(tmp_path, "a.jsonl", lines)
  from_csv = read(tmp_path, "a.csv", cells)
  assert [x.values for x in from_json] == [x.values for x in from_csv] == rows
  assert [x.line for x in from_json] == [1, 3]
  assert [x.line for x in from_csv] == [2, 5]


def test_a_cell_of_ten_megabytes_is_read(tmp_path):
  long = "word " * 2_000_000
  [row] = read(tmp_path, "a.csv", f"text\n{long}\n")
  assert row.values["text"] == long


@pytest.mark.parametrize(
  ("name", "content", "words"),
  [
    ("a.txt", "text", "does not end in .csv or .jsonl"),
    ("a.csv", "", "has no rows"),
    ("a.csv", "text,label\n", "has no rows"),
    ("a.csv", "text,text\na,b\n", "line 1: two columns are called 'text'"),
    ("a.csv", "text,\na,b\n", "line 1: column 2 of the header has no name"),
    ("a.csv", "text,label\na,b\nc\n", "line 3: 1 cells, and the header has 2"),
    ("a.csv", "text,label\na,b,c\n", "line 2: 3 cells"),
    ("a.csv", 'text,label\n"a"b,c\n', "line 2: "),
    ("a.csv", "good,y\n", "has no rows"),
    ("a.csv", "document\nx\n", "line 1: there is no column 'text'"),
    ("a.csv", b"text\ncaf\xe9\n", "not UTF-8 at byte 8"),
    ("a.jsonl", '{"text": "a"}\n{"text": \n', "line 2: no JSON at column 10"),
    ("a.jsonl", '{"text": "a"}\n[1]\n', "line 2: a list and no JSON object"),
    ("a.jsonl", '{"text": "a"}\n{"t": 1}\n', "line 2: there is no column"),
    ("a.jsonl", '{"text": 1, "text": 2}\n', "line 1: two values are called"),
    ("a.jsonl", b'{"text": "\xff"}\n', "not UTF-8 at byte 10"),
  ],
)
def test_bad_files_are_refused_with_the_line(tmp_path, name, content, words):
  with pytest.raises(DataError) as error:
    read(tmp_path, name, content)
  assert words in error.value.cause
  assert error.value.remedy


def test_a_missing_file_names_the_flag(tmp_path):
  with pytest.raises(DataError) as error:
    records.read_records(tmp_path / "no.csv", ("text",), flag="data_file")
  assert "`data_file`" in error.value.remedy
