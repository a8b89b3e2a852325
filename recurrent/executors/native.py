"""`"native"`: layers of RNN, LSTM and GRU in C++, on a CPU.

XLA runs a tick as some ten small programs that hand arrays to each other; the
loops of `recurrent.kernels.native` keep a tick in registers. They project the
inputs themselves, and take sequences batch-major, as users have them: the two
transpositions here undo those of `unroll`, and XLA drops both pairs. All weight
gradients are bulk products, as in `"fused"`.
"""

import functools

import jax
import jax.numpy as jnp

from recurrent.cells.base import Cell
from recurrent.cells.gru import GRU
from recurrent.cells.lstm import LSTM
from recurrent.cells.lstm_variants import LSTMVariant
from recurrent.cells.rnn import RNN
from recurrent.cells.structures import Dense
from recurrent.executors.fused import bulk_gradients
from recurrent.kernels import native as loops

ACTIVATIONS = ("tanh", "relu", "sigmoid")


def kind(cell: Cell) -> str:
  """Which loop is a cell's; empty if none."""
  dense = getattr(cell, "structure", None) == Dense()
  if type(cell) in (RNN, LSTM, GRU):
    return type(cell).__name__.lower() if dense else ""
  plain = LSTMVariant(cell.features, coupled=True)
  return "lstm_coupled" if cell == plain else ""


def native(cell, reverse, params, initial, carry, ticks):
  """As all executors, but that `ticks` have inputs, not yet projected."""
  inputs, mask, resets = jax.tree.map(_turn, tuple(ticks))
  flags = (mask, resets)
  carry, outputs = _native(
    cell, reverse, params(), initial, carry, inputs, flags
  )
  return carry, _turn(outputs)


def _turn(x):
  """From time-major to batch-major, and back."""
  return jnp.swapaxes(x, 0, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _native(cell, reverse, params, initial, carry, inputs, flags):
  return _forward(
    cell, reverse, params, initial, carry, inputs, flags, save=False
  )[0]


def _forward(cell, reverse, params, initial, carry, inputs, flags, save=True):
  outputs, last, saved = loops.forward(
    kind(cell),
    inputs,
    params.kernel,
    params.bias,
    params.recurrent,
    tuple(carry),
    tuple(initial),
    **_options(cell, reverse, params, flags),
    save=save,
  )
  return (type(carry)(*last), outputs), (params, inputs, flags, saved)


def _backward(cell, reverse, residuals, cotangents):
  params, inputs, flags, saved = residuals
  d_carry, d_outputs = cotangents
  d_projected, d_mixed, d_first, d_initial = loops.backward(
    kind(cell),
    d_outputs,
    params.recurrent,
    saved,
    tuple(d_carry),
    **_options(cell, reverse, params, flags),
  )
  hidden = saved[1][0]  # all that `recur` reads of a carry
  as_carry = type(d_carry)
  carries = as_carry(*[hidden] * len(d_carry))

  def products(params, inputs):
    params = bulk_gradients(params)
    return cell.project(params, inputs), cell.recur(params, carries)

  d_params, d_inputs = jax.vjp(products, params, inputs)[1](
    (d_projected, d_mixed)
  )
  return d_params, as_carry(*d_initial), as_carry(*d_first), d_inputs, None


_native.defvjp(_forward, _backward)


def _options(cell, reverse, params, flags):
  mask, resets = flags
  activation = getattr(cell, "activation", "tanh")
  return {
    "bias": getattr(params, "recurrent_bias", None),
    "mask": mask,
    "resets": resets,
    "reverse": reverse,
    "activation": ACTIVATIONS.index(activation),
  }
