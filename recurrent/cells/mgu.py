"""Gated units with one gate: the MGU, and a GRU printed in tutorials."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from recurrent import initializers, numerics
from recurrent.cells.gru import GRUCarry
from recurrent.cells.structures import Dense, Structure, Structured
from recurrent.types import Array, Float


class MGUParams(NamedTuple):
  """Parameters of both cells; columns in the order gate, candidate."""

  kernel: Float[Array, "D 2*H"]
  recurrent: Any  # [H, 2*H] if dense; see `Structure`
  bias: Float[Array, "2*H"]


@dataclasses.dataclass(frozen=True)
class MGU(Structured):
  """h' = (1 - f) h + f n; f = sigmoid(x W + h R + b), n = tanh(.. (f h) R ..).

  Args:
    features: width H.
    structure: structure of both recurrent weights.

  Reference:
    Zhou et al., "Minimal gated unit for recurrent neural networks", 2016.
  """

  structure: Structure = Dense()

  def init(self, key, in_features):
    """Draws `MGUParams`: LeCun kernel, orthogonal recurrent blocks."""
    kernel_key, recurrent_key = jax.random.split(key)
    h = self.features
    return MGUParams(
      kernel=initializers.lecun_uniform(kernel_key, (in_features, 2 * h)),
      recurrent=self.structure.init(recurrent_key, h, 2),
      bias=jnp.zeros((2 * h,), jnp.float32),
    )

  def initial_carry(self, params, batch_shape):
    """Zeros."""
    return GRUCarry(numerics.zeros(params, batch_shape, self.features))

  def project(self, params, inputs):
    """X W + b."""
    return numerics.affine(inputs, params.kernel, params.bias)

  def seen(self, gate: Array) -> Array:
    """Returns the factor of h in the candidate, given the gate."""
    return gate

  def step(self, params, carry, projected):
    """One time step, two products."""
    weights = [
      self.structure.take(params.recurrent, slice(k, k + 1)) for k in range(2)
    ]
    xf, xn = numerics.split_gates(numerics.as_carry(projected, carry), 2)
    product = lambda hidden, weights: numerics.as_carry(
      self.structure.product(hidden, weights), carry
    )
    f = jax.nn.sigmoid(xf + product(carry.hidden, weights[0]))
    n = jnp.tanh(xn + product(self.seen(f) * carry.hidden, weights[1]))
    hidden = (1 - f) * carry.hidden + f * n
    return GRUCarry(hidden), hidden.astype(projected.dtype)


@dataclasses.dataclass(frozen=True)
class GRUComplement(MGU):
  """h' = (1 - z) h + z n, where the candidate n sees (1 - z) h.

  Older tutorials call this variant "the GRU". It has no reset gate: its
  candidate depends on the part of h that the update gate keeps. It is not the
  GRU of Cho et al., 2014; it is here so that code with it can be compared.

  Args:
    features: width H.
    structure: structure of both recurrent weights.
  """

  def seen(self, gate):
    """Returns 1 - z, the part of h that is kept."""
    return 1 - gate
