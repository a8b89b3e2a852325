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
from jax.ad_checkpoint import checkpoint_name

from recurrent.cells.base import Cell
from recurrent.cells.gru import GRU
from recurrent.cells.lstm import LSTM
from recurrent.cells.lstm_variants import LSTMVariant
from recurrent.cells.rnn import RNN
from recurrent.cells.structures import Dense
from recurrent.executors.fused import CARRIES
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


def why_not_here(setting) -> str:
  """Why the loops in C++ cannot run in a setting, as "it ..."."""
  if setting.platform != "cpu":
    return f"is for CPUs, not for {setting.platform}"
  if setting.dtype not in loops.DTYPES or setting.dtype != setting.carry_dtype:
    return (
      f"computes in float32 or float64, carry and all, not in {setting.widths}"
    )
  return loops.unavailable()


def native(cell, reverse, params, initial, carry, ticks, recompute=False):
  """As all executors, but that `ticks` have inputs, not yet projected.

  With `recompute` the gates are not kept but made again, in bulk.
  """
  inputs, mask, resets = jax.tree.map(_turn, tuple(ticks))
  carry, outputs = _native(
    cell, reverse, recompute, params(), initial, carry, inputs, (mask, resets)
  )
  return carry, _turn(outputs)


def _turn(x):
  """From time-major to batch-major, and back."""
  return jnp.swapaxes(x, 0, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _native(cell, reverse, recompute, params, initial, carry, inputs, flags):
  del recompute
  (last, outputs), _ = _layer(
    cell, reverse, params, initial, carry, inputs, flags, "nothing"
  )
  return type(carry)(*last), outputs


def _forward(cell, reverse, recompute, params, initial, carry, inputs, flags):
  save = "carries" if recompute else "all"
  (last, outputs), (gates, carries) = _layer(
    cell, reverse, params, initial, carry, inputs, flags, save
  )
  saved = gates, checkpoint_name(carries, CARRIES)
  return (type(carry)(*last), outputs), (params, inputs, flags, saved)


def _layer(cell, reverse, params, initial, carry, inputs, flags, save):
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
  return (last, outputs), saved


def _gates(cell, params, inputs, carries):
  """What the forward loop saves, from all carries: one tick of many rows."""
  batch, time = inputs.shape[:2]
  # The cell stands [time, batch, H].
  carry = tuple(carries[:1]) + tuple(map(_turn, carries[1:]))
  carry = [x.reshape(batch * time, -1) for x in carry]
  rows = inputs.reshape(batch * time, 1, -1)
  none = (None, None)
  _, (gates, _) = _layer(cell, False, params, carry, carry, rows, none, "all")
  return _turn(gates.reshape(batch, time, -1))


def _backward(cell, reverse, recompute, residuals, cotangents):
  params, inputs, flags, saved = residuals
  d_carry, d_outputs = cotangents
  if recompute:
    saved = _gates(cell, params, inputs, saved[1]), saved[1]
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
