"""Helpers of the converters: checked access to arrays by name."""

import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from recurrent.checks import check_floating

KINDS = {"rnn": 1, "lstm": 4, "gru": 3}  # gates


class Named:
  """Arrays by name, of which a converter must take every one.

  They are converted to one dtype: float64 if one of them is float64 and JAX
  supports it (`jax_enable_x64`), otherwise float32.

  Args:
    arrays: maps names to tensors of any library on any device, or to other
      values that NumPy can convert. They are copied.

  Raises:
    ValueError: if an array is not of floating-point numbers.
  """

  def __init__(self, arrays: Mapping[str, Any]):
    found = {name: _copied(name, value) for name, value in arrays.items()}
    wide = sorted(k for k, v in found.items() if v.dtype.itemsize > 4)
    self._dtype = jax.dtypes.canonicalize_dtype(np.float64 if wide else "f4")
    if wide and self._dtype == np.float32:
      warnings.warn(
        f"float64 is rounded to float32 in {len(wide)} arrays, such as"
        f" {wide[0]}; jax.config.update('jax_enable_x64', True) keeps it",
        stacklevel=3,  # Named, the converter, its caller
      )
    self._arrays = {k: v.astype(self._dtype) for k, v in found.items()}
    self._left = dict(self._arrays)

  def __contains__(self, name: str) -> bool:
    return name in self._arrays

  def take(self, name: str, *shape: int | None) -> Any:
    """Returns the array of a name, and checks its shape.

    Args:
      name: the name of the array.
      *shape: its shape; None stands for any size of an axis.

    Raises:
      ValueError: if the array is missing or has another shape.
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

  def zeros(self, *shape: int) -> Any:
    """Zeros of the common dtype, for a bias that the library does not have."""
    return np.zeros(shape, self._dtype)

  def finish(self) -> None:
    """Raises ValueError if an array was not taken."""
    if self._left:
      raise ValueError(f"no use for {sorted(self._left)}")


def _copied(name: str, value: Any) -> np.ndarray:
  """A tensor as a NumPy array of its own, float32 or float64."""
  if hasattr(value, "detach"):  # torch's
    value = value.detach().cpu()
    if str(value.dtype) == "torch.bfloat16":  # which NumPy does not have
      value = value.float()
  if not hasattr(value, "dtype"):
    return np.array(value, np.float32)
  array = np.asarray(value)
  check_floating(name, array)
  return np.array(array, np.float64 if array.dtype.itemsize > 4 else np.float32)


def check_kind(kind: str) -> int:
  """Returns the number of gates of a kind of cell.

  Raises:
    ValueError: if `kind` is not a key of `KINDS`.
  """
  if kind not in KINDS:
    raise ValueError(f"kind must be one of {[*KINDS]}, got {kind!r}")
  return KINDS[kind]


def reorder(array: Any, order: tuple[int, ...]) -> Any:
  """Reorders the equal blocks of the last axis."""
  blocks = np.split(array, len(order), axis=-1)
  return np.concatenate([blocks[k] for k in order], axis=-1)
