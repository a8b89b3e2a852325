"""QRNN and SRU: gates that depend on the inputs only, then linear pooling."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from recurrent import initializers, numerics
from recurrent.cells import base
from recurrent.types import Array, Float


class QRNNParams(NamedTuple):
  """Parameters of `QRNN`; columns in the order z, f, o."""

  kernel: Float[Array, "D 3*H"]
  bias: Float[Array, "3*H"]


class SRUParams(NamedTuple):
  """Parameters of `SRU`; columns in the order value, f, r, highway."""

  kernel: Float[Array, "D 4*H"]
  bias: Float[Array, "4*H"]


@dataclasses.dataclass(frozen=True)
class QRNN(base.LinearCell):
  """c' = f c + (1 - f) z, the output is o c'; z = tanh, f, o = sigmoid.

  The paper's convolution over time has width 1 here, so that the carry is c
  alone and no input crosses a mask or a reset.

  Args:
    features: width H.

  Reference:
    Bradbury et al., "Quasi-recurrent neural networks", 2017 (fo-pooling).
  """

  def init(self, key, in_features):
    """Draws `QRNNParams`."""
    h = self.features
    return QRNNParams(
      kernel=initializers.lecun_uniform(key, (in_features, 3 * h)),
      bias=jnp.zeros((3 * h,), jnp.float32),
    )

  def project(self, params, inputs):
    """The three gates."""
    gates = numerics.affine(inputs, params.kernel, params.bias)
    z, f, o = numerics.split_gates(gates, 3)
    z, f = numerics.widen(z), numerics.widen(f)
    drive = jax.nn.sigmoid(-f) * jnp.tanh(z)
    return base.Linear(jax.nn.sigmoid(f), drive, jax.nn.sigmoid(o))

  def readout(self, params, state, skip):
    """O c'."""
    del params
    return skip * state.astype(skip.dtype)


@dataclasses.dataclass(frozen=True)
class SRU(base.LinearCell):
  """c' = f c + (1 - f) v, the output is r tanh(c') + (1 - r) s.

  f, r = sigmoid(x W + b); v, s = x W + b.

  Args:
    features: width H.

  Reference:
    Lei et al., "Simple recurrent units for highly parallelizable recurrence",
    2018, first version: its gates do not see c. The highway s has a matrix of
    its own, so that inputs may have any width.
  """

  def init(self, key, in_features):
    """Draws `SRUParams`."""
    h = self.features
    return SRUParams(
      kernel=initializers.lecun_uniform(key, (in_features, 4 * h)),
      bias=jnp.zeros((4 * h,), jnp.float32),
    )

  def project(self, params, inputs):
    """The gates, the value and the highway."""
    all_four = numerics.affine(inputs, params.kernel, params.bias)
    v, f, r, s = numerics.split_gates(all_four, 4)
    v, f = numerics.widen(v), numerics.widen(f)
    drive = jax.nn.sigmoid(-f) * v
    return base.Linear(jax.nn.sigmoid(f), drive, (jax.nn.sigmoid(r), s))

  def readout(self, params, state, skip):
    """R tanh(c') + (1 - r) s."""
    del params
    r, s = skip
    return r * jnp.tanh(state).astype(r.dtype) + (1 - r) * s
