"""Sums and noise over the rows of a batch that is divided over devices.

Within `jax.shard_map` each device runs a program of its own, on its own rows.
The type of an array then says over which mesh axes it varies, that is, whether
each device has other values. The functions here ask that type. Outside
`jax.shard_map` they are plain sums and draws, so a loss that is made of them
has the same value however its batch is divided.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p
from jax.sharding import PartitionSpec

from recurrent.types import Array, Bool, Float, PRNGKey

Axes = frozenset[str]

# The axes of a mesh, see `recurrent.sharding`.
DATA, MODEL = "data", "model"


def axes_of(tree: Any) -> Axes:
  """The mesh axes over which any array of a tree varies; outside: none."""
  kinds = map(jax.typeof, jax.tree.leaves(tree))
  return frozenset().union(*map(_varying, kinds))


def _varying(kind) -> Axes:
  # JAX before 0.10 has another name for it.
  kind = getattr(kind, "manual_axis_type", kind)
  over = getattr(kind, "varying", None)
  return getattr(kind, "vma", frozenset()) if over is None else over


def vary(tree: Any, axes: Axes) -> Any:
  """Casts all arrays so that they vary over the axes, with the same values."""

  def cast(x):
    missing = tuple(sorted(axes - axes_of(x)))
    if not missing or jnp.result_type(x) == jax.dtypes.float0:
      return x
    return jax.lax.pcast(jnp.asarray(x), missing, to="varying")

  return jax.tree.map(cast, tree) if axes else tree


def vary_alike(tree: Any) -> Any:
  """Makes all arrays vary over each mesh axis that any of them varies over.

  The carry of a loop must keep its type, but a carry that starts with
  replicated zeros varies once sharded inputs are added to it.

  Args:
    tree: a pytree of arrays.

  Returns:
    The same arrays with such types; outside `jax.shard_map`, `tree` itself.
  """
  return vary(tree, axes_of(tree))


def total(tree: Any) -> Any:
  """Sums over devices what each device has summed over its own rows.

  All arrays are summed over each mesh axis that any of them varies over. A
  count that is the same number on every device is thus multiplied by their
  number.

  Args:
    tree: a pytree of sums, such as one of values and one of their weights.

  Returns:
    The sums over all rows; outside `jax.shard_map`, `tree` itself.
  """
  axes = axes_of(tree)

  def add(x):
    own = axes_of(x)
    others = jax.lax.axis_size(tuple(axes - own))
    x = jax.lax.psum(x, tuple(sorted(own))) if own else x
    return x * jnp.asarray(others, x.dtype) if others > 1 else x

  return jax.tree.map(add, tree) if axes else tree


def undivided(tree: Any) -> Any:
  """Keeps arrays whole where the compiler divides matrices over devices.

  Within a part of a program that each group of devices runs on rows of its own,
  with matrices divided over the group, the compiler would else divide a sum by
  gates as its matrix is, and move its parts from device to device for each
  gate.

  Args:
    tree: a pytree of arrays.

  Returns:
    The same arrays, each whole on every device of the group; `tree` itself
    unless the axis "model" is the only one that the compiler divides.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if [x for x in mesh.auto_axes if mesh.shape[x] > 1] != [MODEL]:
    return tree

  def keep(x):
    if jnp.result_type(x) == jax.dtypes.float0:
      return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())

  return jax.tree.map(keep, tree)


def bernoulli(
  key: PRNGKey, p: float, shape: tuple[int, ...], like: Any
) -> Bool[Array, "..."]:
  """Draws booleans for the rows of a batch, the same ones on any mesh.

  It is `jax.random.bernoulli` of all rows of the batch, of which each device
  draws its own.

  Args:
    key: PRNG key, the same on every device.
    p: probability of True.
    shape: [rows, ...], of this device's rows.
    like: pytree of arrays whose first axis is that of the rows. If they vary
      over mesh axes, their rows are divided over these.

  Returns:
    Booleans of the given shape.
  """
  names = jax.sharding.get_abstract_mesh().axis_names
  axes = tuple(axis for axis in names if axis in axes_of(like))
  if not axes:
    return jax.random.bernoulli(key, p, shape)
  whole = (shape[0] * jax.lax.axis_size(axes), *shape[1:])
  device = jax.lax.axis_index(axes)
  if not _by_position(key, math.prod(whole)):
    drawn = jax.random.bernoulli(key, p, whole)
    return jax.lax.dynamic_slice_in_dim(drawn, device * shape[0], shape[0])
  # Each number is a function of the key and its position in the whole array.
  size = math.prod(shape)
  position = device.astype(jnp.uint32) * jnp.uint32(size)
  position = position + jax.lax.iota(jnp.uint32, size)
  first, second = (
    vary(jnp.broadcast_to(word, size), axes_of(position))
    for word in jax.random.key_data(key)
  )
  high = jnp.zeros_like(position)
  left, right = threefry2x32_p.bind(first, second, high, position)
  # As `jax.random.uniform` does: 23 random bits as the fraction of [1, 2).
  one = jnp.float32(1)
  fraction = (left ^ right) >> 9 | jax.lax.bitcast_convert_type(one, jnp.uint32)
  drawn = jax.lax.bitcast_convert_type(fraction, jnp.float32) - one
  return (drawn < jnp.float32(p)).reshape(shape)


def uniform(
  key: PRNGKey, shape: tuple[int, ...], like: Any
) -> Float[Array, "..."]:
  """Draws numbers from 0 to 1 for the rows of a batch, the same on any mesh.

  It is `jax.random.uniform` of all rows of the batch, which every device draws;
  it is meant for a few numbers a row. The arguments are those of `bernoulli`.
  """
  names = jax.sharding.get_abstract_mesh().axis_names
  axes = tuple(axis for axis in names if axis in axes_of(like))
  if not axes:
    return jax.random.uniform(key, shape)
  whole = (shape[0] * jax.lax.axis_size(axes), *shape[1:])
  first = jax.lax.axis_index(axes) * shape[0]
  drawn = jax.random.uniform(key, whole)
  return jax.lax.dynamic_slice_in_dim(drawn, first, shape[0])


def _by_position(key, size) -> bool:
  """Whether JAX draws 32 bits from the key and each number's position."""
  config: Any = jax.config
  return (
    jax.random.key_impl(key) == "threefry2x32"
    and getattr(config, "jax_threefry_partitionable", True)
    and not config.jax_enable_x64  # `bernoulli` draws 64 bits then.
    and size < 2**32
  )
