"""Meshes of devices: how batches, parameters and their states are divided.

A mesh has the axis `"data"`. Batches and carries are divided over it along
their first axis, and each device runs on its own rows (`on_own_rows`). With
`model_parallel` the mesh has a second axis `"model"`, over which matrices are
divided by columns (`columns`); there the compiler divides the work. Everything
else has a copy on each device.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from recurrent.errors import ConfigError
from recurrent.rows import DATA, MODEL
from recurrent.types import PyTree

LOG = logging.getLogger("recurrent")

ROWS, WHOLE = PartitionSpec(DATA), PartitionSpec()


def make_mesh(devices: int | None = None, model_parallel: int = 1) -> Mesh:
  """Makes a mesh over the first `devices` devices, or over all of them.

  Args:
    devices: number of devices to use; None or 0 for all.
    model_parallel: number of devices over which each matrix is divided.

  Returns:
    A mesh with the axis "data", and with `model_parallel` above 1 also "model".

  Raises:
    ConfigError: if there are fewer than `devices` devices, or `model_parallel`
      does not divide them.
  """
  available = jax.device_count()
  if devices and devices > available:
    raise ConfigError(
      f"`devices={devices}`, but there are {available}",
      f"use `devices={available}`, or 0 for all",
    )
  number = devices or available
  if number % model_parallel:
    raise ConfigError(
      f"`model_parallel={model_parallel}` does not divide {number} devices",
      "use one of"
      f" {', '.join(str(n) for n in range(1, number + 1) if not number % n)}",
    )
  return mesh_of(jax.devices()[:number], model_parallel)


def mesh_of(devices: Sequence[Any], model_parallel: int = 1) -> Mesh:
  """Makes the mesh of `make_mesh` over the given devices."""
  axes: dict[str, int] = {DATA: len(devices) // model_parallel}
  if model_parallel > 1:
    axes[MODEL] = model_parallel
  # Auto, since under Explicit, the default since jax 0.9, a plain embedding
  # lookup of sharded tokens is a type error.
  return jax.make_mesh(
    tuple(axes.values()),
    tuple(axes),
    axis_types=(AxisType.Auto,) * len(axes),
    devices=devices,
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding that puts a copy of an array on every device."""
  return NamedSharding(mesh, WHOLE)


def split_batch(mesh: Mesh) -> NamedSharding:
  """The sharding that splits the first axis of an array over the devices."""
  return NamedSharding(mesh, ROWS)


def columns(tree: PyTree, mesh: Mesh, *, by_data: bool = False) -> PyTree:
  """The sharding of parameters, or of the state of an optimiser, on a mesh.

  Matrices, and arrays of more axes, are divided by columns over "model": the
  embedding by its features, the output layer by the tokens, the weights of a
  recurrent layer by the units of its gates. The rule knows the shape only, so
  that the moments of an optimiser are divided as their parameters are.

  Args:
    tree: arrays, or their shapes.
    mesh: the mesh of devices.
    by_data: whether to divide each array over "data" too, by the first of the
      other axes that allows it, as for the state of an optimiser that no device
      needs as a whole (ZeRO).

  Returns:
    For each array a sharding. Axes that the devices do not divide are whole.

  Reference:
    Rajbhandari et al., "ZeRO: memory optimizations toward training trillion
    parameter models", 2020.
  """

  def place(leaf):
    spec: list[str | None] = [None] * len(leaf.shape)
    parts = mesh.shape.get(MODEL, 1)
    if parts > 1 and len(spec) > 1 and not leaf.shape[-1] % parts:
      spec[-1] = MODEL
    if by_data:
      whole = (
        axis
        for axis, size in enumerate(leaf.shape)
        if spec[axis] is None and size and not size % mesh.shape[DATA]
      )
      if (axis := next(whole, None)) is not None:
        spec[axis] = DATA
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree.map(place, tree)


