"""Minimal LSTM and GRU: gates that see the inputs only (Feng et al., 2024)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from recurrent import initializers, numerics
from recurrent.cells import base
from recurrent.types import Array, Float


class MinGRUParams(NamedTuple):
  """Parameters of `MinGRU`; columns in the order z, n."""

  kernel: Float[Array, "D 2*H"]
  bias: Float[Array, "2*H"]


class MinLSTMParams(NamedTuple):
  """Parameters of `MinLSTM`; columns in the order i, f, g."""

  kernel: Float[Array, "D 3*H"]
  bias: Float[Array, "3*H"]


@dataclasses.dataclass(frozen=True)
class MinGRU(base.LinearCell):
  """h' = (1 - z) h + z n; z = sigmoid(x W + b), n = x W + b.

  Here z is the weight of the candidate, as in the paper; in `GRU` it is the
  weight of the old state.

  Args:
    features: width H.

  Reference:
    Feng et al., "Were RNNs all we needed?", 2024.
  """

  def init(self, key, in_features):
    """Draws `MinGRUParams`."""
    h = self.features
    return MinGRUParams(
      kernel=initializers.lecun_uniform(key, (in_features, 2 * h)),
      bias=jnp.zeros((2 * h,), jnp.float32),
    )

  def project(self, params, inputs):
    """The gate and the candidate."""
    both = numerics.widen(numerics.affine(inputs, params.kernel, params.bias))
    z, n = numerics.split_gates(both, 2)
    # sigmoid(-z) is 1 - sigmoid(z), which would lose digits if z is large.
    return base.Linear(jax.nn.sigmoid(-z), jax.nn.sigmoid(z) * n, None)

  def readout(self, params, state, skip):
    """The state."""
    del skip
    return state.astype(params.kernel.dtype)


@dataclasses.dataclass(frozen=True)
class MinLSTM(base.LinearCell):
  """h' = f / (f + i) h + i / (f + i) g; i, f = sigmoid(x W + b), g = x W + b.

  Args:
    features: width H.
    forget_bias: initial value of the forget gate's bias.

  Reference:
    Feng et al., "Were RNNs all we needed?", 2024.
  """

  forget_bias: float = 1.0

  def init(self, key, in_features):
    """Draws `MinLSTMParams`."""
    h = self.features
    bias = jnp.zeros((3 * h,), jnp.float32)
    return MinLSTMParams(
      kernel=initializers.lecun_uniform(key, (in_features, 3 * h)),
      bias=bias.at[h : 2 * h].set(self.forget_bias),
    )

  def project(self, params, inputs):
    """The normalised gates and the candidate."""
    all_three = numerics.widen(
      numerics.affine(inputs, params.kernel, params.bias)
    )
    i, f, g = numerics.split_gates(all_three, 3)
    # f / (f + i) from log f - log i: if both gates were closed, the quotient
    # would be 0 / 0.
    keep = jax.nn.log_sigmoid(f) - jax.nn.log_sigmoid(i)
    return base.Linear(jax.nn.sigmoid(keep), jax.nn.sigmoid(-keep) * g, None)

  def readout(self, params, state, skip):
    """The state."""
    del skip
    return state.astype(params.kernel.dtype)
