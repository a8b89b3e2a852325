"""Linear recurrent unit: complex diagonal decays (Orvieto et al., 2023)."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import normal

from recurrent import initializers, numerics
from recurrent.cells import base
from recurrent.types import Array, Float


class LRUParams(NamedTuple):
  """Parameters of `LRU`; complex matrices as (real, imaginary)."""

  log_rate: Float[Array, "N"]  # |decay| = exp(-exp(log_rate))
  log_phase: Float[Array, "N"]
  log_scale: Float[Array, "N"]  # of the drive
  kernel: Float[Array, "2 D N"]
  output: Float[Array, "2 N H"]
  skip: Float[Array, "D H"]


@dataclasses.dataclass(frozen=True)
class LRU(base.ComplexLinearCell):
  """h' = decay h + scale (x B), y = Re(h' C) + x D, h complex.

  Args:
    features: width H.
    states: number of complex states N; 0: H.
    ring: least and greatest |decay| that `init` draws, uniformly on the ring.
    max_phase: the greatest phase it draws.

  Reference:
    Orvieto et al., "Resurrecting recurrent neural networks for long
    sequences", 2023. D is a matrix here, so that inputs may have any width.
  """

  ring: tuple[float, float] = (0.9, 0.999)
  max_phase: float = 2 * math.pi

  def init(self, key, in_features):
    """Draws `LRUParams`: decays on the ring, outputs of unit variance."""
    keys = jax.random.split(key, 5)
    n, low, high = self.width, *self.ring
    squared = initializers.uniform(keys[0], (n,), low**2, high**2)
    phase = self.max_phase * initializers.uniform(keys[1], (n,), 1e-3, 1.0)
    return LRUParams(
      log_rate=jnp.log(-0.5 * jnp.log(squared)),
      log_phase=jnp.log(phase),
      log_scale=0.5 * jnp.log1p(-squared),
      kernel=normal(1 / math.sqrt(2 * in_features))(
        keys[2], (2, in_features, n), jnp.float32
      ),
      output=normal(1 / math.sqrt(2 * n))(
        keys[3], (2, n, self.features), jnp.float32
      ),
      skip=normal(1 / math.sqrt(2 * in_features))(
        keys[4], (in_features, self.features), jnp.float32
      ),
    )

  def narrow(self, params, dtype):
    """Casts the matrices only, since a rounded decay forgets faster."""
    return numerics.cast(params, dtype)._replace(
      log_rate=params.log_rate,
      log_phase=params.log_phase,
      log_scale=params.log_scale,
    )

  def project(self, params, inputs):
    """Computes the decay, which is constant over time, scale (x B), and x D."""
    rate, phase = jnp.exp(params.log_rate), jnp.exp(params.log_phase)
    decay = jnp.exp(jax.lax.complex(-rate, phase))
    drive = numerics.complex_product(inputs, params.kernel)
    scale = numerics.like(jnp.exp(params.log_scale), drive)
    decay = jnp.broadcast_to(decay, drive.shape)
    return base.Linear(
      decay, drive * scale, numerics.product(inputs, params.skip)
    )

  def readout(self, params, state, skip):
    """Re(h C) + x D."""
    return numerics.real_product(state, params.output) + skip
