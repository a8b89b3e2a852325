"""Recurrent highway network: several layers within a time step."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from recurrent import initializers, numerics
from recurrent.cells import base
from recurrent.types import Array, Float


class RHNParams(NamedTuple):
  """Parameters of `RHN`; columns in the order candidate, transform."""

  kernel: Float[Array, "D 2*H"]
  recurrent: Float[Array, "L H 2*H"]
  bias: Float[Array, "L 2*H"]


class RHNCarry(NamedTuple):
  """Carry of `RHN`."""

  hidden: Float[Array, "*B H"]


@dataclasses.dataclass(frozen=True)
class RHN(base.Cell):
  """s' = t n + (1 - t) s, L times in a time step.

  n is the tanh and t the sigmoid of s R + b.

  The first layer also sees x W. The output is the last s.

  Args:
    features: width H.
    depth: layers L within a time step.
    transform_bias: initial value of the transform gates' bias.

  Raises:
    ValueError: if `depth` is not positive.

  Reference:
    Zilly et al., "Recurrent highway networks", 2017, with coupled gates.
  """

  depth: int = 3
  transform_bias: float = -2.0

  def __post_init__(self):
    super().__post_init__()
    if self.depth < 1:
      raise ValueError(f"depth must be at least 1, got {self.depth}")

  def init(self, key, in_features):
    """Draws `RHNParams`: LeCun kernel, orthogonal recurrent blocks."""
    kernel_key, *keys = jax.random.split(key, 1 + self.depth)
    h = self.features
    bias = jnp.zeros((self.depth, 2 * h), jnp.float32)
    return RHNParams(
      kernel=initializers.lecun_uniform(kernel_key, (in_features, 2 * h)),
      recurrent=jnp.stack(
        [initializers.orthogonal_blocks(k, h, 2) for k in keys]
      ),
      bias=bias.at[:, h:].set(self.transform_bias),
    )

  def initial_carry(self, params, batch_shape):
    """Zeros."""
    return RHNCarry(numerics.zeros(params, batch_shape, self.features))

  def project(self, params, inputs):
    """X W + b of the first layer."""
    return numerics.affine(inputs, params.kernel, params.bias[0])

  def step(self, params, carry, projected):
    """One time step, L products one after the other."""
    (hidden,) = carry
    for layer in range(self.depth):
      sums = numerics.hidden_product(hidden, params.recurrent[layer])
      if layer:
        sums = numerics.add_bias(sums, params.bias[layer])
      else:
        sums = sums + projected
      n, t = numerics.split_gates(numerics.as_carry(sums, carry), 2)
      t = jax.nn.sigmoid(t)
      hidden = t * jnp.tanh(n) + (1 - t) * hidden
    return RHNCarry(hidden), hidden.astype(projected.dtype)
