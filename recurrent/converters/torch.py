"""Converts torch.nn.RNN, LSTM and GRU, and cuDNN's flat weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recurrent.cells import GRUParams, LSTMParams, RNNParams
from recurrent.cells.lstm_variants import LSTMVariantParams
from recurrent.converters.arrays import Named, check_kind
from recurrent.types import Params

Layers = Sequence[Sequence[Params]]  # [layer][direction]


def from_torch(
  source: Any, kind: str | None = None, *, prefix: str = ""
) -> list[list[Params]]:
  """Converts the parameters of a `torch.nn.RNN`, `LSTM` or `GRU`.

  Args:
    source: the module, or the `state_dict()` of it or of a model that contains
      it, with the names `weight_ih_l0` and so on. It may have any number of
      layers, one direction or two, biases or none, and an LSTM may have
      projections. Torch's order of the gates is that of the cells. Arrays are
      copied; float16 and bfloat16 become float32.
    kind: "rnn", "lstm" or "gru". It may be None if `source` is a module of one
      of these classes. An RNN with ReLU corresponds to
      `RNN(activation="relu")`.
    prefix: prefix of the module's names in a larger model, such as
      "encoder.rnn."; names without it are ignored.

  Returns:
    Parameters [layer][direction], as `nn.Stack.load` takes them: those of
    `RNN`, `LSTM` or `GRU`, and for an LSTM with projections those of
    `LSTMVariant(proj_size, memory=hidden_size)`.

  Raises:
    ValueError: if an array is missing, left over or of another shape, or if
      `kind` is needed and missing, or differs from the module's.

  Warns:
    UserWarning: if float64 is rounded to float32, because `jax_enable_x64` is
      off.
  """
  arrays: Mapping[str, Any] = source
  if hasattr(source, "state_dict"):
    kind = _kind_of(source, kind, prefix)
    arrays = source.state_dict()
  if kind is None:
    raise ValueError("kind must be given with a state dict: rnn, lstm or gru")
  gates = check_kind(kind)
  found = {
    name.removeprefix(prefix): value
    for name, value in arrays.items()
    if name.startswith(prefix)
  }
  first = "weight_ih_l0"
  if first not in found:
    there = [name[: -len(first)] for name in arrays if name.endswith(first)]
    raise ValueError(
      f"{prefix}{first} is missing; prefix must be one of {there}, got"
      f" {prefix!r}"
      if there
      else f"{prefix}{first} is missing; there are {sorted(arrays)}"
    )
  named = Named(found)
  directions = ["", "_reverse"][: 1 + ("weight_ih_l0_reverse" in named)]
  layers: list[list[Params]] = []
  in_features = None
  while not layers or f"weight_ih_l{len(layers)}" in named:
    layer = [
      _layer(named, f"_l{len(layers)}{direction}", kind, gates, in_features)
      for direction in directions
    ]
    layers.append(layer)
    in_features = sum(_width(params) for params in layer)
  named.finish()
  return layers


def _kind_of(module: Any, kind: str | None, prefix: str) -> str | None:
  """The kind of a module; raises ValueError if it differs from `kind`."""
  for name in filter(None, prefix.split(".")):
    module = getattr(module, name, None)
  # "LSTM", "GRU", "RNN_TANH" or "RNN_RELU"
  own = str(getattr(module, "mode", "")).partition("_")[0].lower() or None
  if kind and own and kind != own:
    raise ValueError(f"kind must be {own!r}, the module's, got {kind!r}")
  if not (kind or own):
    raise ValueError(
      f"kind must be given with a {type(module).__name__}: rnn, lstm or gru"
    )
  return kind or own


def _layer(named, end, kind, gates, in_features):
  kernel = named.take(f"weight_ih{end}", None, in_features)
  if len(kernel) % gates:
    raise ValueError(
      f"weight_ih{end} must have {gates} x hidden_size rows, got {len(kernel)}"
    )
  width = len(kernel) // gates
  projection = None
  if f"weight_hr{end}" in named:
    projection = named.take(f"weight_hr{end}", None, width)
  seen = width if projection is None else len(projection)
  recurrent = named.take(f"weight_hh{end}", gates * width, seen)
  outer, inner = named.zeros(2, gates * width)
  if f"bias_ih{end}" in named:
    outer = named.take(f"bias_ih{end}", gates * width)
    inner = named.take(f"bias_hh{end}", gates * width)
  kernel, recurrent = kernel.T, recurrent.T
  if kind == "gru":
    # The inner bias of the candidate is multiplied by the reset gate, so it
    # remains a parameter of its own.
    both = outer + inner
    both[2 * width :] = outer[2 * width :]
    return GRUParams(kernel, recurrent, both, inner[2 * width :])
  if projection is not None:
    return LSTMVariantParams(
      kernel, recurrent, outer + inner, projection=projection.T
    )
  make = RNNParams if kind == "rnn" else LSTMParams
  return make(kernel, recurrent, outer + inner)


def _width(params):
  projection = getattr(params, "projection", None)
  if projection is not None:
    return projection.shape[1]
  return params.recurrent.shape[0]


def to_torch(layers: Layers, *, bias: bool = True) -> dict[str, np.ndarray]:
  """Converts parameters of cells to the `state_dict()` of a torch module.

  Args:
    layers: parameters [layer][direction] of cells with dense matrices, as
      `from_torch` returns them.
    bias: whether the module has biases.

  Raises:
    ValueError: if `bias` is False and a bias of a cell is not zero.
  """
  out = {}
  for number, layer in enumerate(layers):
    for params, direction in zip(layer, ["", "_reverse"], strict=False):
      end = f"_l{number}{direction}"
      out[f"weight_ih{end}"] = np.asarray(params.kernel).T
      out[f"weight_hh{end}"] = np.asarray(params.recurrent).T
      outer = np.asarray(params.bias)
      inner = np.zeros_like(outer)
      if isinstance(params, GRUParams):
        inner[-len(params.recurrent_bias) :] = params.recurrent_bias
      if getattr(params, "projection", None) is not None:
        out[f"weight_hr{end}"] = np.asarray(params.projection).T
      if bias:
        out[f"bias_ih{end}"], out[f"bias_hh{end}"] = outer, inner
      elif outer.any() or inner.any():
        raise ValueError(f"bias{end} is not zero, and bias=False has no place")
  return out


def from_cudnn(
  flat: Any,
  kind: str,
  *,
  in_features: int,
  features: int,
  layers: int = 1,
  bidirectional: bool = False,
) -> list[list[Params]]:
  """Converts cuDNN's flat vector of all weights, followed by all biases.

  Args:
    flat: [number of weights and biases]; it is copied.
    kind: "rnn", "lstm" or "gru".
    in_features: width of the inputs.
    features: width of one direction of a layer.
    layers: number of layers.
    bidirectional: whether there are two directions.

  Returns:
    Parameters [layer][direction], as `from_torch` returns them.

  Raises:
    ValueError: if the vector has another length.
  """
  shapes = _cudnn_shapes(kind, in_features, features, layers, bidirectional)
  flat = np.asarray(flat)
  sizes = [int(np.prod(shape)) for shape in shapes.values()]
  if flat.shape != (sum(sizes),):
    raise ValueError(f"flat must be {(sum(sizes),)}, got {flat.shape}")
  parts = np.split(flat, np.cumsum(sizes)[:-1])
  return from_torch(
    {
      name: part.reshape(shape)
      for (name, shape), part in zip(shapes.items(), parts, strict=True)
    },
    kind,
  )


def to_cudnn(layers: Layers) -> np.ndarray:
  """Converts parameters [layer][direction] to cuDNN's flat vector."""
  arrays = to_torch(layers)
  weights = [v.ravel() for k, v in arrays.items() if k.startswith("weight")]
  biases = [v.ravel() for k, v in arrays.items() if k.startswith("bias")]
  return np.concatenate([*weights, *biases])


def _cudnn_shapes(kind, in_features, features, layers, bidirectional):
  rows = check_kind(kind) * features
  directions = ["", "_reverse"][: 1 + bidirectional]
  ends = [f"_l{k}{d}" for k in range(layers) for d in directions]
  shapes = {}
  for end in ends:
    first = end.startswith("_l0")
    seen = in_features if first else len(directions) * features
    shapes[f"weight_ih{end}"] = (rows, seen)
    shapes[f"weight_hh{end}"] = (rows, features)
  for end in ends:
    shapes[f"bias_ih{end}"] = shapes[f"bias_hh{end}"] = (rows,)
  return shapes
