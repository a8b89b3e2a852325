"""Dropout as a function of a key: no key, no dropout."""

import jax
import jax.numpy as jnp

from recurrent.types import Array, PRNGKey


def dropout(
  key: PRNGKey | None, inputs: Array, rate: float, *, locked: bool = False
) -> Array:
  """Zeroes entries with probability `rate` and scales the rest up.

  Args:
    key: PRNG key, or None in evaluation: the inputs come back as they are.
    inputs: [batch, time, features].
    rate: probability of a zero, in [0, 1).
    locked: one mask for all ticks of a row (variational dropout) instead of a
      fresh one for each.

  Returns:
    Array like `inputs`, of the same mean.

  Raises:
    ValueError: if `rate` is outside [0, 1).

  Reference:
    Srivastava et al., 2014; locked: Gal & Ghahramani, "A theoretically
    grounded application of dropout in recurrent neural networks", 2016.
  """
  if not 0 <= rate < 1:
    raise ValueError(f"dropout rate must be in [0, 1), got {rate}")
  if key is None or rate == 0:
    return inputs
  batch, time, features = inputs.shape
  shape = (batch, 1, features) if locked else (batch, time, features)
  kept = jax.random.bernoulli(key, 1 - rate, shape)
  kept = jnp.broadcast_to(kept, inputs.shape)
  return jnp.where(kept, inputs / (1 - rate), jnp.zeros_like(inputs))
