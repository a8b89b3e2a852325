"""SHA-256 of arrays: what tells one set of weights from another."""

import hashlib

import jax
import numpy as np
from jax.experimental import multihost_utils

from recurrent.types import PyTree


def flatten(tree: PyTree) -> dict[str, jax.Array]:
  """Leaves by path, as in "params/stack/layers/0/params/kernel"."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }


def leaf_sha256(path: str, leaf: jax.Array) -> str:
  """SHA-256 over path, dtype, shape and bytes of one array, in hex.

  An array that is split over processes is gathered first, so every process
  must call this at the same time.
  """
  digest = hashlib.sha256()
  _feed(digest, path, leaf)
  return digest.hexdigest()


def tree_sha256(tree: PyTree) -> str:
  """SHA-256 over all leaves in path order: path, dtype, shape, bytes each."""
  digest = hashlib.sha256()
  for path, leaf in sorted(flatten(tree).items()):
    _feed(digest, path, leaf)
  return digest.hexdigest()


def _feed(digest, path, leaf):
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    if leaf.is_fully_replicated:
      leaf = leaf.addressable_data(0)
    else:
      leaf = multihost_utils.process_allgather(leaf, tiled=True)
  array = np.asarray(leaf)
  for part in (path, array.dtype.name, str(array.shape)):
    digest.update(part.encode() + b"\0")
  # By way of uint8, since bfloat16 is nothing to Python's buffers.
  digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
