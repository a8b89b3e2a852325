"""Metrics as sums and weights: merged over steps and devices, divided once."""

from typing import NamedTuple

import jax.numpy as jnp

from recurrent.types import Array, Float


class Mean(NamedTuple):
  """A mean that is not divided yet; add two with `merge`."""

  total: Float[Array, ""]
  weight: Float[Array, ""]

  @classmethod
  def of(cls, values: Array, weights: Array | None = None) -> "Mean":
    """The weighted mean of an array: sums in float32."""
    values = values.astype(jnp.float32)
    if weights is None:
      return cls(values.sum(), jnp.float32(values.size))
    # `where`, not a product: an unweighted value may be NaN.
    weights = jnp.broadcast_to(weights.astype(jnp.float32), values.shape)
    kept = jnp.where(weights != 0, values * weights, 0.0)
    return cls(kept.sum(), weights.sum())

  @classmethod
  def zero(cls) -> "Mean":
    """The mean of nothing."""
    return cls(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))

  def merge(self, other: "Mean") -> "Mean":
    """The mean over both."""
    return Mean(self.total + other.total, self.weight + other.weight)

  def compute(self) -> float:
    """Divides, on the host; NaN for the mean of nothing."""
    weight = float(self.weight)
    return float(self.total) / weight if weight else float("nan")


__all__ = ["Mean"]
