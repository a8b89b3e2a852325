"""A diagonal state space, discretised by zero-order hold (S4D, S5)."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import normal

from recurrent import initializers, numerics
from recurrent.cells import base
from recurrent.types import Array, Float


class S5Params(NamedTuple):
  """Parameters of `S5`; complex matrices as (real, imaginary)."""

  log_rate: Float[Array, "N"]  # the pole is -exp(log_rate) + i frequency
  frequency: Float[Array, "N"]
  log_step: Float[Array, "N"]
  kernel: Float[Array, "2 D N"]
  output: Float[Array, "2 N H"]
  skip: Float[Array, "D H"]


@dataclasses.dataclass(frozen=True)
class S5(base.ComplexLinearCell):
  """dh/dt = pole h + x B, y = 2 Re(h C) + x D, h complex, in learnt steps.

  h' = exp(pole step) h + (exp(pole step) - 1) / pole * (x B).

  Args:
    features: width H.
    states: number of complex states N, each standing for a conjugate pair;
      0: H.
    steps: least and greatest step that `init` draws, log-uniformly.

  Reference:
    Smith, Warrington & Linderman, "Simplified state space layers for sequence
    modeling", 2023; poles -1/2 + i pi n: Gu et al., "On the parameterization
    and initialization of diagonal state space models", 2022.
  """

  steps: tuple[float, float] = (1e-3, 1e-1)

  def init(self, key, in_features):
    """Draws `S5Params`."""
    keys = jax.random.split(key, 4)
    n, (low, high) = self.width, self.steps
    return S5Params(
      log_rate=jnp.full((n,), math.log(0.5), jnp.float32),
      frequency=math.pi * jnp.arange(n, dtype=jnp.float32),
      log_step=initializers.uniform(
        keys[0], (n,), math.log(low), math.log(high)
      ),
      kernel=normal(1 / math.sqrt(2 * in_features))(
        keys[1], (2, in_features, n), jnp.float32
      ),
      output=normal(1 / math.sqrt(2 * n))(
        keys[2], (2, n, self.features), jnp.float32
      ),
      skip=normal(1 / math.sqrt(in_features))(
        keys[3], (in_features, self.features), jnp.float32
      ),
    )

  def narrow(self, params, dtype):
    """Casts the matrices only, since a rounded decay forgets faster."""
    return numerics.cast(params, dtype)._replace(
      log_rate=params.log_rate,
      frequency=params.frequency,
      log_step=params.log_step,
    )

  def project(self, params, inputs):
    """Computes the decay, which is constant over time, the drive, and x D."""
    pole = jax.lax.complex(-jnp.exp(params.log_rate), params.frequency)
    decay = jnp.exp(pole * jnp.exp(params.log_step).astype(pole.dtype))
    drive = numerics.complex_product(inputs, params.kernel)
    hold = numerics.like((decay - 1) / pole, drive)
    decay = jnp.broadcast_to(decay, drive.shape)
    return base.Linear(
      decay, drive * hold, numerics.product(inputs, params.skip)
    )

  def readout(self, params, state, skip):
    """2 Re(h C) + x D."""
    return 2 * numerics.real_product(state, params.output) + skip
