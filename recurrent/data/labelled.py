"""Sequences with labels, and the files that they are read from.

Sequences are texts, integer tokens, or real-valued time steps; labels belong to
a whole sequence or to each of its time steps. `labelled_sets` has sequences
that come with libraries.
"""

import dataclasses
import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from recurrent.data.records import read_records
from recurrent.data.splits import (
  NAMES,
  SHARES,
  Shares,
  check_split,
  complete,
)
from recurrent.errors import DataError

SPLITS = NAMES


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
  """Sequences with labels; the fields have one entry per sequence.

  Attributes:
    kind: what the inputs are: "text", "tokens", "values" or "sound".
    inputs: texts; or integers [time]; or floats [time, D], NaN where a value is
      missing; or samples [time] of sounds, from -1 to 1.
    labels: None without labels; an array [N]; or with a label per time step
      arrays [time], and with texts one label per word. Integers or strings.
    splits: "train", "valid" or "test"; None: there are no splits.
    times: the time of each time step, floats [time]; None: not known.
    place: `place(i)` says where sequence i is, such as "a.csv, line 3".
    per_step: whether a label belongs to each time step.
    image: height and width of the images that the sequences are.
    order: the sequences are `image.reshape(-1)[order]`, maybe in rows; None:
      they are not permuted.
    rate: samples per second of sounds.
    speakers: names of the speakers of sounds; None: not known.
  """

  kind: str
  inputs: Sequence[Any] | np.ndarray
  labels: Sequence[Any] | np.ndarray | None
  splits: np.ndarray | None = None
  times: Sequence[np.ndarray] | None = None
  place: Callable[[int], str] = "sequence {}".format
  per_step: bool = False
  image: tuple[int, int] | None = None
  order: np.ndarray | None = None
  rate: int = 0
  speakers: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.inputs)

  def divided(self, shares: Shares = SHARES) -> "Labelled":
    """Draws the splits that are missing, from the train split, by hash.

    Args:
      shares: the share of each split.

    Raises:
      DataError: if a split is empty.
    """
    found = complete(self.splits, len(self), self._content, shares)
    return dataclasses.replace(self, splits=found)

  def take(self, rows: np.ndarray) -> "Labelled":
    """The sequences of some rows, [n] indices."""

    def some(field) -> Any:
      if field is None or isinstance(field, np.ndarray):
        return field if field is None else field[rows]
      return [field[i] for i in rows]

    return dataclasses.replace(
      self,
      **{
        name: some(getattr(self, name))
        for name in ("inputs", "labels", "splits", "times", "speakers")
      },
      place=lambda i: self.place(int(rows[i])),
    )

  def _content(self, i) -> bytes:
    """The bytes of a sequence and its labels."""
    row = self.inputs[i]
    content = row.encode() if isinstance(row, str) else row.tobytes()
    label = "" if self.labels is None else self.labels[i]
    return content + b"\0" + "\0".join(map(str, np.ravel(label))).encode()


def read(
  path: str | os.PathLike, *, labelled: bool = True, flag: str = "data_file"
) -> Labelled:
  """Reads sequences from a .csv, .jsonl or .npz file.

  A .csv or .jsonl file has columns `text` and `label`; or `text` and `labels`,
  one label for each word between white space, in one string or in a list; and
  optionally `split`. An .npz file has `inputs`, [N, T] integers (tokens) or
  [N, T, D] numbers (NaN where missing); `labels` [N], or [N, T] for each time
  step; and optionally `lengths` [N] time steps, `times` [N, T] and `split` [N].

  Args:
    path: path of the file.
    labelled: whether the file must have labels; if not, they are not read.
    flag: name of the flag that gave the path, for messages.

  Raises:
    DataError: if the file does not have this format; the message names the file
      and the line or the row.
  """
  if os.path.splitext(path)[1].lower() == ".npz":
    return _read_arrays(os.path.expanduser(path), labelled, flag)
  return _read_texts(path, labelled, flag)


