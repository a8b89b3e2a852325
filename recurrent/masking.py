"""What all executors share: time steps, and flags over trees of arrays."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from recurrent.types import Array, Carry


class TimeSteps(NamedTuple):
  """What the loop reads at each time step, all [time, batch, ...]."""

  projected: Any
  mask: Array | None
  resets: Array | None


def restart(resets: Array | None, initial: Carry, carry: Carry) -> Carry:
  """The initial carry in the rows that start afresh, the carry in the others.

  Args:
    resets: [batch] bool, or None for no row.
    initial: [batch, ...], as `cell.initial_carry` gives it.
    carry: [batch, ...].

  Returns:
    A carry like both.
  """
  if resets is None:
    return carry
  return jax.tree.map(functools.partial(select, resets), initial, carry)


def select(flags, new, old):
  """`where` with flags [batch, ...] broadcast over the trailing axes."""
  flags = jnp.expand_dims(flags, range(flags.ndim, new.ndim))
  return jnp.where(jnp.broadcast_to(flags, new.shape), new, old)


def hold(mask, new, old):
  """New where the time step is real, old elsewhere."""
  if mask is None:
    return new
  return jax.tree.map(functools.partial(select, mask), new, old)


def blank(flags, tree, keep=True):
  """The tree where flags == keep, zero elsewhere."""
  if flags is None:
    return tree
  flags = flags if keep else ~flags
  return jax.tree.map(lambda x: select(flags, x, jnp.zeros_like(x)), tree)


def zeros(tree):
  """A tree of zeros."""
  return jax.tree.map(jnp.zeros_like, tree)


def add(a, b):
  """The sum of two trees."""
  return jax.tree.map(jnp.add, a, b)


def add_wide(total, tree):
  """The sum, in the dtype of the total."""
  return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, tree)


def at(tree, index):
  """One entry of the first axis."""
  return jax.tree.map(lambda x: x[index], tree)


def length(tree) -> int:
  """The size of the first axis."""
  return jax.tree.leaves(tree)[0].shape[0]
