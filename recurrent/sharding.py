"""Where arrays live: a mesh of all devices with one axis, `"data"`.

Batches and carries are split over `"data"` by their first axis, all else is
replicated, and the compiler inserts the all-reduce.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from recurrent.errors import ConfigError
from recurrent.types import PyTree


def make_mesh(devices: int | None = None) -> Mesh:
  """A mesh over the first `devices` devices, or over all of them.

  Args:
    devices: how many to use; None or 0 for all.

  Returns:
    A mesh with the axis "data".

  Raises:
    ConfigError: if there are fewer devices.
  """
  available = jax.device_count()
  if devices and devices > available:
    raise ConfigError(
      f"--devices={devices}, but there are {available}",
      f"use --devices={available}, or leave the flag out for all",
    )
  # Auto: since jax 0.9 the default is Explicit, under which a plain
  # embedding lookup of sharded tokens is a type error.
  return jax.make_mesh(
    (devices or available,),
    ("data",),
    axis_types=(AxisType.Auto,),
    devices=jax.devices()[: devices or available],
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """A whole copy on each device."""
  return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
  """The first axis split over "data"."""
  return NamedSharding(mesh, PartitionSpec("data"))


def put(tree: PyTree, sharding: NamedSharding) -> PyTree:
  """Puts arrays, the same on every process, where `sharding` says.

  Args:
    tree: NumPy arrays or Python scalars, with global shapes.
    sharding: for every leaf.

  Returns:
    Global `jax.Array`s; each process sends its own devices' part only.
  """
  if jax.process_count() == 1:
    return jax.device_put(tree, sharding)

  def put_leaf(leaf):
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(
      leaf.shape, sharding, lambda index: leaf[index]
    )

  return jax.tree.map(put_leaf, tree)


def check_batch_size(name: str, batch_size: int, mesh: Mesh) -> None:
  """Raises ConfigError unless the mesh divides the batch evenly."""
  n = mesh.size
  if batch_size % n == 0:
    return
  below, above = batch_size // n * n, -(-batch_size // n) * n
  near = f"{below} or {above}" if below else f"{above}"
  raise ConfigError(
    f"--{name}={batch_size} does not divide over {n} devices",
    f"use --{name}={near}",
  )
