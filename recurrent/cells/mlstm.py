"""mLSTM: an LSTM with a matrix memory (Beck et al., 2024)."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from recurrent import initializers, numerics
from recurrent.cells import base
from recurrent.types import Array, Float

INPUT_GATE_CAP = 15.0


class MLSTMParams(NamedTuple):
  """Parameters of `MLSTM`; columns in the order q, k, v, o and gates i, f."""

  kernel: Float[Array, "D 4*H"]
  bias: Float[Array, "4*H"]
  gates: Float[Array, "D 2*heads"]
  gate_bias: Float[Array, "2*heads"]


@dataclasses.dataclass(frozen=True)
class MLSTM(base.MatrixCell):
  """C' = f C + i k v^T, n' = f n + i k; outputs o (q C') / max(|q n'|, 1).

  f = sigmoid and i = exp are scalars for each head; o = sigmoid; k is divided
  by sqrt(H / heads). C and n are one array, in which n is the last column.

  Args:
    features: width H.
    heads: number of memories C, each [H / heads, H / heads].
    forget_bias: initial value of the forget gates' bias.

  Raises:
    ValueError: if `heads` does not divide `features`.

  Reference:
    Beck et al., "xLSTM: extended long short-term memory", 2024. The input gate
    is softly capped at exp(15), as in Beck et al., "xLSTM 7B", 2025; so
    nothing overflows, and no running maximum has to be carried.
  """

  heads: int = 1
  forget_bias: float = 3.0

  def __post_init__(self):
    super().__post_init__()
    if self.heads < 1 or self.features % self.heads:
      raise ValueError(
        f"heads must divide features={self.features}, got {self.heads}"
      )

  def init(self, key, in_features):
    """Draws `MLSTMParams`."""
    keys = jax.random.split(key)
    h, n = self.features, self.heads
    gate_bias = jnp.zeros((2 * n,), jnp.float32)
    return MLSTMParams(
      kernel=initializers.lecun_uniform(keys[0], (in_features, 4 * h)),
      bias=jnp.zeros((4 * h,), jnp.float32),
      gates=0.1 * initializers.lecun_uniform(keys[1], (in_features, 2 * n)),
      gate_bias=gate_bias.at[n:].set(self.forget_bias),
    )

  def initial_carry(self, params, batch_shape):
    """Zeros."""
    width = self.features // self.heads
    return base.LinearCarry(
      numerics.zeros(params, batch_shape, self.heads, width, width + 1)
    )

  def project(self, params, inputs):
    """Computes gated keys, values with ones for n, queries, and o."""
    all_four = numerics.affine(inputs, params.kernel, params.bias)
    q, k, v, o = numerics.split_gates(all_four, 4)
    q, k, v = (self._in_heads(numerics.widen(x)) for x in (q, k, v))
    gates = numerics.widen(
      numerics.affine(inputs, params.gates, params.gate_bias)
    )
    i, f = numerics.split_gates(gates, 2)
    i = jnp.exp(INPUT_GATE_CAP * jnp.tanh(i / INPUT_GATE_CAP))
    return base.Outer(
      log_decay=jax.nn.log_sigmoid(f),
      key=i[..., None] * k / math.sqrt(k.shape[-1]),
      value=jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1),
      query=q,
      skip=jax.nn.sigmoid(o),
    )

  def read(self, params, found, skip):
    """Divides q C' by max(|q n'|, 1) and applies the output gate."""
    del params
    size = jnp.maximum(jnp.abs(found[..., -1:]), 1)
    found = found[..., :-1] / size
    return skip * found.reshape(skip.shape).astype(skip.dtype)

  def _in_heads(self, array):
    """[*batch, H] as [*batch, heads, H / heads]."""
    return array.reshape(*array.shape[:-1], self.heads, -1)
