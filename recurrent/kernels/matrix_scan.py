"""S_t = decay_t S_{t-1} + key_t value_t^T, read by query_t S_t, in chunks."""

import jax
import jax.numpy as jnp

from recurrent.types import Array

# Time steps that attend to each other at once, at least and at most: products
# of [size, size] a head. Half the width of a head makes them cost as the states
# do; 16 instead of 64 took a third of the time at a width of 16, on two cores.
CHUNKS = (16, 64)


def matrix_scan(
  log_decay: Array,
  key: Array,
  value: Array,
  query: Array,
  start: Array,
  *,
  fresh: Array | None = None,
  resets: Array | None = None,
  reverse: bool = False,
) -> tuple[Array, Array]:
  """What queries find in a matrix that decays and takes up outer products.

  Args:
    log_decay: [time, batch, N], at most 0.
    key: [time, batch, N, K].
    value: [time, batch, N, V].
    query: [time, batch, N, K].
    start: [batch, N, K, V], before the first time step.
    fresh: [batch, N, K, V], what a reset time step starts from.
    resets: [time, batch] bool, with `fresh`.
    reverse: from the last time step to the first.

  Returns:
    What was found, [time, batch, N, V], and the last state. Memory: a state
    for each chunk of 16 to 64 time steps; the rest is computed again in the
    reverse pass.
  """
  time = len(key)
  size = min(max(CHUNKS[0], key.shape[-1] // 2), CHUNKS[1], time)
  short = -time % size
  time_steps = (log_decay, key, value, query, resets)

  def split(array):
    # Where the loop ends nothing is to happen: decay 1, key 0.
    array = jnp.pad(
      array[::-1] if reverse else array,
      [(0, short)] + [(0, 0)] * (array.ndim - 1),
    )
    return array.reshape(-1, size, *array.shape[1:])

  def chunk(state, time_steps):
    return _chunk(state, fresh, *time_steps)

  last, found = jax.lax.scan(
    jax.checkpoint(chunk), start, jax.tree.map(split, time_steps)
  )
  found = found.reshape(-1, *found.shape[2:])[:time]
  return found[::-1] if reverse else found, last


def _chunk(state, fresh, log_decay, key, value, query, resets):
  """One chunk: the state after it, and what its queries found."""
  size = len(key)
  past = jnp.tril(jnp.ones((size, size), bool))[..., None, None]
  # [to, from, batch, N]: sums of log decays after `from` up to `to`, each
  # added up by itself: a difference of two sums would lose all digits after a
  # gate that is shut.
  each = jnp.broadcast_to(log_decay[:, None], (size, *log_decay.shape))
  after = jnp.tril(jnp.ones((size, size), bool), -1)[..., None, None]
  between = jnp.cumsum(jnp.where(after, each, jnp.zeros_like(each)), axis=0)
  entering = jnp.exp(jnp.cumsum(log_decay, axis=0))
  same = jnp.ones((size, 1, 1), bool)
  if resets is not None:
    number = jnp.cumsum(resets, axis=0, dtype=jnp.int32)
    past = past & (number[:, None] == number[None])[..., None]
    same = (number == 0)[..., None]
  # Where it does not count the sum may be anything: zero before `exp`.
  past = jnp.broadcast_to(past, between.shape)
  weights = jnp.exp(jnp.where(past, between, jnp.zeros_like(between)))
  weights = jnp.where(past, weights, jnp.zeros_like(weights))
  scores = jnp.einsum("tbnk,sbnk->tsbn", query, key) * weights
  found = jnp.einsum("tsbn,sbnv->tbnv", scores, value)
  found += _where(same, entering, jnp.einsum("tbnk,bnkv->tbnv", query, state))
  left = weights[-1][..., None] * key
  new = jnp.einsum("sbnk,sbnv->bnkv", left, value)
  new += _where(same[-1], entering[-1], state)
  if resets is not None:
    # What is left, at each time step, of the fresh state of the last reset.
    begins = jnp.where(resets[..., None], jnp.exp(log_decay), 0.0)
    renewed = jnp.einsum("tsbn,sbn->tbn", weights, begins)
    found += renewed[..., None] * jnp.einsum("tbnk,bnkv->tbnv", query, fresh)
    new += renewed[-1][..., None, None] * fresh
  return new, found


def _where(flags, scale, array):
  """Scale * array where flags, zero elsewhere, were the array NaN."""
  trailing = range(flags.ndim, array.ndim)
  flags, scale = (
    jnp.broadcast_to(jnp.expand_dims(x, trailing), array.shape)
    for x in (flags, scale)
  )
  return jnp.where(flags, scale * array, jnp.zeros_like(array))
