"""The simple recurrent network (Elman, 1990)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from recurrent import initializers, numerics
from recurrent.cells import base
from recurrent.cells.structures import Dense, Structure, Structured
from recurrent.types import Array, Float

ACTIVATIONS = {
  "tanh": jnp.tanh,
  "relu": jax.nn.relu,
  "sigmoid": jax.nn.sigmoid,
}


class RNNParams(NamedTuple):
  """Parameters of `RNN`."""

  kernel: Float[Array, "D H"]
  recurrent: Any  # [H, H] if dense; see `Structure`
  bias: Float[Array, "H"]


class RNNCarry(NamedTuple):
  """Carry of `RNN`."""

  hidden: Float[Array, "*B H"]


@dataclasses.dataclass(frozen=True)
class RNN(Structured, base.GatedCell):
  """h' = activation(x W + h R + b); the output is h'.

  Args:
    features: width H.
    activation: "tanh", "relu" or "sigmoid".
    structure: structure of the recurrent weights.

  Raises:
    ValueError: on an unknown activation.

  Reference:
    Elman, "Finding structure in time", Cognitive Science, 1990. ReLU: Le,
    Jaitly & Hinton, 2015, who start the recurrent matrix at the identity;
    here it starts orthogonal, as for every other cell.
  """

  activation: str = "tanh"
  structure: Structure = Dense()

  def __post_init__(self):
    super().__post_init__()
    if self.activation not in ACTIVATIONS:
      raise ValueError(
        f"activation must be one of {sorted(ACTIVATIONS)},"
        f" got {self.activation!r}"
      )

  def init(self, key, in_features):
    """Draws `RNNParams`: LeCun kernel, orthogonal recurrent, zero bias."""
    kernel_key, recurrent_key = jax.random.split(key)
    h = self.features
    return RNNParams(
      kernel=initializers.lecun_uniform(kernel_key, (in_features, h)),
      recurrent=self.structure.init(recurrent_key, h, 1),
      bias=jnp.zeros((h,), jnp.float32),
    )

  def initial_carry(self, params, batch_shape):
    """Zeros."""
    return RNNCarry(numerics.zeros(params, batch_shape, self.features))

  def project(self, params, inputs):
    """X W + b."""
    return numerics.affine(inputs, params.kernel, params.bias)

  def recur(self, params, carry):
    """H R."""
    return self.structure.product(carry.hidden, params.recurrent)

  def gate(self, params, carry, projected, mixed):
    """The activation of the sum."""
    del params
    hidden = ACTIVATIONS[self.activation](
      numerics.as_carry(projected + mixed, carry)
    )
    return RNNCarry(hidden), hidden.astype(projected.dtype)
