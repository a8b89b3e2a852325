"""Splits the time axis into chunks of equal length, and joins them again."""

import jax.numpy as jnp

from recurrent.types import Array


def split(
  array: Array,
  size: int,
  *,
  axis: int = 0,
  fill: complex = 0,
  front: bool = False,
) -> Array:
  """Pads an axis to a multiple of `size` and splits it into [chunks, size].

  Args:
    array: [..., time, ...].
    size: number of time steps in a chunk.
    axis: index of the time axis.
    fill: value of the padding.
    front: whether the padding comes before the first time step; else it comes
      after the last.

  Returns:
    [..., chunks, size, ...].
  """
  time = array.shape[axis]
  chunks = -(-time // size)
  spare = chunks * size - time
  edges = [(0, 0)] * array.ndim
  edges[axis] = (spare, 0) if front else (0, spare)
  array = jnp.pad(array, edges, constant_values=fill)
  before, after = array.shape[:axis], array.shape[axis + 1 :]
  return array.reshape(*before, chunks, size, *after)


def join(array: Array, time: int, *, front: bool = False) -> Array:
  """Inverse of `split` along axis 0: [chunks, size, ...] to [time, ...]."""
  chunks, size, *others = array.shape
  array = array.reshape(chunks * size, *others)
  return array[len(array) - time :] if front else array[:time]
