"""sLSTM: exponential gates with a normaliser and a stabiliser (Beck et al.)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from recurrent import initializers
from recurrent.cells import base
from recurrent.cells.structures import Dense, Structure, Structured
from recurrent.types import Array, Float


class SLSTMParams(NamedTuple):
  """Parameters of `SLSTM`; columns of the gates in the order i, f, g, o."""

  kernel: Float[Array, "D 4*H"]
  recurrent: Any  # [H, 4*H], or what the structure has
  bias: Float[Array, "4*H"]


class SLSTMCarry(NamedTuple):
  """Carry of `SLSTM`: cell and normaliser are over exp(stabiliser)."""

  hidden: Float[Array, "*B H"]
  cell: Float[Array, "*B H"]
  normaliser: Float[Array, "*B H"]
  stabiliser: Float[Array, "*B H"]


@dataclasses.dataclass(frozen=True)
class SLSTM(Structured, base.GatedCell):
  """c' = f c + i g, n' = f n + i, h' = o c' / n'; i = exp, f = sigmoid.

  Carried over exp(m), m' = max(log f + m, log i), so that nothing overflows.

  Args:
    features: width H.
    forget_bias: what `init` writes into the forget gate's bias.
    structure: of the recurrent product; the paper has heads.

  Reference:
    Beck et al., "xLSTM: extended long short-term memory", 2024.
  """

  forget_bias: float = 3.0
  structure: Structure = Dense()

  def init(self, key, in_features):
    """Draws `SLSTMParams`: LeCun kernel, orthogonal recurrent a gate."""
    kernel_key, recurrent_key = jax.random.split(key)
    h = self.features
    bias = jnp.zeros((4 * h,), jnp.float32)
    return SLSTMParams(
      kernel=initializers.uniform_fan_in(kernel_key, (in_features, 4 * h)),
      recurrent=self.structure.init(recurrent_key, h, 4),
      bias=bias.at[h : 2 * h].set(self.forget_bias),
    )

  def initial_carry(self, params, batch_shape):
    """Zeros, over a maximum below all others.

    With a maximum of 0, as in the paper, an input gate below exp(-100) would
    make the first normaliser zero. Over nothing, any maximum means the same.
    """
    start = base.zeros(params, batch_shape, self.features)
    return SLSTMCarry(start, start, start, jnp.full_like(start, -1e30))

  def project(self, params, inputs):
    """X W + b."""
    return base.affine(inputs, params.kernel, params.bias)

  def recur(self, params, carry):
    """H R."""
    return self.structure.product(carry.hidden, params.recurrent)

  def gate(self, params, carry, projected, mixed):
    """The gates over their running maximum."""
    del params
    log_i, f, g, o = base.split_gates(
      base.as_carry(projected + mixed, carry), 4
    )
    kept = jax.nn.log_sigmoid(f) + carry.stabiliser
    stabiliser = jnp.maximum(kept, log_i)
    f, i = jnp.exp(kept - stabiliser), jnp.exp(log_i - stabiliser)
    cell = f * carry.cell + i * jnp.tanh(g)
    normaliser = f * carry.normaliser + i
    hidden = jax.nn.sigmoid(o) * cell / normaliser
    carry = SLSTMCarry(hidden, cell, normaliser, stabiliser)
    return carry, hidden.astype(projected.dtype)
