"""Real-gated linear recurrent unit, of Griffin (De et al., 2024)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from recurrent import initializers, numerics
from recurrent.cells import base
from recurrent.types import Array, Float

SHARPNESS = 8.0  # c of the paper


class RGLRUParams(NamedTuple):
  """Parameters of `RGLRU`; columns of the gates in the order r, i."""

  kernel: Float[Array, "D H"]
  bias: Float[Array, "H"]
  gates: Float[Array, "H 2*H"]
  gate_bias: Float[Array, "2*H"]
  rate: Float[Array, "H"]


@dataclasses.dataclass(frozen=True)
class RGLRU(base.LinearCell):
  """h' = a h + sqrt(1 - a^2) (i v); the output is h'.

  v = x W + b, r, i = sigmoid(v G + g), a = exp(-8 softplus(rate) r).

  Args:
    features: width H.
    ring: least and greatest exp(-softplus(rate)) that `init` draws.

  Reference:
    De et al., "Griffin: mixing gated linear recurrences with local attention
    for efficient language models", 2024. In the paper the gates are
    block-diagonal, and the linear layer comes before the unit.
  """

  ring: tuple[float, float] = (0.9, 0.999)

  def init(self, key, in_features):
    """Draws `RGLRUParams`: squared decays uniform on the ring."""
    keys = jax.random.split(key, 3)
    h, (low, high) = self.features, self.ring
    squared = initializers.uniform(keys[0], (h,), low**2, high**2)
    return RGLRUParams(
      kernel=initializers.lecun_uniform(keys[1], (in_features, h)),
      bias=jnp.zeros((h,), jnp.float32),
      gates=initializers.lecun_uniform(keys[2], (h, 2 * h)),
      gate_bias=jnp.zeros((2 * h,), jnp.float32),
      rate=jnp.log(jnp.expm1(-0.5 * jnp.log(squared))),
    )

  def narrow(self, params, dtype):
    """Casts all but the rate, since a rounded decay forgets faster."""
    return numerics.cast(params, dtype)._replace(rate=params.rate)

  def project(self, params, inputs):
    """The gates, the decay and the normalised drive."""
    value = numerics.affine(inputs, params.kernel, params.bias)
    gates = numerics.widen(
      numerics.affine(value, params.gates, params.gate_bias)
    )
    r, i = numerics.split_gates(jax.nn.sigmoid(gates), 2)
    rate = numerics.like(jax.nn.softplus(params.rate), r)
    log_decay = -SHARPNESS * rate * r
    # At a decay of 1 the slope of the square root is infinite, and 0 times
    # infinity is NaN in the gradient.
    tiny = float(jnp.finfo(log_decay.dtype).tiny)
    scale = jnp.sqrt(jnp.maximum(-jnp.expm1(2 * log_decay), tiny))
    drive = scale * i * value.astype(i.dtype)
    return base.Linear(jnp.exp(log_decay), drive, None)

  def readout(self, params, state, skip):
    """The state."""
    del skip
    return state.astype(params.kernel.dtype)
