"""Ways to draw a matrix. Each takes a key, a shape, and returns float32."""

import math

import jax
import jax.numpy as jnp

from recurrent.types import Array, PRNGKey


def uniform_fan_in(key: PRNGKey, shape: tuple[int, ...]) -> Array:
  """Uniform in +-sqrt(3 / fan_in): unit variance out for unit variance in.

  Args:
    key: PRNG key.
    shape: [fan_in, fan_out].

  Returns:
    float32 array of `shape`.

  Reference:
    LeCun, Bottou, Orr & Mueller, "Efficient BackProp", 1998.
  """
  bound = math.sqrt(3.0 / shape[0])
  return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def normal(key: PRNGKey, shape: tuple[int, ...], scale: float = 1.0) -> Array:
  """Normal of standard deviation `scale`, float32."""
  return scale * jax.random.normal(key, shape, jnp.float32)


def uniform(
  key: PRNGKey, shape: tuple[int, ...], low: float, high: float
) -> Array:
  """Uniform in [low, high), float32."""
  return jax.random.uniform(key, shape, jnp.float32, low, high)


def chrono(key: PRNGKey, features: int, t_max: int) -> Array:
  """Biases of gates that forget after 1 to `t_max` steps: log U(1, t_max - 1).

  Args:
    key: PRNG key.
    features: width H.
    t_max: longest span to remember, in time steps; at least 3.

  Returns:
    float32 array [H], of forget gates; input gates take its negative.

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
  """One orthogonal [features, features] matrix a gate, side by side.

  Orthogonal per gate, not over the whole [H, G*H]: each gate's map from the
  previous hidden state is then an isometry.

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