def _read_texts(path, labelled, flag) -> Labelled:
  records = read_records(path, ("text",), flag=flag)
  place = lambda i: f"{path}, line {records[i].line}"
  first = records[0].values
  columns = [name for name in ("label", "labels") if name in first]
  if labelled and len(columns) != 1:
    raise DataError(
      f"{path}, line 1: "
      + (
        "there are the columns label and labels"
        if columns
        else f"there is no column 'label', only {', '.join(map(repr, first))}"
      ),
      "give a column label, of one label a text, or labels, of one label a"
      " word",
    )
  texts, labels, splits = [], [], []
  for i, (_, values) in enumerate(records):
    text = values["text"]
    if not isinstance(text, str) or not text.strip():
      raise DataError(
        f"{place(i)}, column text: "
        + ("no text" if not isinstance(text, str) else "the text is empty"),
        "give each row a text, or leave the row out",
      )
    texts.append(text)
    if labelled:
      labels.append(_label(values.get(columns[0]), columns[0], text, place(i)))
    if "split" in first:
      splits.append(
        check_split(values.get("split"), f"{place(i)}, column split")
      )
  per_step = labelled and columns[0] == "labels"
  return Labelled(
    kind="text",
    inputs=texts,
    labels=None if not labelled else labels if per_step else np.array(labels),
    splits=np.array(splits) if splits else None,
    place=place,
    per_step=per_step,
  )


def _label(value, column, text, place):
  """The label of a text, or the labels [words] of its words."""
  where = f"{place}, column {column}"
  if column == "label":
    if isinstance(value, str | int) and str(value).strip():
      return str(value).strip()
    raise DataError(
      f"{where}: {value!r} is no label", "give a text or a whole number"
    )
  found = value.split() if isinstance(value, str) else value
  if not isinstance(found, list) or not all(
    isinstance(x, str | int) and str(x).strip() for x in found
  ):
    raise DataError(
      f"{where}: {value!r} is no list of labels",
      "give one label a word, in a list or with spaces between them",
    )
  if len(found) != len(text.split()):
    raise DataError(
      f"{where}: {len(found)} labels for {len(text.split())} words",
      "give each word between white space one label",
    )
  return np.array([str(x).strip() for x in found])


def _read_arrays(path, labelled, flag) -> Labelled:
  arrays = _load_arrays(path, flag)

  def fail(name, what, remedy):
    raise DataError(f"{path}, {name}: {what}", remedy)

  if "inputs" not in arrays or (labelled and "labels" not in arrays):
    lacking = "labels" if "inputs" in arrays else "inputs"
    fail(lacking, f"not there, only {', '.join(arrays)}", f"add {lacking}")
  inputs = arrays["inputs"]
  numeric = inputs.dtype.kind in "iufb"
  if not numeric or inputs.ndim not in (2, 3) or not inputs.size:
    fail(
      "inputs",
      f"{inputs.dtype} {inputs.shape}",
      "give integers [N, T] as tokens, or numbers [N, T, D]",
    )
  count, steps = inputs.shape[:2]
  tokens = inputs.ndim == 2
  if tokens and inputs.dtype.kind not in "iu":
    nan = " with NaN" if inputs.dtype.kind == "f" and _nan(inputs) else ""
    fail(
      "inputs",
      f"tokens [N, T] of {inputs.dtype}{nan}",
      "give tokens as integers, or real values as [N, T, 1]",
    )
  lengths = _lengths(arrays.get("lengths"), count, steps, fail)
  real = np.arange(steps) < lengths[:, None]
  if tokens:
    _none(
      (inputs < 0) & real,
      lambda row, step: fail(
        "inputs",
        f"row {row}, time step {step}: token {inputs[row, step]}",
        "count tokens from 0",
      ),
    )
  elif inputs.dtype.kind == "f":
    _none(
      np.isinf(inputs).any(axis=-1) & real,
      lambda row, step: fail(
        "inputs",
        f"row {row}, time step {step}: infinite",
        "give finite numbers, and NaN where a value is missing",
      ),
    )
  labels = _array_labels(arrays["labels"], real, fail) if labelled else None
  per_step = labels is not None and labels.ndim == 2
  times = arrays.get("times")
  if times is not None:
    _check_times(times, real, fail)
  splits = arrays.get("split")
  if splits is not None:
    if splits.shape != (count,) or splits.dtype.kind not in "US":
      fail("split", f"{splits.dtype} {splits.shape}", f"give {count} strings")
    splits = splits.astype(str)
    splits = np.array(
      [
        check_split(x, f"{path}, split, row {i}")
        for i, x in enumerate(splits.tolist())
      ]
    )
  cut = lambda array: [
    row[:end] for row, end in zip(array, lengths, strict=True)
  ]
  return Labelled(
    kind="tokens" if tokens else "values",
    inputs=cut(inputs),
    labels=cut(labels) if per_step else labels,
    splits=splits,
    times=None if times is None else cut(times.astype(np.float64)),
    place=lambda i: f"{path}, row {i}",
    per_step=per_step,
  )


