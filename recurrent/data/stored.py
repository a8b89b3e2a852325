"""Tokens that stay on disk, for texts that are larger than the memory.

Both classes stand where a NumPy array of token ids can: in `ContiguousBatches`
and `EvalStreams`, which ask for the ids of one batch at a time. They can be
sent to other processes, which open the files again.
"""

import dataclasses
import functools
import hashlib
import mmap
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from recurrent.data import splits
from recurrent.errors import DataError

RECORD = 1 << 16  # tokens of a record
RECORDS_KEPT = 256  # unpacked records in memory
_PIECE = 1 << 16  # bytes of a piece that is hashed
_PIECES = 256
_CONTINUATION = bytes(range(0x80, 0xC0))  # bytes within a character of UTF-8
_LENGTH = b"\0\0tokens "  # begins the last record, which has the length


class _Tokens:
  """Base: an array [N] of integers whose items are read when asked for."""

  ndim = 1
  dtype: np.dtype

  def __len__(self) -> int:
    raise NotImplementedError

  @property
  def shape(self) -> tuple[int]:
    """The number of tokens."""
    return (len(self),)

  @property
  def size(self) -> int:
    """The number of tokens."""
    return len(self)

  def __getitem__(self, index: Any) -> np.ndarray:
    if isinstance(index, slice):
      index = np.arange(*index.indices(len(self)))
    index = np.asarray(index)
    if index.size and not (0 <= index.min() and index.max() < len(self)):
      raise IndexError(f"token {index.max()} of {len(self)}")
    return self._read(index)

  def _read(self, index: np.ndarray) -> np.ndarray:
    raise NotImplementedError

  def sha256(self) -> str:
    """A hash of the length and of pieces from all over the tokens, in hex."""
    found = hashlib.sha256(str(len(self)).encode())
    last = max(len(self) - _PIECE, 0)
    for begin in np.unique(np.linspace(0, last, _PIECES).astype(np.int64)):
      end = min(int(begin) + _PIECE, len(self))
      found.update(self[int(begin) : end].tobytes())
    return found.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class FileTokens(_Tokens):
  """The bytes of a part of a file, as tokens.

  Example:
    >>> import pathlib, tempfile
    >>> from recurrent import data
    >>> path = pathlib.Path(tempfile.mkdtemp(), "text.txt")
    >>> _ = path.write_bytes(b"hello")
    >>> data.FileTokens(path, 1, 4)[:].tobytes()
    b'ell'

  Args:
    path: path of the file.
    begin: position of the first byte.
    end: position after the last byte.
  """

  path: str | os.PathLike
  begin: int
  end: int

  dtype = np.dtype(np.uint8)

  def __len__(self) -> int:
    return self.end - self.begin

  def __getstate__(self):
    return (self.path, self.begin, self.end)

  def __setstate__(self, state):
    for name, value in zip(("path", "begin", "end"), state, strict=True):
      object.__setattr__(self, name, value)

  @functools.cached_property
  def _bytes(self) -> np.ndarray:
    with open(self.path, "rb") as file:
      mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # The rows of a batch are far apart: reading on would fill the memory.
    mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, np.uint8)

  def _read(self, index):
    return np.asarray(self._bytes[index + self.begin])

  def characters(self) -> int:
    """The number of UTF-8 characters; it reads all bytes, in pieces."""
    count = 0
    with open(self.path, "rb") as file:
      file.seek(self.begin)
      left = len(self)
      while left:
        piece = np.frombuffer(file.read(min(left, 1 << 24)), np.uint8)
        count += int(np.count_nonzero((piece & 0xC0) != 0x80))
        left -= len(piece)
    return count


