"""Lowers programs of `recurrent.unroll`, for suites without other libraries."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.problems import BACKWARD, FORWARD
from recurrent import unroll
from recurrent.cells.base import Cell


def lower(
  work: str,
  cell: Cell,
  layers: Sequence[Any],
  inputs: Any,
  *,
  last: bool = False,
  checkpoint: bool = False,
  gradient: Callable[..., Any] = jax.grad,
  by: tuple[int, ...] = (0, 1),
  **how: Any,
) -> jax.stages.Lowered:
  """Lowers a stack of layers of one cell; the program takes (layers, inputs).

  Args:
    work: `FORWARD`, or `BACKWARD` for the gradient of the mean of squares.
    cell: the cell of each layer.
    layers: parameters of each layer, arrays or their shapes.
    inputs: [batch, time, features], an array or its shape.
    last: whether the program returns the last hidden state, and not all
      outputs.
    checkpoint: whether to wrap the forward pass in `jax.checkpoint`.
    gradient: jax.grad or jax.value_and_grad.
    by: what the gradients are with respect to: layers (0), inputs (1).
    **how: further arguments of `unroll`.
  """

  def forward(layers, inputs):
    for params in layers:
      carry, inputs = unroll(cell, params, None, inputs, **how)
    return carry.hidden if last else inputs

  run = jax.checkpoint(forward) if checkpoint else forward

  def loss(layers, inputs):
    return jnp.mean(run(layers, inputs) ** 2)

  works = {FORWARD: run, BACKWARD: gradient(loss, argnums=by)}
  return jax.jit(works[work]).lower(layers, inputs)


def shapes(
  cell: Cell,
  batch: int,
  time: int,
  in_features: int,
  dtype: Any = jnp.float32,
) -> Any:
  """Shapes of one layer's parameters, and of its inputs, for `lower`."""
  params = jax.eval_shape(lambda: cell.init(jax.random.key(0), in_features))
  return [params], jax.ShapeDtypeStruct((batch, time, in_features), dtype)
