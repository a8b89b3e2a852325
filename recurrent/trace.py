"""`trace` returns the carry after every time step, to inspect a cell."""

import jax
import jax.numpy as jnp

from recurrent.cells.base import Cell
from recurrent.executors.scan import time_step
from recurrent.masking import TimeSteps, as_mask
from recurrent.types import Array, Carry, Lengths, Mask, Params, PyTree
from recurrent.unroll import _begin


def trace(
  cell: Cell,
  params: Params,
  carry: Carry | None,
  inputs: PyTree,
  *,
  mask: Mask | None = None,
  seq_lengths: Lengths | None = None,
  resets: Mask | None = None,
  initial: Carry | None = None,
  reverse: bool = False,
) -> tuple[Carry, Array]:
  """Runs a cell over time and keeps the carry after every time step.

  It is a plain `jax.lax.scan`, which JAX differentiates, and it computes what
  `recurrent.unroll` computes with `method="scan"`. It holds O(time) carries in
  memory, so it is meant for inspecting a network, not for training it. Gates
  are not returned; they are functions of the carry before a time step and of
  the inputs, and can be recomputed from these.

  Example:
    >>> import jax
    >>> import recurrent
    >>> cell = recurrent.cells.LSTM(4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> inputs = jax.random.normal(jax.random.key(1), (2, 5, 3))
    >>> carries, outputs = recurrent.trace(cell, params, None, inputs)
    >>> carries.cell.shape  # [batch, time, features]
    (2, 5, 4)
    >>> bool((carries.hidden == outputs).all())
    True

    For a module `nn.Recurrent`, pass `module.cell` and `module.cell_params()`.

  Args:
    cell: any cell.
    params: the cell's parameters. These and all other arguments are as in
      `recurrent.unroll`.
    carry: the carry before the first time step, [batch, ...]; None: `initial`.
    inputs: [batch, time, features], or the pytree that the cell takes.
    mask: [batch, time], True where a time step is real. At all other time steps
      the carry does not change and the outputs are zero.
    seq_lengths: [batch], number of real time steps in each row, instead of a
      mask.
    resets: [batch, time], True where a time step starts from the initial carry.
    initial: the initial carry, [batch, ...]; None: `cell.initial_carry`.
    reverse: whether to run from the last time step to the first. Carries and
      outputs keep the positions of their inputs, so the last carry is `[:, 0]`
      of each leaf.

  Returns:
    The carry after each time step, each leaf [batch, time, ...], and outputs
    [batch, time, H]. The carry before the first time step is not included.

  Raises:
    ValueError: if an argument has the wrong shape or dtype.
  """
  mask = as_mask(mask, seq_lengths, inputs)
  start = _begin(cell, params, carry, inputs, mask, resets, initial)
  # As in `unroll`, the parameters are cast inside the loop: their gradient is
  # then summed over time in their own dtype.
  narrow = lambda: cell.narrow(params, start.dtype)
  inputs, mask, resets = start.time_steps
  steps = TimeSteps(cell.project(narrow(), inputs), mask, resets)

  def step(carry, now):
    carry, outputs = time_step(cell, narrow(), start.initial, carry, now)
    return carry, (carry, outputs)

  _, found = jax.lax.scan(step, start.carry, steps, reverse=reverse)
  return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), found)
