"""What the converters share: arrays that are there and have their shape."""

from collections.abc import Mapping
from typing import Any

import numpy as np

KINDS = {"rnn": 1, "lstm": 4, "gru": 3}  # gates


class Named:
  """Arrays by name, each to be taken once.

  Args:
    arrays: anything that NumPy takes, by name.
  """

  def __init__(self, arrays: Mapping[str, Any]):
    self._arrays = {k: np.asarray(v, np.float32) for k, v in arrays.items()}
    self._left = dict(self._arrays)

  def __contains__(self, name: str) -> bool:
    return name in self._arrays

  def take(self, name: str, *shape: int | None) -> Any:
    """The array of that name; None in its shape is any size.

    Raises:
      ValueError: if it is missing or has another shape.
    """
    if name not in self._arrays:
      raise ValueError(f"{name} is missing; there are {sorted(self._arrays)}")
    found = self._arrays[name]
    self._left.pop(name, None)
    fits = len(found.shape) == len(shape) and all(
      want in (None, got) for want, got in zip(shape, found.shape, strict=True)
    )
    if not fits:
      wanted = tuple("any" if n is None else n for n in shape)
      raise ValueError(f"{name} must be {wanted}, got {found.shape}")
    return found

  @staticmethod
  def zeros(*shape: int) -> Any:
    """An array that the other library does not have."""
    return np.zeros(shape, np.float32)

  def finish(self) -> None:
    """Raises ValueError if an array was not taken."""
    if self._left:
      raise ValueError(f"no use for {sorted(self._left)}")


def check_kind(kind: str) -> int:
  """The number of gates of a kind.

  Raises:
    ValueError: if there is no such kind.
  """
  if kind not in KINDS:
    raise ValueError(f"kind must be one of {[*KINDS]}, got {kind!r}")
  return KINDS[kind]


def reorder(array: Any, order: tuple[int, ...]) -> Any:
  """Blocks of the last axis in another order."""
  blocks = np.split(array, len(order), axis=-1)
  return np.concatenate([blocks[k] for k in order], axis=-1)
