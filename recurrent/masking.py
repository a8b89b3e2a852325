"""Masks and resets: made from lengths, and applied to pytrees of arrays."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from recurrent.checks import check_flags
from recurrent.types import Array, Bool, Carry, Lengths, Mask


class TimeSteps(NamedTuple):
  """The arrays that the loop over time reads, all [time, batch, ...].

  Attributes:
    projected: the inputs projected by `cell.project`, or the inputs themselves
      for an executor that projects them.
    mask: True where a time step is real; None: everywhere.
    resets: True where a time step starts from the initial carry; None: nowhere.
  """

  projected: Any
  mask: Array | None
  resets: Array | None


def length_mask(seq_lengths: Lengths, time: int) -> Bool[Array, "B T"]:
  """Makes the mask of sequences that are padded at their end.

  Inside `jax.jit` the values of the lengths are not known and are not checked:
  a length greater than `time` then counts as `time`, and a negative one as 0.

  Example:
    >>> import jax.numpy as jnp
    >>> from recurrent import length_mask
    >>> length_mask(jnp.array([2, 0]), 3).astype(int).tolist()
    [[1, 1, 0], [0, 0, 0]]

  Args:
    seq_lengths: [batch], number of real time steps in each row. It may be 0.
    time: number of time steps in the mask.

  Returns:
    [batch, time], True at the first `seq_lengths` time steps of each row.

  Raises:
    ValueError: if the lengths are not integers [batch], or one of them is
      negative or greater than `time`.
  """
  if not isinstance(seq_lengths, jax.Array):
    seq_lengths = np.asarray(seq_lengths)
  if seq_lengths.ndim != 1 or not jnp.issubdtype(
    seq_lengths.dtype, jnp.integer
  ):
    raise ValueError(
      "seq_lengths must be integers [batch], got"
      f" {seq_lengths.dtype} {seq_lengths.shape}"
    )
  # Values are known unless the array is traced or lies on other processes.
  if not isinstance(seq_lengths, jax.core.Tracer) and getattr(
    seq_lengths, "is_fully_addressable", True
  ):
    for length in np.asarray(seq_lengths).tolist():
      if not 0 <= length <= time:
        raise ValueError(
          f"seq_lengths must be from 0 to {time} time steps, got {length}"
        )
  narrow = seq_lengths.dtype.itemsize < 4
  lengths = jnp.asarray(seq_lengths, jnp.int32 if narrow else None)[:, None]
  shape = len(seq_lengths), time
  places = jax.lax.broadcasted_iota(lengths.dtype, shape, 1)
  return places < jnp.broadcast_to(lengths, shape)


def as_mask(
  mask: Mask | None, seq_lengths: Lengths | None, inputs: Any
) -> Mask | None:
  """Returns the mask that a caller gave, as a mask or as lengths.

  Args:
    mask: [batch, time], or None.
    seq_lengths: [batch], as for `length_mask`, or None.
    inputs: a pytree of arrays [batch, time, ...].

  Raises:
    ValueError: if both are given, or the lengths do not fit the inputs.
  """
  if seq_lengths is None:
    return mask
  if mask is not None:
    raise ValueError("give mask or seq_lengths, got both")
  shapes = [x.shape for x in jax.tree.leaves(inputs)]
  if not shapes or len(shapes[0]) < 2:
    raise ValueError(f"inputs must be [batch, time, features], got {shapes}")
  made = length_mask(seq_lengths, shapes[0][1])
  check_flags("seq_lengths", made[:, 0], shapes[0][:1], "[batch]")
  return made


def restart(resets: Array | None, initial: Carry, carry: Carry) -> Carry:
  """Replaces the carry by the initial carry in the rows that are reset.

  Args:
    resets: [batch] bool, True in the rows that are reset; None: no row.
    initial: the initial carry, [batch, ...].
    carry: [batch, ...], of the same structure.

  Returns:
    The carry after the resets, [batch, ...].
  """
  if resets is None:
    return carry
  return jax.tree.map(functools.partial(select, resets), initial, carry)


def select(flags, new, old):
  """Computes `where(flags, new, old)`, flags broadcast over trailing axes."""
  flags = jnp.expand_dims(flags, range(flags.ndim, new.ndim))
  return jnp.where(jnp.broadcast_to(flags, new.shape), new, old)


def hold(mask, new, old):
  """Selects `new` where the mask is True or None, and `old` elsewhere."""
  if mask is None:
    return new
  return jax.tree.map(functools.partial(select, mask), new, old)


def blank(flags, tree, keep=True):
  """Sets all leaves to zero where flags != keep; flags may be None."""
  if flags is None:
    return tree
  flags = flags if keep else ~flags
  return jax.tree.map(lambda x: select(flags, x, jnp.zeros_like(x)), tree)


def zeros(tree):
  """Returns a pytree of zeros with the same shapes and dtypes."""
  return jax.tree.map(jnp.zeros_like, tree)


def add(a, b):
  """Adds two pytrees leaf by leaf."""
  return jax.tree.map(jnp.add, a, b)


def add_wide(total, tree):
  """Adds a pytree to a total, in the dtypes of the total."""
  return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, tree)


def at(tree, index):
  """Indexes the first axis of every leaf."""
  return jax.tree.map(lambda x: x[index], tree)


def length(tree) -> int:
  """Returns the length of the first axis, which all leaves share."""
  return jax.tree.leaves(tree)[0].shape[0]
