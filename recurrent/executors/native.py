"""`"native"`: layers of RNN, LSTM and GRU in C++, on a CPU.

XLA runs a tick as some ten small programs that hand arrays to each other; the
loops of `recurrent.kernels.native` keep a tick in registers. They project the
inputs themselves, and take sequences batch-major, as users have them: the two
transpositions here undo those of `unroll`, and XLA drops both pairs. Gradients
of weights and inputs are bulk products, as in `"fused"`.
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
from recurrent.executors.ticks import zeros
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
  as_carry = type(d_carry)
  gradients = {
    "kernel": _weights(inputs, d_projected),
    "bias": jnp.sum(d_projected, (0, 1)),
    "recurrent": _weights(saved[1][0], d_mixed),
  }
  if hasattr(params, "recurrent_bias"):
    inner = d_mixed[..., -cell.features :]
    gradients["recurrent_bias"] = jnp.sum(inner, (0, 1))
  d_params = zeros(params)._replace(**gradients)
  d_inputs = jnp.einsum("btg,dg->btd", d_projected, params.kernel)
  return d_params, as_carry(*d_initial), as_carry(*d_first), d_inputs, None


def _weights(left, right):
  """The product that sums over batch and time.

  JAX's own pullback has the sides the other way round, and turns the result:
  1.1 to 2 times slower by XLA on a CPU.
  """
  return jax.lax.dot_general(left, right, (((0, 1), (0, 1)), ((), ())))


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
