"""A time step as a program: what a kernel reads, and what it computes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import partial_eval


def is_flag(x: Any) -> bool:
  """Whether an array is of flags."""
  return x.dtype == jnp.bool_


def by_time_step(xs: Any) -> tuple[Any, Any]:
  """What a loop reads, as its kernels take it.

  Args:
    xs: arrays [time, batch, ...]; flags may be [time, batch].

  Returns:
    The same, flags [time, batch, 1]; and the shapes of one time step.
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
  """The time step of a block of rows as a program of the leaves that it reads.

  Args:
    time_step: `time_step(fixed, rows, carry, now) -> (carry, y)`.
    block: how many rows it sees.
    fixed: arrays that all rows and time steps share.
    rows: arrays [batch, ...] that all time steps share.
    carry: arrays [batch, ...]; the program takes all of them, read or not.
    now: arrays [batch, ...], shapes of what one time step reads.
    xs: arrays [time, batch, ...], of which `now` is one time step.

  Returns:
    Pairs of what a leaf is, "f", "r", "c" or "x" as in the arguments above, and
    the leaf; the program, which takes them in that order; how many it takes as
    constants, which are those that the time step closes over and come first.
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
