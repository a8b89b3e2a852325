"""SHA-256 digests of arrays and pytrees, to verify and compare weights."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from recurrent.types import PyTree


def flatten(tree: PyTree) -> dict[str, jax.Array]:
  """Leaves by path, as in "params/stack/layers/0/params/kernel".

  A PRNG key is replaced by its key data, an array of integers.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): _key_data(leaf)
    for path, leaf in leaves
  }


def unflatten(template: PyTree, leaves: dict[str, jax.Array]) -> PyTree:
  """Undoes `flatten`.

  Args:
    template: tree of arrays, or their shapes, dtypes and shardings.
    leaves: arrays by path, as `flatten` returns them.

  Returns:
    A tree like `template`.
  """
  wanted, structure = jax.tree.flatten(template)
  found = [
    _key(like, leaves[path]) if _is_key(like) else leaves[path]
    for path, like in zip(flatten(template), wanted, strict=True)
  ]
  return jax.tree.unflatten(structure, found)


def leaf_sha256(path: str, leaf: jax.Array) -> str:
  """SHA-256 over path, dtype, shape and bytes of one array, in hex.

  An array that is split over processes is gathered first, so every process
  must call this at the same time.
  """
  digest = hashlib.sha256()
  _feed(digest, path, leaf)
  return digest.hexdigest()


def tree_sha256(tree: PyTree) -> str:
  """SHA-256 over path, dtype, shape and bytes of all leaves, in path order."""
  digest = hashlib.sha256()
  for path, leaf in sorted(flatten(tree).items()):
    _feed(digest, path, leaf)
  return digest.hexdigest()


def _is_key(leaf) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_data(leaf):
  """The key data of a PRNG key or of its shape; other leaves unchanged."""
  if not _is_key(leaf):
    return leaf
  if isinstance(leaf, jax.ShapeDtypeStruct):
    data = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)
  return jax.random.key_data(leaf)


def _key(like, data):
  """A key of the same kind as `like`, which may be a shape only."""
  kind: list[Any] = []
  jax.eval_shape(lambda key: kind.append(jax.random.key_impl(key)), like)
  return jax.random.wrap_key_data(data, impl=kind[0])


def _feed(digest, path, leaf):
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    if leaf.is_fully_replicated:
      leaf = leaf.addressable_data(0)
    else:
      leaf = multihost_utils.process_allgather(leaf, tiled=True)
  array = np.asarray(leaf)
  for part in (path, array.dtype.name, str(array.shape)):
    digest.update(part.encode() + b"\0")
  # Viewed as uint8, since Python's buffer protocol does not have bfloat16.
  digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
