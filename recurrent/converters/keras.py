"""Converts keras.layers.SimpleRNN, LSTM and GRU: one layer, one direction."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from recurrent.cells import GRUParams, LSTMParams, RNNParams
from recurrent.converters.arrays import Named, check_kind, reorder
from recurrent.types import Params

# The order of gates in Keras's GRU is z, r, n. The permutation is its own
# inverse.
_GATES = (1, 0, 2)


def from_keras(
  weights: Sequence[Any], kind: str, *, reset_after: bool = True
) -> Params:
  """Converts the `get_weights()` of a Keras layer to parameters of a cell.

  Args:
    weights: kernel, recurrent kernel and, unless `use_bias=False`, bias.
    kind: "rnn" (SimpleRNN), "lstm" or "gru".
    reset_after: the option of that name of a Keras GRU. If it is False, the
      result is parameters of `GRUResetBefore`.

  Raises:
    ValueError: if an array is missing, left over or of another shape.
  """
  gates = check_kind(kind)
  if len(weights) not in (2, 3):
    raise ValueError(f"weights must be 2 or 3 arrays, got {len(weights)}")
  names = ("kernel", "recurrent_kernel", "bias")
  named = Named(dict(zip(names, weights, strict=False)))
  recurrent = named.take("recurrent_kernel", None, None)
  width = len(recurrent)
  recurrent = named.take("recurrent_kernel", width, gates * width)
  kernel = named.take("kernel", None, gates * width)
  double = kind == "gru" and reset_after
  shape = (2, gates * width) if double else (gates * width,)
  bias = named.zeros(*shape)
  if "bias" in named:
    bias = named.take("bias", *shape)
  if kind != "gru":
    return (RNNParams if kind == "rnn" else LSTMParams)(kernel, recurrent, bias)
  outer, inner = bias if double else (bias, np.zeros_like(bias))
  outer, inner = reorder(outer, _GATES), reorder(inner, _GATES)
  summed = outer + inner
  summed[2 * width :] = outer[2 * width :]
  return GRUParams(
    reorder(kernel, _GATES),
    reorder(recurrent, _GATES),
    summed,
    inner[2 * width :],
  )


def to_keras(params: Params, *, reset_after: bool = True) -> list[np.ndarray]:
  """Converts parameters of a cell to the weights of a Keras layer.

  Args:
    params: parameters of an `RNN`, `LSTM`, `GRU` or `GRUResetBefore` with
      dense matrices.
    reset_after: the option of that name of a Keras GRU.

  Returns:
    A list of arrays for the layer's `set_weights`.
  """
  kernel, recurrent, bias = map(np.asarray, params[:3])
  if not isinstance(params, GRUParams):
    return [kernel, recurrent, bias]
  kernel, recurrent = reorder(kernel, _GATES), reorder(recurrent, _GATES)
  inner = np.zeros_like(bias)
  inner[-len(params.recurrent_bias) :] = params.recurrent_bias
  # If the reset comes before the product, both biases of the candidate are only
  # added.
  both = np.stack([bias, inner]) if reset_after else bias + inner
  return [kernel, recurrent, reorder(both, _GATES)]
