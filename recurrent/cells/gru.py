"""Gated recurrent unit (Cho et al., 2014), reset after or before the product.

Two cells, since they are two functions: `GRU` multiplies first and resets the
product (cuDNN, torch, Keras's default); `GRUResetBefore` resets the hidden
state and then multiplies, as the paper prints it. The second needs its reset
gate before its second product, so it has no halves and runs by "scan".
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from recurrent import initializers
from recurrent.cells import base
from recurrent.types import Array, Float


class GRUParams(NamedTuple):
  """Parameters of both GRUs; columns of the gates in the order r, z, n.

  `recurrent_bias` is the bias inside the reset product of the candidate; the
  other gates need one bias only, which stands in `bias`. With the reset before
  the product it is a second candidate bias, kept so that both share a shape.
  """

  kernel: Float[Array, "D 3*H"]
  recurrent: Float[Array, "H 3*H"]
  bias: Float[Array, "3*H"]
  recurrent_bias: Float[Array, "H"]


class GRUCarry(NamedTuple):
  """Carry of both GRUs."""

  hidden: Float[Array, "*B H"]


@dataclasses.dataclass(frozen=True)
class _GRUBase(base.Cell):
  """What the two GRUs share: parameters, carry, projection."""

  def init(self, key, in_features):
    """Draws `GRUParams`: LeCun kernel, orthogonal recurrent a gate."""
    kernel_key, recurrent_key = jax.random.split(key)
    h = self.features
    return GRUParams(
      kernel=initializers.uniform_fan_in(kernel_key, (in_features, 3 * h)),
      recurrent=initializers.orthogonal_blocks(recurrent_key, h, 3),
      bias=jnp.zeros((3 * h,), jnp.float32),
      recurrent_bias=jnp.zeros((h,), jnp.float32),
    )

  def initial_carry(self, params, batch_shape):
    """Zeros."""
    return GRUCarry(base.zeros(params, batch_shape, self.features))

  def project(self, params, inputs):
    """X W + b."""
    return base.affine(inputs, params.kernel, params.bias)


@dataclasses.dataclass(frozen=True)
class GRU(_GRUBase, base.GatedCell):
  """h' = (1 - z) n + z h, with the reset after the product.

  r, z = sigmoid(x W + h R + b), n = tanh(x W + b + r (h R + b')).

  Args:
    features: width H.

  Reference:
    Cho et al., "Learning phrase representations using RNN encoder-decoder",
    2014; this form: version 1 of its preprint, and cuDNN.
  """

  def recur(self, params, carry):
    """H R, with the candidate's inner bias."""
    r, z, n = base.split_gates(
      base.hidden_product(carry.hidden, params.recurrent), 3
    )
    return jnp.concatenate(
      [r, z, base.add_bias(n, params.recurrent_bias)], axis=-1
    )

  def gate(self, params, carry, projected, mixed):
    """The gates, and the step from the old hidden state to the candidate."""
    del params
    xr, xz, xn = base.split_gates(base.as_carry(projected, carry), 3)
    hr, hz, hn = base.split_gates(base.as_carry(mixed, carry), 3)
    r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
    n = jnp.tanh(xn + r * hn)
    hidden = (1 - z) * n + z * carry.hidden
    return GRUCarry(hidden), hidden.astype(projected.dtype)


@dataclasses.dataclass(frozen=True)
class GRUResetBefore(_GRUBase):
  """h' = (1 - z) n + z h, with the reset before the product.

  r, z = sigmoid(x W + h R + b), n = tanh(x W + b + (r h) R + b').

  Args:
    features: width H.

  Reference:
    Cho et al., "Learning phrase representations using RNN encoder-decoder",
    2014; with z in the role of 1 - z there, as all libraries have it.
  """

  def step(self, params, carry, projected):
    """One tick, two products."""
    h = self.features
    recurrent = params.recurrent
    x = base.as_carry(projected, carry)
    gates = base.hidden_product(carry.hidden, recurrent[:, : 2 * h])
    r, z = base.split_gates(
      jax.nn.sigmoid(x[..., : 2 * h] + base.as_carry(gates, carry)), 2
    )
    candidate = base.hidden_product(r * carry.hidden, recurrent[:, 2 * h :])
    candidate = base.as_carry(
      base.add_bias(candidate, params.recurrent_bias), carry
    )
    n = jnp.tanh(x[..., 2 * h :] + candidate)
    hidden = (1 - z) * n + z * carry.hidden
    return GRUCarry(hidden), hidden.astype(projected.dtype)
