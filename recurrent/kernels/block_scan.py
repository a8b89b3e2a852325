"""The recurrence s_t = J_t s_{t-1} + drive_t, with a small J_t per unit."""

import math

import jax
import jax.numpy as jnp

from recurrent.kernels import chunks
from recurrent.types import Array

Blocks = list[list[Array]]  # [to][from], each [time, ...]


def block_scan(
  blocks: Blocks, drives: list[Array], start: list[Array], reverse: bool = False
) -> list[Array]:
  """Solves the recurrence in about sqrt(time) parallel chunks.

  Each unit has K states, and J_t is a K by K matrix for each unit. First all
  chunks run in parallel from zero states, along with the products of their
  matrices; then the states at the ends of the chunks are computed one after the
  other; then one multiply-add over all time steps gives the result. It defines
  no custom gradient.

  Args:
    blocks: K lists of K arrays [time, ...], the entries of J_t.
    drives: K arrays [time, ...].
    start: K arrays [...], the states before the first time step.
    reverse: whether to run from the last time step to the first.

  Returns:
    The states after each time step, K arrays [time, ...].
  """
  if reverse:
    blocks, drives = jax.tree.map(lambda x: x[::-1], (blocks, drives))
    return [x[::-1] for x in block_scan(blocks, drives, start)]
  time, many = len(drives[0]), range(len(drives))
  size = -(-time // math.isqrt(time))
  # Chunks run in parallel, so the axis of the loop comes first.
  split = lambda x: jnp.swapaxes(chunks.split(x, size), 0, 1)
  blocks = [[split(blocks[i][j]) for j in many] for i in many]
  drives = [split(drive) for drive in drives]
  apply = lambda block, state: [
    sum(block[i][j] * state[j] for j in many) for i in many
  ]

  def time_step(carry, now):
    state, product = carry
    block, drive = now
    state = [a + b for a, b in zip(apply(block, state), drive, strict=True)]
    columns = [apply(block, column) for column in product]
    return (state, columns), (state, columns)

  one = jnp.ones_like(drives[0][0])
  # Products are kept as lists of columns, and `apply` multiplies a column.
  unit = [[one if i == j else 0 * one for i in many] for j in many]
  _, (states, products) = jax.lax.scan(
    time_step, ([0 * one for _ in many], unit), (blocks, drives)
  )

  def along(columns, state):
    return [
      sum(column[i] * state[j] for j, column in enumerate(columns))
      for i in many
    ]

  def from_chunk_to_chunk(state, chunk):
    ended, columns = chunk
    after = [a + b for a, b in zip(along(columns, state), ended, strict=True)]
    return after, state

  last = jax.tree.map(lambda x: x[-1], (states, products))
  _, entering = jax.lax.scan(from_chunk_to_chunk, start, last)
  entering = [
    jnp.broadcast_to(x, y.shape) for x, y in zip(entering, states, strict=True)
  ]
  states = [
    a + b for a, b in zip(states, along(products, entering), strict=True)
  ]
  return [chunks.join(jnp.swapaxes(x, 0, 1), time) for x in states]
