"""Text files that are written whole or not at all, and JSON text."""

import json
import math
import os
import pathlib
from typing import Any

import numpy as np


def write_text(path: str | os.PathLike, text: str) -> None:
  """Replaces a text file at once: a reader sees the old text or the new one.

  The text is written in UTF-8 to `NAME.incomplete` beside the file, which then
  takes the file's name. A process that is killed meanwhile leaves the old file.

  Args:
    path: the file, in a folder that exists.
    text: all of its new content.

  Raises:
    OSError: if the folder cannot be written to, or the disk is full.
  """
  path = pathlib.Path(path)
  scratch = path.with_name(path.name + ".incomplete")
  scratch.write_text(text, encoding="utf-8")
  os.replace(scratch, path)


def to_json(value: Any, indent: int | None = None) -> str:
  """The JSON text of a value, with null for numbers that are not finite.

  Args:
    value: dicts, sequences, strings, numbers of Python or NumPy, None.
    indent: spaces for each level; everything is on one line without it.
  """
  return json.dumps(finite(value), indent=indent)


def finite(value: Any) -> Any:
  """Replaces numbers that are not finite by None, as JSON has no NaN."""
  if isinstance(value, dict):
    return {key: finite(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [finite(item) for item in value]
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
