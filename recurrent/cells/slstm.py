"""sLSTM: an LSTM with exponential gates (Beck et al., 2024)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from recurrent import initializers, numerics
from recurrent.cells import base
from recurrent.cells.structures import Dense, Structure, Structured
from recurrent.types import Array, Float


class SLSTMParams(NamedTuple):
  """Parameters of `SLSTM`; columns of the gates in the order i, f, g, o."""

  kernel: Float[Array, "D 4*H"]
  recurrent: Any  # [H, 4*H] if dense; see `Structure`
  bias: Float[Array, "4*H"]


class SLSTMCarry(NamedTuple):
  """Carry of `SLSTM`: h, the quotient c / n as `cell`, and log n."""

  hidden: Float[Array, "*B H"]
  cell: Float[Array, "*B H"]
  log_normaliser: Float[Array, "*B H"]


@dataclasses.dataclass(frozen=True)
class SLSTM(Structured, base.GatedCell):
  """c' = f c + i g, n' = f n + i, h' = o c' / n'; i = exp, f = sigmoid.

  The carry holds c / n, which is a mean of the g so far, and log n, so that
  nothing overflows. The paper carries c and n, each divided by the exponential
  of a running maximum. That is the same function, but in that form Newton's
  method divides by guesses of n, which may be zero, and diverges.

  Args:
    features: width H.
    forget_bias: initial value of the forget gate's bias.
    structure: structure of the recurrent weights; the paper has heads.

  Reference:
    Beck et al., "xLSTM: extended long short-term memory", 2024.
  """

  forget_bias: float = 3.0
  structure: Structure = Dense()

  def init(self, key, in_features):
    """Draws `SLSTMParams`: LeCun kernel, orthogonal recurrent blocks."""
    kernel_key, recurrent_key = jax.random.split(key)
    h = self.features
    bias = jnp.zeros((4 * h,), jnp.float32)
    return SLSTMParams(
      kernel=initializers.lecun_uniform(kernel_key, (in_features, 4 * h)),
      recurrent=self.structure.init(recurrent_key, h, 4),
      bias=bias.at[h : 2 * h].set(self.forget_bias),
    )

  def initial_carry(self, params, batch_shape):
    """Zeros, and -1e30 for log n, since n is 0."""
    start = numerics.zeros(params, batch_shape, self.features)
    # Finite, since minus infinity has no gradient.
    return SLSTMCarry(start, start, jnp.full_like(start, -1e30))

  def project(self, params, inputs):
    """X W + b."""
    return numerics.affine(inputs, params.kernel, params.bias)

  def recur(self, params, carry):
    """H R."""
    return self.structure.product(carry.hidden, params.recurrent)

  def gate(self, params, carry, projected, mixed):
    """Computes the gates and the normalised cell."""
    del params
    log_i, f, g, o = numerics.split_gates(
      numerics.as_carry(projected + mixed, carry), 4
    )
    kept = jax.nn.log_sigmoid(f) + carry.log_normaliser
    old, new = jax.nn.sigmoid(kept - log_i), jax.nn.sigmoid(log_i - kept)
    cell = old * carry.cell + new * jnp.tanh(g)
    hidden = jax.nn.sigmoid(o) * cell
    carry = SLSTMCarry(hidden, cell, jnp.logaddexp(kept, log_i))
    return carry, hidden.astype(projected.dtype)
