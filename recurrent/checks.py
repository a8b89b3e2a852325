"""Checks of arguments that several modules share.

Each function raises a `ValueError` that names the argument, what it was, and
what it should be. Shapes and dtypes are known while a function is traced, so
all of these work inside `jax.jit`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from recurrent.types import Array, Carry, Mask


def check_positive(name: str, number: Any) -> int:
  """Returns the number if it is a positive integer.

  Raises:
    ValueError: if it is not.
  """
  if type(number) is not int or number < 1:
    raise ValueError(f"{name} must be a positive integer, got {number!r}")
  return number


def check_features(features: Any) -> int:
  """Returns the width of a cell if it is a positive integer.

  Raises:
    ValueError: if it is not.
  """
  return check_positive("features", features)


def check_width(name: str, array: Array, width: int) -> None:
  """Raises ValueError unless the last axis of an array has length `width`."""
  got = array.shape[-1] if hasattr(array, "shape") else type(array).__name__
  if got != width:
    raise ValueError(
      f"{name} must be {width} wide, as params are for, got {got}"
    )


def check_floating(name: str, array: Any) -> None:
  """Raises ValueError unless an array has a floating-point dtype."""
  if not jnp.issubdtype(array.dtype, jnp.floating):
    raise ValueError(f"{name} must be floating-point, got {array.dtype}")


def check_flags(
  name: str,
  flags: Any,
  shape: tuple[int, ...],
  axes: str = "[batch, time]",
) -> None:
  """Checks that flags are None, or a Boolean array of a given shape.

  Args:
    name: name of the argument, such as "mask".
    flags: the argument.
    shape: the shape that it should have.
    axes: the names of its axes.

  Raises:
    ValueError: if the flags have another shape or dtype.
  """
  if flags is None:
    return
  if flags.shape != shape:
    hint = "; transpose it?" if flags.shape == shape[::-1] else ""
    raise ValueError(
      f"{name} must be {axes} = {shape}, got {flags.shape}{hint}"
    )
  if flags.dtype != jnp.bool_:
    raise ValueError(f"{name} must be Boolean, got {flags.dtype}")


def check_sequence(
  inputs: Array,
  features: int,
  mask: Mask | None,
  resets: Mask | None,
  *,
  name: str = "inputs",
) -> None:
  """Checks that inputs are [batch, time, features] and that flags match them.

  Raises:
    ValueError: if an argument has the wrong shape or dtype.
  """
  if inputs.ndim != 3 or inputs.shape[1] < 1 or inputs.shape[2] != features:
    raise ValueError(
      f"{name} must be [batch, time, {features}] with at least one time step,"
      f" got {inputs.shape}"
    )
  check_floating(name, inputs)
  check_flags("mask", mask, inputs.shape[:2])
  check_flags("resets", resets, inputs.shape[:2])


def check_carry(name: str, carry: Carry, initial: Carry) -> None:
  """Checks a carry's structure, shapes and dtypes against the initial carry.

  Raises:
    ValueError: if it has not.
  """
  got, want = (
    jax.tree.map(lambda x: (x.shape, str(x.dtype)), t) for t in (carry, initial)
  )
  # NamedTuples of different classes compare equal if their values do, so the
  # structures are compared as well.
  structures: Any = [jax.tree.structure(t) for t in (carry, initial)]
  if got != want or structures[0] != structures[1]:
    raise ValueError(f"{name} must be {want}, got {got}")
