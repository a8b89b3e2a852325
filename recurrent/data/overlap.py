"""Finds runs of characters of a text that occur in other texts too.

A model that has read a passage of the test text in training can repeat it, so
that a score on that passage says little about other texts.
"""

import functools
import re
from collections.abc import Iterator

import numpy as np

LENGTH = 100
# Largest numbers of characters to compare, from the start: of the text, and of
# all other texts together. They limit the memory (16 bytes for each character
# of the text) and the time.
MOST = 5_000_000
MOST_OTHERS = 100_000_000

_CHUNK = 1 << 19  # Characters hashed at once.
# Any odd number has an inverse modulo 2^64; this one has bits everywhere.
_BASE = 0x9E3779B97F4A7C15
_BITS = 22  # Leading bits of a hash: a table of them rules most windows out.


def repeated(text: str, others: list[str], length: int = LENGTH) -> np.ndarray:
  """Finds the windows of `length` characters that occur in another text.

  Windows are compared by 64-bit hashes. Comparing 10^7 windows with 10^8 others
  has a probability of 10^-4 of one false match.

  Args:
    text: a text of N characters.
    others: texts to search; a window does not extend over two of them.
    length: characters of a window, at least 1.

  Returns:
    Boolean [max(0, N - length + 1)], True where such a window begins.

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
  """The share of a text's characters in runs that occur in another text.

  Only the first `MOST` characters of the text and the first `MOST_OTHERS`
  characters of the others are compared, so that it takes seconds.

  Args:
    text: a text of N characters.
    others: texts to search.
    length: least number of characters in a run.

  Returns:
    A number in [0, 1]; 0 for an empty text.
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
  """Removes the paragraphs of a text that share a long run with another text.

  A paragraph is the text between two blank lines. It is removed, with the blank
  lines after it, if `length` or more of its characters in a row occur in
  another text.

  Args:
    text: any text.
    others: texts to search.
    length: least number of characters in a run.

  Returns:
    The remaining paragraphs, unchanged.
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
  """Powers of the base and of its inverse, modulo 2^64, for one chunk."""
  inverse = pow(_BASE, -1, 1 << 64)

  def powers(factor):
    factors = np.full(_CHUNK + length, factor, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)

  return powers(_BASE), powers(inverse)


def _hashes(text: str, length: int) -> Iterator[np.ndarray]:
  """Hashes of all windows of `length` characters, chunk by chunk.

  The hash of a window is sum_i (x_i + 1) base^i modulo 2^64, computed as the
  difference of two cumulative sums over the chunk. It is then mixed, so that
  its leading bits depend on all characters.
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
