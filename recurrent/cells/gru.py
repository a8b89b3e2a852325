"""Gated recurrent unit (Cho et al., 2014), reset after or before the product.

There are two cells, since the two compute different functions. `GRU` multiplies
first and resets the product (cuDNN, torch, Keras's default). `GRUResetBefore`
resets the hidden state and then multiplies, as in the paper. It needs its reset
gate before its second product, so it is not a `GatedCell` and runs by "scan".
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from recurrent import initializers, numerics
from recurrent.cells import base
from recurrent.cells.structures import Dense, Structure, Structured
from recurrent.types import Array, Float


class GRUParams(NamedTuple):
  """Parameters of both GRUs; columns of the gates in the order r, z, n.

  `recurrent_bias` is the bias of the candidate inside the reset product; the
  other gates have one bias only, in `bias`. In `GRUResetBefore` it is a second
  bias of the candidate, kept so that both cells have the same parameters.
  """

  kernel: Float[Array, "D 3*H"]
  recurrent: Any  # [H, 3*H] if dense; see `Structure`
  bias: Float[Array, "3*H"]
  recurrent_bias: Float[Array, "H"]


class GRUCarry(NamedTuple):
  """Carry of both GRUs."""

  hidden: Float[Array, "*B H"]


@dataclasses.dataclass(frozen=True)
class _GRUBase(Structured):
  """Base class of both GRUs: their parameters, carry and projection."""

  t_max: int = 0
  structure: Structure = Dense()

  def init(self, key, in_features):
    """Draws `GRUParams`: LeCun kernel, orthogonal recurrent blocks."""
    kernel_key, recurrent_key = jax.random.split(key)
    h = self.features
    bias = jnp.zeros((3 * h,), jnp.float32)
    if self.t_max:
      keep = initializers.chrono(jax.random.fold_in(key, 2), h, self.t_max)
      bias = bias.at[h : 2 * h].set(keep)
    return GRUParams(
      kernel=initializers.lecun_uniform(kernel_key, (in_features, 3 * h)),
      recurrent=self.structure.init(recurrent_key, h, 3),
      bias=bias,
      recurrent_bias=jnp.zeros((h,), jnp.float32),
    )

  def initial_carry(self, params, batch_shape):
    """Zeros."""
    return GRUCarry(numerics.zeros(params, batch_shape, self.features))

  def project(self, params, inputs):
    """X W + b."""
    return numerics.affine(inputs, params.kernel, params.bias)


@dataclasses.dataclass(frozen=True)
class GRU(_GRUBase, base.GatedCell):
  """h' = (1 - z) n + z h, with the reset after the product.

  r, z = sigmoid(x W + h R + b), n = tanh(x W + b + r (h R + b')).

  Args:
    features: width H.
    t_max: if positive, `init` draws the bias of z for memories of up to that
      many time steps (Tallec & Ollivier, 2018) instead of zero.
    structure: structure of the recurrent weights.

  Reference:
    Cho et al., "Learning phrase representations using RNN encoder-decoder",
    2014; this form: version 1 of its preprint, and cuDNN.
  """

  def recur(self, params, carry):
    """H R, with the candidate's inner bias."""
    r, z, n = numerics.split_gates(
      self.structure.product(carry.hidden, params.recurrent), 3
    )
    return jnp.concatenate(
      [r, z, numerics.add_bias(n, params.recurrent_bias)], axis=-1
    )

  def gate(self, params, carry, projected, mixed, candidate=jnp.tanh):
    """The gates, and the step from the old hidden state to the candidate."""
    del params
    xr, xz, xn = numerics.split_gates(numerics.as_carry(projected, carry), 3)
    hr, hz, hn = numerics.split_gates(numerics.as_carry(mixed, carry), 3)
    r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
    n = candidate(xn + r * hn)
    hidden = (1 - z) * n + z * carry.hidden
    return GRUCarry(hidden), hidden.astype(projected.dtype)


@dataclasses.dataclass(frozen=True)
class GRUResetBefore(_GRUBase):
  """h' = (1 - z) n + z h, with the reset before the product.

  r, z = sigmoid(x W + h R + b), n = tanh(x W + b + (r h) R + b').

  Args:
    features: width H.
    t_max: as for `GRU`.
    structure: structure of both recurrent weights.

  Reference:
    Cho et al., "Learning phrase representations using RNN encoder-decoder",
    2014; with z in the role of 1 - z there, as all libraries have it.
  """

  def step(self, params, carry, projected):
    """One time step, two products."""
    h, structure = self.features, self.structure
    x = numerics.as_carry(projected, carry)
    weights = structure.take(params.recurrent, slice(0, 2))
    gates = structure.product(carry.hidden, weights)
    r, z = numerics.split_gates(
      jax.nn.sigmoid(x[..., : 2 * h] + numerics.as_carry(gates, carry)), 2
    )
    weights = structure.take(params.recurrent, slice(2, 3))
    candidate = structure.product(r * carry.hidden, weights)
    candidate = numerics.as_carry(
      numerics.add_bias(candidate, params.recurrent_bias), carry
    )
    n = jnp.tanh(x[..., 2 * h :] + candidate)
    hidden = (1 - z) * n + z * carry.hidden
    return GRUCarry(hidden), hidden.astype(projected.dtype)


class LayerNormGRUParams(NamedTuple):
  """Parameters of `LayerNormGRU`; columns of the gates in the order r, z, n."""

  kernel: Float[Array, "D 3*H"]
  recurrent: Any  # [H, 3*H] if dense; see `Structure`
  bias: Float[Array, "3*H"]
  recurrent_bias: Float[Array, "H"]
  kernel_scale: Float[Array, "3*H"]
  recurrent_scale: Float[Array, "3*H"]


@dataclasses.dataclass(frozen=True)
class LayerNormGRU(GRU):
  """The GRU with x W and h R normalised, gate by gate.

  Args:
    features: width H.
    t_max: as for `GRU`.
    structure: structure of the recurrent weights.

  Reference:
    Ba, Kiros & Hinton, "Layer normalization", 2016.
  """

  @property
  def channelwise(self):
    """False, since the normalisation depends on all units."""
    return False

  def init(self, key, in_features):
    """Draws `LayerNormGRUParams`, the scales at one."""
    ones = jnp.ones((3 * self.features,), jnp.float32)
    return LayerNormGRUParams(*super().init(key, in_features), ones, ones)

  def project(self, params, inputs):
    """X W, normalised, + b."""
    projected = numerics.product(inputs, params.kernel)
    projected = numerics.layer_norm(projected, params.kernel_scale, 3)
    return numerics.add_bias(projected, params.bias)

  def recur(self, params, carry):
    """H R."""
    return self.structure.product(carry.hidden, params.recurrent)

  def gate(self, params, carry, projected, mixed, candidate=jnp.tanh):
    """Normalises h R, then computes the gates of `GRU`."""
    r, z, n = numerics.split_gates(
      numerics.layer_norm(mixed, params.recurrent_scale, 3), 3
    )
    n = numerics.add_bias(n, params.recurrent_bias)
    mixed = jnp.concatenate([r, z, n], axis=-1)
    return super().gate(params, carry, projected, mixed, candidate)
