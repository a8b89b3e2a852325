"""Test cases of the three Transformer layers, and a reference in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hypothesis.extra import numpy as npst

from recurrent.nn import TransformerEncoderBlock
from tests.cells.cases import jit

B, T, D, HEADS = 3, 9, 8, 2
# Holes, padding, nothing at all; resets at time steps that are not real, too.
MASK = np.array(
  [[1, 1, 0, 1, 1, 0, 0, 1, 1], [0, 1, 1, 1, 1, 1, 1, 0, 0], [0] * T], bool
)
RESETS = np.array(
  [
    [0, 0, 0, 0, 1, 0, 1, 0, 0],
    [1, 0, 0, 1, 0, 0, 0, 1, 0],
    [0, 1, 0, 0, 0, 0, 0, 0, 0],
  ],
  bool,
)
flags = npst.arrays(bool, (B, T))


def shifted(module, dtype=np.float64):
  """Changes the parameters, so that biases are not 0 and scales not 1."""
  graphdef, params = nnx.split(module)
  shift = lambda x: x + 0.1 * np.cos(np.arange(x.size)).reshape(x.shape)
  return nnx.merge(
    graphdef,
    jax.tree.map(lambda x: jnp.asarray(shift(np.asarray(x)), dtype), params),
  )


def drawn(*shape, seed=0, dtype=np.float64):
  return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def garbage(array, mask):
  """The array with NaN and infinities where the mask is False."""
  bad = np.resize([np.nan, np.inf, -np.inf], array.shape)
  return np.where(mask[..., None], array, bad).astype(array.dtype)


def assert_same(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


def assert_close(got, want, tolerance=1e-12):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance),
    got,
    want,
  )


def results(module, inputs, mask, resets):
  """The carry and outputs, and the gradients of parameters and inputs."""
  graphdef, params = nnx.split(module)

  def loss(params, inputs):
    carry, outputs = nnx.merge(graphdef, params)(
      None, inputs, mask=mask, resets=resets
    )
    return jnp.sum(jnp.cos(outputs)), (carry, outputs)

  return jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, inputs)


# The blocks, from the formulas.


def p(param):
  return np.asarray(param[...], np.float64)


def norm(x, sublayer):
  centred = x - x.mean() if sublayer.norm == "layer" else x
  return centred / np.sqrt(np.mean(centred**2) + 1e-5) * p(sublayer.scale)


def turn(x, position):
  """Rotates [heads, K] by a position; feature pairs are complex numbers."""
  half = x.shape[-1] // 2
  rates = 10000.0 ** -(np.arange(half) / half)
  pairs = x[:, :half] + 1j * x[:, half:]
  pairs = pairs * np.exp(1j * position * rates)
  return np.concatenate([pairs.real, pairs.imag], axis=-1)


def attend_by_hand(query, keys, values):
  """Attention of a query [heads, K] to lists of keys and values."""
  found = np.zeros(query.shape)
  for n in range(len(query)):
    exps = [np.exp(query[n] @ k[n] / math.sqrt(len(query[n]))) for k in keys]
    for a, v in zip(exps, values, strict=True):
      found[n] += a / sum(exps) * v[n]
  return found.ravel()


def mlp_by_hand(mlp, x):
  gelu = np.vectorize(lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2)
  inside = norm(x, mlp) @ p(mlp.inside) + p(mlp.inside_bias)
  if mlp.gated:
    inside, gate = np.split(inside, 2)
    inside = gelu(inside) * gate
  else:
    inside = gelu(inside)
  return inside @ p(mlp.output) + p(mlp.output_bias)


def by_hand(module, row, mask, resets, encoded=()):
  """Computes the outputs of one row of a block, time step by time step."""
  numbers = np.cumsum(resets & mask)
  outputs = np.zeros((len(row), D))
  # One sequence after another: the real time steps between two resets.
  for number in range(numbers[-1] + 1):
    places = np.flatnonzero(mask & (numbers == number))
    all_three = [
      (
        norm(row[t], module.attention)
        @ p(module.attention.heads.query_key_value)
      ).reshape(3, HEADS, -1)
      for t in places
    ]
    queries, keys = (
      [turn(both[i], at) for at, both in enumerate(all_three)] for i in (0, 1)
    )
    values = [both[2] for both in all_three]
    for at, t in enumerate(places):
      seen = slice(None)
      if not isinstance(module, TransformerEncoderBlock):
        seen = slice(max(0, at + 1 - module.attention.context), at + 1)
      h = row[t] + attend_by_hand(queries[at], keys[seen], values[seen]) @ p(
        module.attention.heads.output
      )
      if len(encoded):
        cross = module.cross.heads
        query = (norm(h, module.cross) @ p(cross.query)).reshape(HEADS, -1)
        both = [(e @ p(cross.key_value)).reshape(2, HEADS, -1) for e in encoded]
        found = attend_by_hand(query, *zip(*both, strict=True))
        h = h + found @ p(cross.output)
      outputs[t] = h + mlp_by_hand(module.mlp, h)
  return outputs
