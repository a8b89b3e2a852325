"""What of a text occurs word for word in another one.

A model that has seen a long stretch of the test text in training repeats it at
no cost, so a score tells less than it seems to.
"""

import functools
import re
from collections.abc import Iterator

import numpy as np

LENGTH = 100
# What is looked at, in characters from the start: of the text and of all the
# others together. It bounds memory (16 bytes for each of the first) and time.
MOST = 5_000_000
MOST_OTHERS = 100_000_000

_CHUNK = 1 << 19  # Characters hashed at once.
# Any odd number has an inverse modulo 2^64; this one has bits everywhere.
_BASE = 0x9E3779B97F4A7C15
_BITS = 22  # Of a hash, by which most that are not there are found out.


def repeated(text: str, others: list[str], length: int = LENGTH) -> np.ndarray:
  """Where runs of `length` characters begin that occur in another text.

  Windows are compared by hashes of 64 bits: 10^7 of them against 10^8 others
  have a chance of 10^-4 for one false match.

  Args:
    text: of N characters.
    others: texts to look in; a run does not go from one to the next.
    length: of a run, at least 1.

  Returns:
    Boolean, [max(0, N - length + 1)].

  Raises:
    ValueError: if `length` is not positive.
  """
  if length < 1:
    raise ValueError(f"length must be 1 or more, got {length}")
  hashes = np.concatenate([np.zeros(0, np.uint64), *_hashes(text, length)])
  known, places = np.unique(hashes, return_inverse=True)
  if not known.size:
    return np.zeros(0, bool)
  found = np.zeros(len(known), bool)
  shift = np.uint64(64 - _BITS)
  maybe = np.zeros(1 << _BITS, bool)
  maybe[(known >> shift).astype(np.intp)] = True
  for other in others:
    for candidates in _hashes(other, length):
      candidates = candidates[maybe[(candidates >> shift).astype(np.intp)]]
      index = np.searchsorted(known, candidates)
      index = np.minimum(index, len(known) - 1)
      found[index[known[index] == candidates]] = True
  return found[places]


def share(text: str, others: list[str], length: int = LENGTH) -> float:
  """The part of a text's characters in runs that occur in another text.

  Of a long text the first `MOST` characters are looked at, and of the others
  the first `MOST_OTHERS`, so that it takes seconds.

  Args:
    text: of N characters.
    others: texts to look in.
    length: least number of characters in a run.

  Returns:
    In [0, 1]; 0 of an empty text.
  """
  text, left, seen = text[:MOST], MOST_OTHERS, []
  for other in others:
    seen.append(other[:left])
    left -= len(seen[-1])
  begins = repeated(text, seen, length)
  change = np.zeros(len(text) + 1, np.int32)
  change[: len(begins)] += begins
  change[length : length + len(begins)] -= begins
  return float((np.cumsum(change)[:-1] > 0).mean()) if text else 0.0


def without_repeated_paragraphs(
  text: str, others: list[str], length: int = LENGTH
) -> str:
  """A text without the paragraphs that others have a long run of.

  A paragraph is what stands between blank lines. It is left out, with the
  blank lines after it, if `length` or more of its characters in a row occur in
  another text.

  Args:
    text: any text.
    others: texts to look in.
    length: least number of characters in a run.

  Returns:
    The paragraphs that are left, as they stood.
  """
  begins = repeated(text, others, length)
  kept, start = [], 0
  for blank in re.finditer(r"\n(?:[^\S\n]*\n)+|\Z", text):
    last = max(start, blank.start() - length + 1)
    if not begins[start:last].any():
      kept.append(text[start : blank.end()])
    start = blank.end()
  return "".join(kept)


@functools.lru_cache(maxsize=1)
def _powers(length: int) -> tuple[np.ndarray, np.ndarray]:
  """Of the base and of its inverse, modulo 2^64, for one chunk."""
  inverse = pow(_BASE, -1, 1 << 64)

  def powers(factor):
    factors = np.full(_CHUNK + length, factor, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)

  return powers(_BASE), powers(inverse)


def _hashes(text: str, length: int) -> Iterator[np.ndarray]:
  """Hashes of all windows of `length` characters, chunk by chunk.

  The hash of a window is sum_i (x_i + 1) base^i modulo 2^64, from the
  difference of two sums that begin where the chunk does; then mixed, so that
  its first bits depend on all characters.
  """
  rise, fall = _powers(length)
  for start in range(0, len(text) - length + 1, _CHUNK):
    part = text[start : start + _CHUNK + length - 1]
    codes = np.frombuffer(part.encode("utf-32-le", "surrogatepass"), "<u4")
    sums = np.zeros(len(codes) + 1, np.uint64)
    terms = (codes.astype(np.uint64) + np.uint64(1)) * rise[: len(codes)]
    np.cumsum(terms, out=sums[1:])
    windows = sums[length:] - sums[:-length]
    windows *= fall[: len(windows)]
    windows ^= windows >> np.uint64(32)
    windows *= np.uint64(_BASE)
    yield windows
