"""`"native"`: the RNN, the LSTM and the GRU by loops in C++, on a CPU.

XLA runs a tick as some ten small programs that hand arrays to each other; the
loops of `recurrent.kernels.native` keep a tick in registers. Around them all is
as in `"fused"`: inputs are projected in bulk before, and weight gradients are
one product over all ticks after.
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
from recurrent.executors.fused import CARRIES, bulk_gradients
from recurrent.executors.ticks import Ticks
from recurrent.kernels import native as loops

ACTIVATIONS = ("tanh", "relu", "sigmoid")


def kind(cell: Cell) -> str:
  """Which loop is a cell's; empty if none."""
  dense = getattr(cell, "structure", None) == Dense()
  if type(cell) in (RNN, LSTM, GRU):
    return type(cell).__name__.lower() if dense else ""
  plain = LSTMVariant(cell.features, coupled=True)
  return "lstm_coupled" if cell == plain else ""


def native(cell, reverse, params, initial, carry, ticks, recompute=False):
  """As all executors: the carry and the outputs.

  With `recompute` the gates are not kept but made again, in bulk.
  """
  return _native(cell, reverse, recompute, params(), initial, carry, ticks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _native(cell, reverse, recompute, params, initial, carry, ticks):
  del recompute
  return _loop(cell, reverse, params, initial, carry, ticks, "nothing")[0]


def _forward(cell, reverse, recompute, params, initial, carry, ticks):
  save = "carries" if recompute else "all"
  return _loop(cell, reverse, params, initial, carry, ticks, save)


def _loop(cell, reverse, params, initial, carry, ticks, save):
  outputs, last, saved = loops.forward(
    kind(cell),
    ticks.projected,
    params.recurrent,
    tuple(carry),
    tuple(initial),
    **_options(cell, reverse, params, ticks),
    save=save,
  )
  gates, carries = saved
  saved = gates, checkpoint_name(carries, CARRIES)
  return (type(carry)(*last), outputs), (params, ticks, saved)


def _backward(cell, reverse, recompute, residuals, cotangents):
  params, ticks, saved = residuals
  d_carry, d_outputs = cotangents
  if recompute:
    saved = _gates(cell, params, ticks.projected, saved[1]), saved[1]
  d_projected, d_mixed, d_first, d_initial = loops.backward(
    kind(cell),
    d_outputs,
    params.recurrent,
    saved,
    tuple(d_carry),
    **_options(cell, reverse, params, ticks),
  )
  carries = type(d_carry)(*saved[1])
  recur = lambda params: cell.recur(bulk_gradients(params), carries)
  (d_params,) = jax.vjp(recur, params)[1](d_mixed)
  as_carry = type(d_carry)
  return (
    d_params,
    as_carry(*d_initial),
    as_carry(*d_first),
    Ticks(d_projected, None, None),
  )


_native.defvjp(_forward, _backward)


def _gates(cell, params, projected, carries):
  """What the forward loop saves, from all carries: one tick of many rows."""
  rows = lambda x: x.reshape((x.shape[0] * x.shape[1], x.shape[2]))
  carry = jax.tree.map(rows, carries)
  ticks = Ticks(rows(projected)[None], None, None)
  options = _options(cell, False, params, ticks)
  _, _, (gates, _) = loops.forward(
    kind(cell),
    ticks.projected,
    params.recurrent,
    carry,
    jax.tree.map(jnp.zeros_like, carry),
    **options,
    save="all",
  )
  return gates.reshape((*projected.shape[:2], gates.shape[-1]))


def _options(cell, reverse, params, ticks):
  activation = getattr(cell, "activation", "tanh")
  return {
    "bias": getattr(params, "recurrent_bias", None),
    "mask": ticks.mask,
    "resets": ticks.resets,
    "reverse": reverse,
    "activation": ACTIVATIONS.index(activation),
  }
