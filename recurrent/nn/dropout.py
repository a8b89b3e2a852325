"""Dropout as a function of a key: no key, no dropout."""

import jax
import jax.numpy as jnp

from recurrent.types import Array, Float, PRNGKey, Tokens


def dropout(
  key: PRNGKey | None, inputs: Array, rate: float, *, locked: bool = False
) -> Array:
  """Zeroes entries with probability `rate` and scales the rest up.

  Args:
    key: PRNG key, or None in evaluation: the inputs come back as they are.
    inputs: [batch, time, ...], or any other array without `locked`.
    rate: probability of a zero, in [0, 1).
    locked: one mask for all time steps of a row (variational dropout) instead
      of a fresh one for each. Of [batch, features], a single time step, it is
      the same.

  Returns:
    Array like `inputs`, of the same mean.

  Raises:
    ValueError: if `rate` is outside [0, 1).

  Reference:
    Srivastava et al., 2014; locked: Gal & Ghahramani, "A theoretically
    grounded application of dropout in recurrent neural networks", 2016.
  """
  _check(rate)
  if key is None or rate == 0:
    return inputs
  shape = inputs.shape
  if locked and len(shape) > 2:
    shape = (shape[0], 1, *shape[2:])
  kept = jax.random.bernoulli(key, 1 - rate, shape)
  kept = jnp.broadcast_to(kept, inputs.shape)
  return jnp.where(kept, inputs / (1 - rate), jnp.zeros_like(inputs))


def embedding_dropout(
  key: PRNGKey | None, table: Float[Array, "V D"], rate: float
) -> Float[Array, "V D"]:
  """Zeroes rows of an embedding, so a token vanishes wherever it stands.

  Args:
    key: PRNG key, or None in evaluation: the table comes back as it is.
    table: [V, D], one row a token.
    rate: probability of a row of zeros, in [0, 1); the rest is scaled up.

  Returns:
    A table like the one given.

  Raises:
    ValueError: if `rate` is outside [0, 1).

  Reference:
    Gal & Ghahramani, 2016; Merity, Keskar & Socher (AWD-LSTM), 2018.
  """
  _check(rate)
  if key is None or rate == 0:
    return table
  kept = jax.random.bernoulli(key, 1 - rate, (len(table), 1))
  kept = jnp.broadcast_to(kept, table.shape)
  return jnp.where(kept, table / (1 - rate), jnp.zeros_like(table))


def word_dropout(
  key: PRNGKey | None, tokens: Tokens, rate: float, unknown: int
) -> Tokens:
  """Puts the token `unknown` in the place of others, each by itself.

  Args:
    key: PRNG key, or None in evaluation: the tokens come back as they are.
    tokens: [batch, time] ids.
    rate: probability of a replacement, in [0, 1).
    unknown: the id that stands for a token not to be seen.

  Returns:
    Ids like those given.

  Raises:
    ValueError: if `rate` is outside [0, 1).

  Reference:
    Bowman et al., "Generating sentences from a continuous space", 2016.
  """
  _check(rate)
  if key is None or rate == 0:
    return tokens
  dropped = jax.random.bernoulli(key, rate, tokens.shape)
  return jnp.where(dropped, jnp.full_like(tokens, unknown), tokens)


def _check(rate):
  if not 0 <= rate < 1:
    raise ValueError(f"dropout rate must be in [0, 1), got {rate}")
