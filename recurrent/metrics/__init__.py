"""Metrics as weighted sums, merged over steps and devices and divided last."""

from typing import NamedTuple

import jax.numpy as jnp

from recurrent import rows
from recurrent.types import Array, Float


class Mean(NamedTuple):
  """A weighted mean, stored as a sum and a sum of weights.

  Attributes:
    total: sum of value times weight.
    weight: sum of the weights.
  """

  total: Float[Array, ""]
  weight: Float[Array, ""]

  @classmethod
  def of(cls, values: Array, weights: Array | None = None) -> "Mean":
    """The weighted mean of an array, summed in float32.

    Args:
      values: array of any shape.
      weights: weights that broadcast to the shape of `values`; None for 1.
    """
    values = values.astype(jnp.float32)
    if weights is None:
      return cls(values.sum(), jnp.float32(values.size))
    # `where`, not a product: a value of weight zero may be NaN.
    weights = jnp.broadcast_to(weights.astype(jnp.float32), values.shape)
    kept = jnp.where(weights != 0, values * weights, 0.0)
    return cls(kept.sum(), weights.sum())

  @classmethod
  def zero(cls) -> "Mean":
    """The mean of nothing."""
    return cls(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))

  def merge(self, other: "Mean") -> "Mean":
    """The mean over the values of both."""
    return Mean(self.total + other.total, self.weight + other.weight)

  def over_devices(self) -> "Mean":
    """The mean over the rows of all devices, within `jax.shard_map`."""
    return Mean(*rows.total(tuple(self)))

  def value(self) -> Float[Array, ""]:
    """Divides, on the device; zero if the weight is zero, as for a loss.

    Within `jax.shard_map` it is the mean over the rows of all devices.
    """
    total, weight = self.over_devices()
    return total / jnp.where(weight == 0, jnp.ones_like(weight), weight)

  def compute(self) -> float:
    """Divides, on the host; returns NaN if the weight is zero."""
    weight = float(self.weight)
    return float(self.total) / weight if weight else float("nan")


__all__ = ["Mean"]
