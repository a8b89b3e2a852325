"""Traces a time step to a jaxpr for a kernel, and the arrays that it reads."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import partial_eval


def is_flag(x: Any) -> bool:
  """Returns whether an array is Boolean."""
  return x.dtype == jnp.bool_


def by_time_step(xs: Any) -> tuple[Any, Any]:
  """Prepares the arrays that a loop reads for a kernel.

  Args:
    xs: a pytree of arrays [time, batch, ...]; flags may be [time, batch].

  Returns:
    The same arrays, with flags as [time, batch, 1]; and the shapes and dtypes
    of one time step.
  """
  column = lambda x: x[..., None] if is_flag(x) and x.ndim == 2 else x
  xs = jax.tree.map(column, xs)
  now = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), xs)
  return xs, now


def traced(
  time_step: Callable[..., Any],
  block: int,
  fixed: Any,
  rows: Any,
  carry: Any,
  now: Any,
  xs: Any,
) -> tuple[list[tuple[str, Any]], core.Jaxpr, int]:
  """Traces the time step of a block of rows, with only the leaves it reads.

  Args:
    time_step: `time_step(fixed, rows, carry, now) -> (carry, y)`.
    block: number of rows in the block.
    fixed: arrays that are the same for all rows and time steps.
    rows: arrays [batch, ...] that are the same for all time steps.
    carry: arrays [batch, ...]; the program takes all of them, read or not.
    now: arrays [batch, ...], shapes of what one time step reads.
    xs: arrays [time, batch, ...], of which `now` is one time step.

  Returns:
    Pairs of a kind ("f" fixed, "r" rows, "c" carry, "x" xs) and a leaf; the
    jaxpr, which takes the leaves in that order; and the number of leaves that
    are its constants. These come first: they are the arrays that the time step
    closes over.
  """
  cut = lambda tree: jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((block, *x.shape[1:]), x.dtype), tree
  )
  closed = jax.make_jaxpr(time_step)(fixed, cut(rows), cut(carry), cut(now))
  leaves = [
    (kind, x)
    for kind, tree in zip("frcx", (fixed, rows, carry, xs), strict=True)
    for x in jax.tree.leaves(tree)
  ]
  jaxpr, read = partial_eval.dce_jaxpr(
    closed.jaxpr,
    [True] * len(closed.jaxpr.outvars),
    [kind == "c" for kind, _ in leaves],
  )
  leaves = [("f", jnp.asarray(x)) for x in closed.consts] + [
    leaf for leaf, used in zip(leaves, read, strict=True) if used
  ]
  return leaves, jaxpr, len(closed.consts)
