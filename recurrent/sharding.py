"""Data parallelism over a mesh of devices with one axis, `"data"`.

Batches and carries are split over `"data"` along their first axis. All other
arrays are replicated, and the compiler inserts the all-reduce of the gradients.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from recurrent.errors import ConfigError
from recurrent.types import PyTree


def make_mesh(devices: int | None = None) -> Mesh:
  """Makes a mesh over the first `devices` devices, or over all of them.

  Args:
    devices: number of devices to use; None or 0 for all.

  Returns:
    A mesh with the axis "data".

  Raises:
    ConfigError: if there are fewer than `devices` devices.
  """
  available = jax.device_count()
  if devices and devices > available:
    raise ConfigError(
      f"`devices={devices}`, but there are {available}",
      f"use `devices={available}`, or 0 for all",
    )
  # Auto, since under Explicit, the default since jax 0.9, a plain embedding
  # lookup of sharded tokens is a type error.
  return jax.make_mesh(
    (devices or available,),
    ("data",),
    axis_types=(AxisType.Auto,),
    devices=jax.devices()[: devices or available],
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding that puts a copy of an array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
  """The sharding that splits the first axis of an array over the devices."""
  return NamedSharding(mesh, PartitionSpec("data"))


def put(tree: PyTree, sharding: NamedSharding) -> PyTree:
  """Puts global arrays onto the devices of all processes.

  Args:
    tree: NumPy arrays or Python scalars of global shape, the same on every
      process.
    sharding: sharding of every leaf.

  Returns:
    Global `jax.Array`s. Each process transfers only the parts of its own
    devices.
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
  """Raises ConfigError unless the devices divide the batch evenly.

  Args:
    name: name of the argument of the batch size, for the message.
    batch_size: rows of the global batch.
    mesh: the mesh of devices.
  """
  n = mesh.size
  if batch_size % n == 0:
    return
  below, above = batch_size // n * n, -(-batch_size // n) * n
  near = [x for x in (below, above) if x]
  raise ConfigError(
    f"`{name}={batch_size}` does not divide over {n} devices",
    f"use {' or '.join(f'`{name}={rows}`' for rows in near)}",
  )
