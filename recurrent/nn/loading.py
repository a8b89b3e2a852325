"""Loads arrays into the parameters of a module, and checks their structure."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from recurrent.types import PyTree


def assign(variables: PyTree, arrays: PyTree, name: str = "params") -> None:
  """Sets the values of variables to arrays; on an error none is changed.

  The variable objects are kept, so an optimiser that was created for them
  trains the new values.

  Args:
    variables: pytree of `nnx.Variable`.
    arrays: pytree of the same structure, of arrays or of variables whose values
      are copied. In place of a NamedTuple it may have a list or tuple that
      holds only that NamedTuple.
    name: name of the tree in error messages.

  Raises:
    ValueError: if a part of `arrays` is missing, left over, or of another
      type, shape or dtype; the message names the leaf.
  """
  pairs = [*_pairs(variables, arrays, name)]
  for variable, array in pairs:
    variable.set_value(jnp.array(array))


def is_assigned(tree: PyTree) -> bool:
  """Whether every array of a tree is in an `nnx.Variable` already."""
  return all(map(_is_variable, jax.tree.leaves(tree, is_leaf=_is_variable)))


def _is_variable(value):
  return isinstance(value, nnx.Variable)


def _pairs(wanted, given, name) -> Iterator[tuple[nnx.Variable, Any]]:
  """Yields each variable with its array, whose shape and dtype are checked."""
  if _is_variable(wanted):
    yield wanted, _checked(wanted.get_value(), given, name)
  elif hasattr(wanted, "_fields"):
    if type(given) in (list, tuple) and len(given) == 1:
      (given,) = given  # The converters return a layer as a list of directions.
    if type(given) is not type(wanted):
      raise ValueError(
        f"{name} must be {type(wanted).__name__}, got {_describe(given)}"
      )
    for field in wanted._fields:
      yield from _pairs(
        getattr(wanted, field), getattr(given, field), f"{name}.{field}"
      )
  elif isinstance(wanted, list | tuple):
    if type(given) not in (list, tuple) or len(given) != len(wanted):
      raise ValueError(
        f"{name} must be a sequence of {len(wanted)}, got {_describe(given)}"
      )
    for index, (part, new) in enumerate(zip(wanted, given, strict=True)):
      yield from _pairs(part, new, f"{name}[{index}]")
  else:  # None, a dict, or any other node of a pytree.
    flatten: Any = functools.partial(
      jax.tree_util.tree_flatten_with_path, is_leaf=_is_variable
    )
    (leaves, structure), (values, found) = flatten(wanted), flatten(given)
    if structure != found:
      raise ValueError(f"{name} must be {structure}, got {found}")
    for (path, variable), (_, value) in zip(leaves, values, strict=True):
      where = name + jax.tree_util.keystr(path)
      yield from _pairs(variable, value, where)


def _checked(like, given, name):
  """Returns the array, if it has the shape and dtype of `like`."""
  array = given.get_value() if _is_variable(given) else given
  if not hasattr(array, "dtype"):
    raise ValueError(f"{name} must be an array, got {_describe(array)}")
  want = f"{jnp.dtype(like.dtype).name}{[*like.shape]}"
  got = f"{jnp.dtype(array.dtype).name}{[*np.shape(array)]}"
  if want != got:
    raise ValueError(f"{name} must be {want}, got {got}")
  return array


def _describe(value) -> str:
  """The name of a value's type, and the length of a plain list or tuple."""
  if type(value) in (list, tuple):
    return f"a {type(value).__name__} of {len(value)}"
  return type(value).__name__
