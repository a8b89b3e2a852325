"""Converts haiku.VanillaRNN, haiku.LSTM and haiku.GRU."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from recurrent.cells import GRUParams, LSTMParams, RNNParams
from recurrent.converters.arrays import Named, check_kind, reorder
from recurrent.types import Params

# Haiku's order of gates is i, g, f, o. The permutation is its own inverse.
_LSTM = (0, 2, 1, 3)


def from_haiku(params: Mapping[str, Any], kind: str) -> Params:
  """Converts the parameters of one Haiku module to those of a cell.

  Haiku adds 1 to the forget gate inside its LSTM; here that 1 is a part of the
  bias. Haiku's GRU applies the reset gate before the product, as
  `GRUResetBefore` does. Its gate z weights the candidate and ours the previous
  hidden state, so the columns of z change their sign.

  Args:
    params: {"w", "b"} of the linear layer of an LSTM; {"w_i", "w_h", "b"} of a
      GRU; {"linear/w", "linear/b", "linear_1/w", "linear_1/b"} of a
      VanillaRNN, where "linear" is the layer of the inputs.
    kind: "rnn" (VanillaRNN, which has relu: `RNN(activation="relu")`), "lstm"
      or "gru" (`GRUResetBefore`).

  Raises:
    ValueError: if an array is missing, left over or of another shape.
  """
  check_kind(kind)
  named = Named(params)
  if kind == "rnn":
    width = len(named.take("linear_1/b", None))
    bias = named.take("linear_1/b", width)
    out: Params = RNNParams(
      named.take("linear/w", None, width),
      named.take("linear_1/w", width, width),
      named.take("linear/b", width) + bias,
    )
  elif kind == "lstm":
    width = len(named.take("b", None)) // 4
    bias = reorder(named.take("b", 4 * width), _LSTM)
    bias[width : 2 * width] += 1
    both = reorder(named.take("w", None, 4 * width), _LSTM)
    out = LSTMParams(both[:-width], both[-width:], bias)
  else:
    width = len(named.take("w_h", None, None))
    kernel, recurrent, bias = (
      _from_zra(named.take(name, *shape, 3 * width))
      for name, shape in (("w_i", (None,)), ("w_h", (width,)), ("b", ()))
    )
    out = GRUParams(kernel, recurrent, bias, named.zeros(width))
  named.finish()
  return out


def to_haiku(params: Params) -> dict[str, np.ndarray]:
  """Converts parameters of a cell to those of a Haiku module.

  Args:
    params: parameters of an `RNN`, `LSTM` or `GRUResetBefore` with dense
      matrices.

  Returns:
    A dict of the form that `from_haiku` takes.
  """
  kernel, recurrent, bias = map(np.array, params[:3])
  if isinstance(params, RNNParams):
    return {
      "linear/w": kernel,
      "linear/b": bias,
      "linear_1/w": recurrent,
      "linear_1/b": np.zeros_like(bias),
    }
  width = len(recurrent)
  if isinstance(params, LSTMParams):
    bias[width : 2 * width] -= 1
    both = np.concatenate([kernel, recurrent])
    return {"w": reorder(both, _LSTM), "b": reorder(bias, _LSTM)}
  bias[2 * width :] += np.asarray(params.recurrent_bias)
  return {
    "w_i": _to_zra(kernel),
    "w_h": _to_zra(recurrent),
    "b": _to_zra(bias),
  }


def _from_zra(array):
  """Reorders Haiku's gates z, r, a to r, z, n, and negates z."""
  z, r, n = np.split(array, 3, axis=-1)
  return np.concatenate([r, -z, n], axis=-1)


def _to_zra(array):
  """Inverse of `_from_zra`."""
  r, z, n = np.split(array, 3, axis=-1)
  return np.concatenate([-z, r, n], axis=-1)
