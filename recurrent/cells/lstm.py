"""Long short-term memory (Hochreiter & Schmidhuber, 1997)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from recurrent import initializers, numerics
from recurrent.cells import base
from recurrent.cells.structures import Dense, Structure, Structured
from recurrent.types import Array, Float


class LSTMParams(NamedTuple):
  """Parameters of `LSTM`; columns of the gates in the order i, f, g, o."""

  kernel: Float[Array, "D 4*H"]
  recurrent: Any  # [H, 4*H] if dense; see `Structure`
  bias: Float[Array, "4*H"]


class LSTMCarry(NamedTuple):
  """Carry of `LSTM`."""

  hidden: Float[Array, "*B H"]
  cell: Float[Array, "*B H"]


@dataclasses.dataclass(frozen=True)
class LSTM(Structured, base.GatedCell):
  """c' = f c + i g;  h' = o tanh(c'), which is also the output.

  i, f, o = sigmoid(x W + h R + b), g = tanh(x W + h R + b), each with its own
  columns.

  Args:
    features: width H.
    forget_bias: initial value of the forget gate's bias, which is a parameter;
      `step` adds no further bias.
    t_max: if positive, `init` draws both gates' biases for memories of up to
      that many time steps instead (chrono).
    structure: structure of the recurrent weights.

  Reference:
    Hochreiter & Schmidhuber, "Long short-term memory", 1997; forget gate:
    Gers, Schmidhuber & Cummins, 2000; forget bias 1: Jozefowicz, Zaremba &
    Sutskever, 2015; chrono: Tallec & Ollivier, 2018.
  """

  forget_bias: float = 1.0
  t_max: int = 0
  structure: Structure = Dense()

  def init(self, key, in_features):
    """Draws `LSTMParams`: LeCun kernel, orthogonal recurrent blocks."""
    kernel_key, recurrent_key = jax.random.split(key)
    h = self.features
    bias = jnp.zeros((4 * h,), jnp.float32)
    bias = bias.at[h : 2 * h].set(self.forget_bias)
    if self.t_max:
      forget = initializers.chrono(jax.random.fold_in(key, 2), h, self.t_max)
      bias = bias.at[: 2 * h].set(jnp.concatenate([-forget, forget]))
    return LSTMParams(
      kernel=initializers.lecun_uniform(kernel_key, (in_features, 4 * h)),
      recurrent=self.structure.init(recurrent_key, h, 4),
      bias=bias,
    )

  def initial_carry(self, params, batch_shape):
    """Zeros."""
    start = numerics.zeros(params, batch_shape, self.features)
    return LSTMCarry(hidden=start, cell=start)

  def project(self, params, inputs):
    """X W + b."""
    return numerics.affine(inputs, params.kernel, params.bias)

  def recur(self, params, carry):
    """H R."""
    return self.structure.product(carry.hidden, params.recurrent)

  def gate(self, params, carry, projected, mixed, candidate=jnp.tanh):
    """Computes the gates and the new cell; `candidate` is g's activation."""
    del params
    i, f, g, o = numerics.split_gates(
      numerics.as_carry(projected + mixed, carry), 4
    )
    cell = jax.nn.sigmoid(f) * carry.cell + jax.nn.sigmoid(i) * candidate(g)
    hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
    return LSTMCarry(hidden, cell), hidden.astype(projected.dtype)
