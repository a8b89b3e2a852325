"""Computes query_t S_t for S_t = decay_t S_{t-1} + key_t value_t^T."""

import jax
import jax.numpy as jnp

from recurrent.kernels import chunks
from recurrent.types import Array

# The least and the greatest number of time steps in a chunk. Within a chunk
# there are products with [size, size] matrices for each head. If a chunk is
# half as long as a head is wide, they cost as much as the states do. At a width
# of 16, chunks of 16 took a third of the time of chunks of 64, on two cores.
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
  """Computes query_t S_t for S_t = decay_t S_{t-1} + key_t value_t^T.

  Args:
    log_decay: [time, batch, N] for N heads, at most 0.
    key: [time, batch, N, K].
    value: [time, batch, N, V].
    query: [time, batch, N, K].
    start: [batch, N, K, V], the state before the first time step.
    fresh: [batch, N, K, V], the state from which a reset time step starts.
    resets: [time, batch] bool; it needs `fresh`.
    reverse: whether to run from the last time step to the first.

  Returns:
    The products query_t S_t, [time, batch, N, V], and the last state. One state
    is stored for each chunk of 16 to 64 time steps; the reverse pass recomputes
    the rest.
  """
  time = len(key)
  size = min(max(CHUNKS[0], key.shape[-1] // 2), CHUNKS[1], time)
  time_steps = (log_decay, key, value, query, resets)
  flip = lambda x: x[::-1] if reverse else x
  # Padding at the end of the loop leaves the state unchanged: decay 1, key 0.
  split = lambda x: chunks.split(flip(x), size)

  def chunk(state, time_steps):
    return _chunk(state, fresh, *time_steps)

  last, found = jax.lax.scan(
    jax.checkpoint(chunk), start, jax.tree.map(split, time_steps)
  )
  return flip(chunks.join(found, time)), last


def _chunk(state, fresh, log_decay, key, value, query, resets):
  """Runs one chunk; returns the state after it and its query_t S_t."""
  size = len(key)
  past = jnp.tril(jnp.ones((size, size), bool))[..., None, None]
  # [to, from, batch, N]: sums of log decays after `from` up to `to`. Each is
  # summed separately: a difference of two cumulative sums would lose all digits
  # after a closed gate.
  each = jnp.broadcast_to(log_decay[:, None], (size, *log_decay.shape))
  after = jnp.tril(jnp.ones((size, size), bool), -1)[..., None, None]
  between = jnp.cumsum(jnp.where(after, each, jnp.zeros_like(each)), axis=0)
  entering = jnp.exp(jnp.cumsum(log_decay, axis=0))
  same = jnp.ones((size, 1, 1), bool)
  if resets is not None:
    number = jnp.cumsum(resets, axis=0, dtype=jnp.int32)
    past = past & (number[:, None] == number[None])[..., None]
    same = (number == 0)[..., None]
  # Sums outside the past are not used and may have any value, so they are set
  # to zero before `exp`.
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
    # The factor, at each time step, of the fresh state of the last reset.
    begins = jnp.where(resets[..., None], jnp.exp(log_decay), 0.0)
    renewed = jnp.einsum("tsbn,sbn->tbn", weights, begins)
    found += renewed[..., None] * jnp.einsum("tbnk,bnkv->tbnv", query, fresh)
    new += renewed[-1][..., None, None] * fresh
  return new, found


def _where(flags, scale, array):
  """Computes scale * array where flags, else zero, even if array is NaN."""
  trailing = range(flags.ndim, array.ndim)
  flags, scale = (
    jnp.broadcast_to(jnp.expand_dims(x, trailing), array.shape)
    for x in (flags, scale)
  )
  return jnp.where(flags, scale * array, jnp.zeros_like(array))
