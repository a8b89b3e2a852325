"""Reference implementation of the cells' formulas, in NumPy and float64.

It follows the papers: one matrix per gate, one sequence and one unit at a time.
It is slow and shares no code with the library; a mask is an `if`.
"""

import operator

import jax
import numpy as np


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def relu(x):
  return np.maximum(x, 0)


def affine(matrix, vector, bias):
  """The product plus the bias, unit by unit."""
  out = np.empty(len(bias))
  for unit, row in enumerate(matrix):
    out[unit] = bias[unit]
    for weight, value in zip(row, vector, strict=True):
      out[unit] += weight * value
  return out


def gate(weights, x, h):
  """W x + U h + b."""
  w, u, b = weights
  return affine(w, x, np.zeros(len(b))) + affine(u, h, b)


def rnn(activation, weights, carry, x):
  """Elman (1990): h' = activation(W x + U h + b)."""
  (h,) = carry
  h = activation(gate(weights, x, h))
  return (h,), h


def lstm(weights, carry, x):
  """Hochreiter & Schmidhuber (1997), forget gate of Gers et al. (2000)."""
  h, c = carry
  i = sigmoid(gate(weights["i"], x, h))
  f = sigmoid(gate(weights["f"], x, h))
  g = np.tanh(gate(weights["g"], x, h))
  o = sigmoid(gate(weights["o"], x, h))
  c = f * c + i * g
  h = o * np.tanh(c)
  return (h, c), h


def gru(weights, inner_bias, carry, x, *, reset_before):
  """Cho et al. (2014), the reset before the product or after it."""
  (h,) = carry
  r = sigmoid(gate(weights["r"], x, h))
  z = sigmoid(gate(weights["z"], x, h))
  w, u, b = weights["n"]
  if reset_before:
    inner = affine(u, r * h, inner_bias)
  else:
    inner = r * affine(u, h, inner_bias)
  n = np.tanh(affine(w, x, b) + inner)
  h = (1 - z) * n + z * h
  return (h,), h


def unroll(
  time_step, carry, initial, inputs, mask, resets, reverse, shape=None
):
  """Runs a cell over time by plain loops over rows and time steps.

  Args:
    time_step: `(carry, x) -> (carry, output)` of one row.
    carry: tuple of arrays [batch, H].
    initial: tuple of arrays [batch, H].
    inputs: [batch, time, ...], an array or a tree of them.
    mask: [batch, time] bool.
    resets: [batch, time] bool.
    reverse: whether to run from the last time step to the first.
    shape: shape of the outputs of one row and time step; None: that of the
      first array of the carry.

  Returns:
    outputs [batch, time, ...], and the carry as a tuple of arrays.
  """
  batch, time = mask.shape
  outputs = np.zeros((batch, time, *(shape or carry[0].shape[1:])))
  carry = [np.array(part) for part in carry]
  for row in range(batch):
    now = tuple(part[row] for part in carry)
    for t in reversed(range(time)) if reverse else range(time):
      if not mask[row, t]:
        continue
      if resets[row, t]:
        now = tuple(part[row] for part in initial)
      at = operator.itemgetter((row, t))
      now, outputs[row, t] = time_step(now, jax.tree.map(at, inputs))
    for part, value in zip(carry, now, strict=True):
      part[row] = value
  return outputs, tuple(carry)


def split(kernel, recurrent, bias, names):
  """Splits packed [.., G*H] arrays to {gate: (W [H, D], U [H, H], b [H])}."""
  width = len(bias) // len(names)
  columns = {
    name: slice(k * width, (k + 1) * width) for k, name in enumerate(names)
  }
  return {
    name: (kernel[:, at].T, recurrent[:, at].T, bias[at])
    for name, at in columns.items()
  }