def on_own_rows(
  run: Callable[..., Any],
  mesh: Mesh,
  in_specs: tuple[PartitionSpec, ...],
  out_specs: Any,
) -> Callable[..., Any]:
  """Makes each device run a function on its own rows, by `jax.shard_map`.

  What the devices share must go through `recurrent.rows`, such as `rows.total`
  or `Mean.value`. JAX checks, by the types of the arrays, that each result with
  the specification `WHOLE` is the same on all devices.

  Where that cannot be done, `run` is called with the whole arrays and the
  compiler divides it over the devices, with a warning that says why: if an
  argument has other rows than the rest, or rows that the devices do not divide;
  if a result differs between devices, such as a plain mean over the rows; or if
  the carry of a loop within begins replicated and does not remain so.

  Args:
    run: a function of pytrees of arrays.
    mesh: the mesh of devices.
    in_specs: for each argument `ROWS` or `WHOLE`.
    out_specs: the same for the results.

  Returns:
    A function with the arguments and the results of `run`, to be called within
    `jax.jit`. On a mesh with one device it is `run`.
  """
  devices = mesh.shape[DATA]
  if mesh.size == 1:
    return run
  if devices == 1:
    # XLA does not compile sums over a manual axis with one device.
    def alone(*args):
      with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return run(*args)

    return alone

  each = jax.shard_map(
    run,
    mesh=mesh,
    in_specs=in_specs,
    out_specs=out_specs,
    axis_names={DATA},
  )

  def call(*args):
    split = [a for a, s in zip(args, in_specs, strict=True) if s == ROWS]
    shapes = [x.shape for x in jax.tree.leaves(split)]
    counts = {shape[0] if shape else None for shape in shapes}
    if len(counts) != 1 or None in counts or counts.pop() % devices:
      why = f"their first axes are not {devices} equal parts: {shapes}"
    else:
      try:
        return each(*args)
      except (NotImplementedError, TypeError, ValueError) as error:
        why = str(error).splitlines()[0]
    LOG.warning(
      "The compiler divides the work over %d devices, which may be slower,"
      " since the devices cannot run on rows of their own: %s",
      devices,
      why,
    )
    return run(*args)

  return call


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


def own_rows(sharding: NamedSharding, rows: int) -> slice:
  """The rows of a global batch that the devices of this process need.

  Args:
    sharding: from `split_batch`.
    rows: number of rows of the global batch.

  Returns:
    The smallest range that contains them; all rows in a run of one process.
  """
  parts = sharding.addressable_devices_indices_map((rows,)).values()
  ranges = [part[0].indices(rows) for part in parts if part is not None]
  return slice(min(r[0] for r in ranges), max(r[1] for r in ranges))


def put_rows(
  tree: PyTree, sharding: NamedSharding, own: slice, rows: int
) -> PyTree:
  """Puts a global batch, of which each process has its own rows only.

  Args:
    tree: NumPy arrays of this process's rows, [rows of `own`, ...].
    sharding: from `split_batch`.
    own: from `own_rows`.
    rows: number of rows of the global batch.

  Returns:
    Global `jax.Array`s, [rows, ...].
  """

  def put_leaf(leaf):
    def part(index):
      begin, end, _ = index[0].indices(rows)
      return leaf[begin - own.start : end - own.start]

    shape = (rows, *leaf.shape[1:])
    return jax.make_array_from_callback(shape, sharding, part)

  return jax.tree.map(put_leaf, tree)


def check_batch_size(name: str, batch_size: int, mesh: Mesh) -> None:
  """Raises ConfigError unless the devices divide the batch evenly.

  Args:
    name: name of the argument of the batch size, for the message.
    batch_size: rows of the global batch.
    mesh: the mesh of devices.
  """
  n = mesh.shape[DATA]
  if batch_size % n == 0:
    return
  below, above = batch_size // n * n, -(-batch_size // n) * n
  near = [x for x in (below, above) if x]
  raise ConfigError(
    f"`{name}={batch_size}` does not divide over {n} devices",
    f"use {' or '.join(f'`{name}={rows}`' for rows in near)}",
  )
