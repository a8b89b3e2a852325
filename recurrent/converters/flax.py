"""Converts Flax's LSTM, GRU and simple cells, of linen and of NNX."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from recurrent.cells import GRUParams, LSTMParams, RNNParams
from recurrent.converters.arrays import Named, check_kind
from recurrent.types import Params


def from_flax(params: Mapping[str, Any], kind: str) -> Params:
  """Converts the `params` of a linen cell to parameters of a cell.

  Args:
    params: a dict of dense layers, such as `ii` and `hi` of an LSTM, each a
      dict with "kernel" and "bias"; nested, or flat with names like
      "ii/kernel".
    kind: "rnn" (SimpleCell), "lstm" (LSTMCell or OptimizedLSTMCell) or "gru".

  Raises:
    ValueError: if an array is missing, left over or of another shape.
  """
  check_kind(kind)
  named = Named(_flat(params))
  if kind == "rnn":
    recurrent = named.take("h/kernel", None, None)
    width = len(recurrent)
    out: Params = RNNParams(
      named.take("i/kernel", None, width),
      named.take("h/kernel", width, width),
      named.take("i/bias", width),
    )
    named.finish()
    return out
  gates = "ifgo" if kind == "lstm" else "rzn"
  width = len(named.take(f"h{gates[0]}/kernel", None, None))

  def joined(side: str, leaf: str, *shape: int | None) -> Any:
    parts = [named.take(f"{side}{gate}/{leaf}", *shape) for gate in gates]
    return np.concatenate(parts, axis=-1)

  kernel = joined("i", "kernel", None, width)
  recurrent = joined("h", "kernel", width, width)
  if kind == "lstm":
    out = LSTMParams(kernel, recurrent, joined("h", "bias", width))
  else:
    inner = named.take("hn/bias", width)
    out = GRUParams(kernel, recurrent, joined("i", "bias", width), inner)
  named.finish()
  return out


def to_flax(params: Params) -> dict[str, dict[str, np.ndarray]]:
  """Converts parameters of a cell to the `params` of a linen cell.

  Args:
    params: parameters of an `RNN`, `LSTM` or `GRU` with dense matrices.
  """
  kernel, recurrent, bias = map(np.asarray, params[:3])
  if isinstance(params, RNNParams):
    return {"i": {"kernel": kernel, "bias": bias}, "h": {"kernel": recurrent}}
  gates = "rzn" if isinstance(params, GRUParams) else "ifgo"
  split = lambda x: dict(zip(gates, np.split(x, len(gates), -1), strict=True))
  k, r, b = split(kernel), split(recurrent), split(bias)
  out = {f"i{g}": {"kernel": k[g]} for g in gates}
  out |= {f"h{g}": {"kernel": r[g]} for g in gates}
  if isinstance(params, GRUParams):
    for g in gates:
      out[f"i{g}"]["bias"] = b[g]
    out["hn"]["bias"] = np.asarray(params.recurrent_bias)
  else:
    for g in gates:
      out[f"h{g}"]["bias"] = b[g]
  return out


def from_nnx(params: Mapping[str, Any], kind: str) -> Params:
  """Converts the parameters of an NNX cell.

  Args:
    params: `nnx.state(cell, nnx.Param)`, or a dict like it, nested or flat with
      names like "dense_i/kernel".
    kind: "rnn" (SimpleCell), "lstm" (LSTMCell or OptimizedLSTMCell) or "gru".
      nnx.GRUCell has no bias inside the reset product, so the `recurrent_bias`
      of the result is zero.

  Raises:
    ValueError: if an array is missing, left over or of another shape.
  """
  blocks = check_kind(kind)
  flat = _flat(params)
  if "ii/kernel" in flat:  # LSTMCell; `if` is a Python keyword, hence `if_`
    flat["if/kernel"] = flat.pop("if_/kernel", None)
    return from_flax({k: v for k, v in flat.items() if v is not None}, kind)
  named = Named(flat)
  width = len(named.take("dense_h/kernel", None, None))
  kernel = named.take("dense_i/kernel", None, blocks * width)
  recurrent = named.take("dense_h/kernel", width, blocks * width)
  side = "h" if kind == "lstm" else "i"
  bias = named.take(f"dense_{side}/bias", blocks * width)
  named.finish()
  if kind == "gru":
    return GRUParams(kernel, recurrent, bias, named.zeros(width))
  return (RNNParams if kind == "rnn" else LSTMParams)(kernel, recurrent, bias)


def to_nnx(
  params: Params, *, optimized: bool = False
) -> dict[str, dict[str, np.ndarray]]:
  """Converts parameters of a cell to those of an NNX cell.

  Assign the result to the NNX cell by `nnx.update(cell, to_nnx(params))`.

  Args:
    params: parameters of an `RNN`, `LSTM` or `GRU` with dense matrices.
    optimized: whether the NNX cell is an OptimizedLSTMCell, and not an
      LSTMCell.

  Raises:
    ValueError: if the `recurrent_bias` of a GRU is not zero, since nnx.GRUCell
      has no such bias (google/flax#5594), or if `optimized` is set and
      `params` are not those of an LSTM.
  """
  lstm = isinstance(params, LSTMParams)
  if optimized and not lstm:
    raise ValueError(f"optimized needs LSTMParams, got {type(params).__name__}")
  if lstm and not optimized:
    parts = to_flax(params)
    return {f"{k}_" if k == "if" else k: v for k, v in parts.items()}
  if isinstance(params, GRUParams) and np.any(params.recurrent_bias):
    raise ValueError(
      "recurrent_bias must be zero, since nnx.GRUCell has no such bias; got"
      f" {np.asarray(params.recurrent_bias)}"
    )
  kernel, recurrent, bias = map(np.asarray, params[:3])
  out = {"dense_i": {"kernel": kernel}, "dense_h": {"kernel": recurrent}}
  out["dense_h" if lstm else "dense_i"]["bias"] = bias
  return out


def _flat(tree, path=""):
  """Flattens a nested dict; names are joined by slashes."""
  out = {}
  for name, value in tree.items():
    if isinstance(value, Mapping):
      out |= _flat(value, f"{path}{name}/")
    else:
      out[f"{path}{name}"] = value
  return out
