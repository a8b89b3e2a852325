"""Dropout functions; each returns its inputs unchanged if the key is None."""

import jax
import jax.numpy as jnp

from recurrent import rows
from recurrent.types import Array, Bool, Float, PRNGKey, Tokens


def dropout(
  key: PRNGKey | None, inputs: Array, rate: float, *, locked: bool = False
) -> Array:
  """Zeroes entries with probability `rate` and scales the rest up.

  Args:
    key: PRNG key, or None in evaluation: the inputs are returned unchanged.
    inputs: [batch, time, ...]; without `locked`, an array of any shape.
    rate: probability of a zero, in [0, 1).
    locked: whether one mask is drawn for all time steps of a row (variational
      dropout) instead of a new one for each. Inputs [batch, features] are a
      single time step, for which `locked` makes no difference.

  Returns:
    Array of the shape and dtype of `inputs`, with the same expected value.

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
  kept = rows.bernoulli(key, 1 - rate, shape, inputs)
  kept = jnp.broadcast_to(kept, inputs.shape)
  return jnp.where(kept, inputs / (1 - rate), jnp.zeros_like(inputs))


def drop_variables(
  key: PRNGKey | None, observed: Bool[Array, "B T D"], rate: float
) -> Bool[Array, "B T D"]:
  """Makes variables of a sequence missing, each in all of its time steps.

  It is `dropout` for networks that read which inputs are missing.

  Args:
    key: PRNG key, or None in evaluation: `observed` is returned unchanged.
    observed: [batch, time, D], True where a variable is observed.
    rate: probability that a variable of a row is missing, in [0, 1).

  Raises:
    ValueError: if `rate` is outside [0, 1).
  """
  _check(rate)
  if key is None or rate == 0:
    return observed
  batch, _, variables = observed.shape
  kept = rows.bernoulli(key, 1 - rate, (batch, 1, variables), observed)
  return observed & kept


def embedding_dropout(
  key: PRNGKey | None, table: Float[Array, "V D"], rate: float
) -> Float[Array, "V D"]:
  """Zeroes whole rows of an embedding table and scales the others up.

  A token whose row is dropped is dropped wherever it occurs in the batch.

  Args:
    key: PRNG key, or None in evaluation: the table is returned unchanged.
    table: [V, D], one row per token.
    rate: probability that a row is set to zero, in [0, 1).

  Returns:
    Table of the same shape and dtype.

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
  """Replaces tokens, independently of each other, by the token `unknown`.

  Args:
    key: PRNG key, or None in evaluation: the tokens are returned unchanged.
    tokens: [batch, time] ids.
    rate: probability of a replacement, in [0, 1).
    unknown: id of the token for unknown words, which replaces the others.

  Returns:
    Ids of the same shape and dtype.

  Raises:
    ValueError: if `rate` is outside [0, 1).

  Reference:
    Bowman et al., "Generating sentences from a continuous space", 2016.
  """
  _check(rate)
  if key is None or rate == 0:
    return tokens
  dropped = rows.bernoulli(key, rate, tokens.shape, tokens)
  return jnp.where(dropped, jnp.full_like(tokens, unknown), tokens)


def _check(rate):
  if not 0 <= rate < 1:
    raise ValueError(f"dropout rate must be in [0, 1), got {rate}")
