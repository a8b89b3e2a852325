"""Masks and resets applied to pytrees of arrays, as all executors need them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from recurrent.types import Array, Carry


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
