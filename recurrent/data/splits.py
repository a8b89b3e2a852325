"""Divides data without splits of its own into train, valid and test."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from recurrent.errors import ConfigError, DataError


class Shares(NamedTuple):
  """The shares of the three splits; they sum to 1."""

  train: float
  valid: float
  test: float


NAMES = Shares._fields
SHARES = Shares(0.9, 0.05, 0.05)


def parse_shares(text: str) -> Shares:
  """Reads shares in percent, such as "80,10,10".

  Raises:
    ConfigError: if the text is not three positive numbers that sum to 100.
  """
  try:
    percent = [float(part) for part in text.split(",")]
  except ValueError:
    percent = []
  if len(percent) != 3 or min(percent) <= 0 or abs(sum(percent) - 100) > 1e-6:
    raise ConfigError(
      f"`splits={text}` does not give three shares in percent",
      "use three positive numbers that sum to 100, such as `splits=80,10,10`",
    )
  return Shares(*(part / 100 for part in percent))


def in_order(length: int, shares: Sequence[float]) -> list[int]:
  """Where each split ends if `length` items are divided in their order.

  Args:
    length: number of items.
    shares: the share of each split; they sum to 1.

  Returns:
    One end (excluded) per split; the last one is `length`.
  """
  before = itertools.accumulate(shares[:-1])
  # Without the addition, rounding such as that of 0.8 + 0.1 loses an item.
  return [*(int(part * length + 1e-6) for part in before), length]


def by_hash(rows: Iterable[bytes], shares: Shares = SHARES) -> list[str]:
  """Draws a split for each row from a hash of its contents.

  A row therefore stays in its split when other rows are added, removed or
  moved, and equal rows are in the same split.

  Args:
    rows: the contents of each row.
    shares: the expected share of each split.

  Returns:
    "train", "valid" or "test" for each row.
  """
  found = []
  for row in rows:
    place = int.from_bytes(hashlib.sha256(row).digest()[:8]) / 2**64
    found.append(
      "train"
      if place < shares.train
      else "valid"
      if place < shares.train + shares.valid
      else "test"
    )
  return found


def check_split(value: Any, where: str) -> str:
  """Returns the name of a split that a file gives.

  Raises:
    DataError: if it is none.
  """
  if value not in NAMES:
    raise DataError(
      f"{where}: {value!r} is no split", f"use {', '.join(NAMES)}"
    )
  return value


def complete(
  given: Sequence[str] | np.ndarray | None,
  length: int,
  content: Callable[[int], bytes],
  shares: Shares = SHARES,
) -> np.ndarray:
  """Draws the splits that the data lack from the train split, by hash.

  Args:
    given: the split of each row; None: there are none yet.
    length: number of rows.
    content: the contents of a row.
    shares: the share of each split in all rows.

  Returns:
    The split of each row, [length] strings.

  Raises:
    DataError: if a split is empty.
  """
  found = np.full(length, "train", "<U5")
  if given is not None:
    found[:] = given
  missing = [name for name in NAMES[1:] if name not in found]
  if missing and length:
    drawn = {name: getattr(shares, name) * (name in missing) for name in NAMES}
    drawn["train"] = 1 - sum(drawn.values())
    places = np.flatnonzero(found == "train")
    found[places] = by_hash((content(int(i)) for i in places), Shares(**drawn))
  for name in NAMES:
    if name not in found:
      raise DataError(
        f"no row is left for the {name} split of {length} rows",
        "give more rows, larger `splits`, or a column split",
      )
  return found