def split_file(
  path: str | os.PathLike, shares: splits.Shares = splits.SHARES
) -> dict[str, FileTokens]:
  """Cuts the bytes of a UTF-8 file into train, valid and test, in this order.

  Each part begins with a whole character. The file is not read.

  Args:
    path: path of the file.
    shares: the shares of the splits, by bytes.

  Raises:
    DataError: if the file cannot be read, or is too short.
  """
  path = os.path.expanduser(path)
  try:
    size = os.path.getsize(path)
    ends = splits.in_order(size, shares)
    with open(path, "rb") as file:
      for number, end in enumerate(ends[:-1]):
        file.seek(end)
        after = file.read(4)
        ends[number] += len(after) - len(after.lstrip(_CONTINUATION))
  except OSError as error:
    raise DataError(
      f"cannot read text file {path}: {error.strerror}",
      "give `text_file` a file of UTF-8 text that you can read",
    ) from error
  parts = [
    FileTokens(path, begin, end)
    for begin, end in zip([0, *ends], ends, strict=False)
  ]
  if min(map(len, parts)) < 2:
    raise DataError(
      f"text file {path} is too short: {size} bytes", "give a longer text"
    )
  return dict(zip(splits.Shares._fields, parts, strict=True))


class RecordTokens(_Tokens):
  """Tokens in an array_record file, from `write_tokens`.

  Example:
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from recurrent import data
    >>> path = pathlib.Path(tempfile.mkdtemp(), "tokens.array_record")
    >>> data.write_tokens(path, [np.arange(5), np.arange(3)])
    >>> tokens = data.RecordTokens(path)
    >>> len(tokens), tokens[3:7].tolist()
    (8, [3, 4, 0, 1])

  Args:
    path: path of the file.

  Raises:
    DataError: if it is no such file.
  """

  def __init__(self, path: str | os.PathLike):
    self._path = os.fspath(path)
    about = self._records.read([self._records.num_records() - 1])[0]
    if not about.startswith(_LENGTH):
      raise DataError(
        f"{path} has no tokens", "write it by recurrent.data.write_tokens"
      )
    dtype, length = about.removeprefix(_LENGTH).decode().split()
    self.dtype, self._length = np.dtype(dtype), int(length)

  def __getstate__(self):
    return {k: vars(self)[k] for k in ("_path", "dtype", "_length")}

  def __len__(self) -> int:
    return self._length

  @functools.cached_property
  def _records(self):
    from array_record.python import array_record_module

    try:
      reader = array_record_module.ArrayRecordReader(self._path)
      if not reader.num_records():
        raise ValueError("it has no records")
    except Exception as error:  # array_record raises plain RuntimeErrors.
      raise DataError(
        f"cannot read {self._path}: {str(error).splitlines()[0]}",
        "write it by recurrent.data.write_tokens",
      ) from error
    return reader

  @functools.cached_property
  def _record(self):
    @functools.lru_cache(maxsize=RECORDS_KEPT)
    def read(number):
      return np.frombuffer(self._records.read([number])[0], self.dtype)

    return read

  def _read(self, index):
    number, place = np.divmod(index, RECORD)
    found = np.empty(index.shape, self.dtype)
    for one in np.unique(number):
      here = number == one
      found[here] = self._record(int(one))[place[here]]
    return found


def write_tokens(
  path: str | os.PathLike,
  tokens: Iterable[np.ndarray],
  dtype: Any = np.uint16,
) -> None:
  """Writes tokens to an array_record file, piece by piece.

  Args:
    path: path of the file.
    tokens: arrays of ids, one after another.
    dtype: integer type that they fit into.

  Raises:
    DataError: if an id does not fit into the type.
  """
  from array_record.python import array_record_module

  dtype = np.dtype(dtype)
  # Without groups of records, one can be read without unpacking others.
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  length, rest = 0, np.empty(0, dtype)
  for piece in tokens:
    piece = np.asarray(piece)
    if piece.size and not (
      np.iinfo(dtype).min <= piece.min() and piece.max() <= np.iinfo(dtype).max
    ):
      raise DataError(
        f"token {piece.max()} does not fit into {dtype}",
        "give a larger `dtype`",
      )
    length += len(piece)
    rest = np.concatenate([rest, piece.astype(dtype)])
    whole = len(rest) // RECORD * RECORD
    for begin in range(0, whole, RECORD):
      writer.write(rest[begin : begin + RECORD].tobytes())
    rest = rest[whole:]
  if len(rest):
    writer.write(rest.tobytes())
  writer.write(_LENGTH + f"{dtype.str} {length}".encode())
  writer.close()
