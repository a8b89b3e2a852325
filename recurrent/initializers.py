"""Initialisers: functions that draw float32 parameters from a PRNG key."""

import jax
import jax.numpy as jnp

from recurrent.types import Array, PRNGKey

# `lecun_uniform(key, [..., fan_in, fan_out])` draws uniformly from
# +-sqrt(3 / fan_in), which preserves unit variance (LeCun, Bottou, Orr &
# Mueller, "Efficient BackProp", 1998).
lecun_uniform = jax.nn.initializers.lecun_uniform(dtype=jnp.float32)


def uniform(
  key: PRNGKey, shape: tuple[int, ...], low: float, high: float
) -> Array:
  """Draws uniformly from [low, high), float32."""
  return jax.random.uniform(key, shape, jnp.float32, low, high)


def chrono(key: PRNGKey, features: int, t_max: int) -> Array:
  """Draws forget-gate biases log U(1, t_max - 1), for memories up to `t_max`.

  Args:
    key: PRNG key.
    features: width H.
    t_max: longest span to remember, in time steps; at least 3.

  Returns:
    float32 array [H], the bias of the forget gate. The bias of the input gate
    is its negative.

  Raises:
    ValueError: if `t_max` is less than 3.

  Reference:
    Tallec & Ollivier, "Can recurrent neural networks warp time?", 2018.
  """
  if t_max < 3:
    raise ValueError(f"t_max must be at least 3 time steps, got {t_max}")
  return jnp.log(uniform(key, (features,), 1.0, t_max - 1.0))


def orthogonal_blocks(
  key: PRNGKey, features: int, blocks: int, scale: float = 1.0
) -> Array:
  """Draws one orthogonal [H, H] matrix for each gate, side by side.

  Each gate's matrix is orthogonal by itself, not the [H, G*H] matrix as a
  whole, so the map from the previous hidden state to each gate is an isometry
  (times `scale`).

  Args:
    key: PRNG key.
    features: width H of the cell.
    blocks: number of gates G.
    scale: factor on every matrix.

  Returns:
    float32 array [H, G*H].

  Reference:
    Saxe, McClelland & Ganguli, "Exact solutions to the nonlinear dynamics of
    learning in deep linear neural networks", 2014.
  """
  init = jax.nn.initializers.orthogonal(scale)
  keys = jax.random.split(key, blocks)
  return jnp.concatenate(
    [init(k, (features, features), jnp.float32) for k in keys], axis=-1
  )