def _load_arrays(path, flag) -> dict[str, np.ndarray]:
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
      # NumPy returns the bytes of a member that is no array.
      return {k: x for k, x in arrays.items() if isinstance(x, np.ndarray)}
  except OSError as error:
    raise DataError(
      f"cannot read {path}: {error.strerror or error}",
      f"give `{flag}` a file that you can read",
    ) from error
  except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
    # NumPy takes any file that is no zip archive for a pickle.
    pickled = "allow_pickle" in str(error) and zipfile.is_zipfile(path)
    raise DataError(
      f"{path} has pickled objects, which could run any code"
      if pickled
      else f"{path} is no .npz file, or it is damaged",
      "save plain arrays of numbers or strings with np.savez",
    ) from error


def _nan(array) -> bool:
  return bool(np.isnan(array).any())


def _none(bad, fail) -> None:
  """Calls `fail(row, time step)` for the first True of [N, T]."""
  if bad.any():
    fail(*map(int, np.argwhere(bad)[0]))


def _lengths(lengths, count, steps, fail) -> np.ndarray:
  if lengths is None:
    return np.full(count, steps)
  if lengths.shape != (count,) or lengths.dtype.kind not in "iu":
    fail(
      "lengths", f"{lengths.dtype} {lengths.shape}", f"give {count} integers"
    )
  bad = (lengths < 0) | (lengths > steps)
  if bad.any():
    row = int(np.argmax(bad))
    fail(
      "lengths",
      f"row {row}: {lengths[row]}, and inputs have {steps} time steps",
      f"give lengths from 0 to {steps}",
    )
  return lengths.astype(np.int64)


def _array_labels(labels, real, fail) -> np.ndarray:
  remedy = "give integers from 0, or strings, [N], or [N, T] for time steps"
  if labels.shape not in (real.shape, real.shape[:1]):
    fail("labels", f"shape {labels.shape} for inputs {real.shape}", remedy)
  if labels.dtype.kind not in "iuU":
    nan = " with NaN" if labels.dtype.kind == "f" and _nan(labels) else ""
    fail("labels", f"{labels.dtype}{nan}", remedy)
  if labels.dtype.kind == "i":
    bad = labels < 0
    bad = bad & real if labels.ndim == 2 else bad[:, None]
    _none(
      bad, lambda row, _: fail("labels", f"row {row}: out of range", remedy)
    )
  return labels


def _check_times(times, real, fail):
  if times.shape != real.shape or times.dtype.kind not in "iuf":
    fail(
      "times",
      f"{times.dtype} {times.shape}",
      f"give numbers {real.shape}, one a time step",
    )
  _none(
    ~np.isfinite(times) & real,
    lambda row, step: fail(
      "times", f"row {row}, time step {step}: no number", "give finite times"
    ),
  )
  _none(
    (np.diff(times, axis=1) < 0) & real[:, 1:],
    lambda row, step: fail(
      "times",
      f"row {row}, time step {step + 1}: before the one before it",
      "sort the time steps of each row by time",
    ),
  )


def classes_of(labels: Iterable[Any]) -> np.ndarray:
  """The classes of the train split, sorted.

  Args:
    labels: the labels of each sequence: one, or an array.

  Raises:
    DataError: if there is only one.
  """
  found = np.unique(np.concatenate([np.ravel(x) for x in labels]))
  if len(found) < 2:
    raise DataError(
      f"the train split has one class only, {str(found[0])!r}"
      if len(found)
      else "the train split has no labels",
      "give examples of two classes at least",
    )
  return found


def encode_labels(data: Labelled, classes: np.ndarray) -> list[np.ndarray]:
  """The numbers of the classes of each sequence's labels, int32.

  Raises:
    DataError: if a label is not among the classes.
  """
  numbers = []
  for i, label in enumerate(() if data.labels is None else data.labels):
    label = np.asarray(label)
    place = np.minimum(np.searchsorted(classes, label), len(classes) - 1)
    if (lost := classes[place] != label).any():
      never = str(label[lost][0] if label.ndim else label)
      raise DataError(
        f"{data.place(i)}: the train split has no label {never!r}",
        "give it examples of that class, or leave this row out",
      )
    numbers.append(place.astype(np.int32))
  return numbers
