"""Beam search with any function `(carry, token) -> (carry, logits)`.

The whole search runs on the device, for a batch of sources at once. Beams are
rows of the step's batch, and a carry follows its beam wherever that goes, so
recurrent and Transformer decoders need no code for it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from recurrent.decoding.sampling import Step
from recurrent.rows import vary_alike
from recurrent.types import Array, Bool, Carry, Float, Int

# The score of no sequence, in place of minus infinity, so that differences of
# two remain numbers.
NEVER = -1e9


class Beams(NamedTuple):
  """The best sequences of each row, best first.

  Attributes:
    tokens: [batch, beams, N] ids without the prefix; the stop token and all
      after it are filled with the stop token.
    lengths: [batch, beams], the number of tokens before the stop token.
    scores: [batch, beams], by which they are sorted: the log-probability in
      nats over the length penalty, minus the coverage penalty. -1e9 where there
      are fewer sequences than beams.
    log_probabilities: [batch, beams] in nats, with the stop token.
  """

  tokens: Int[Array, "B K N"]
  lengths: Int[Array, "B K"]
  scores: Float[Array, "B K"]
  log_probabilities: Float[Array, "B K"]


class _Search(NamedTuple):
  """The state of the search between two tokens."""

  number: Int[Array, ""]  # of tokens so far
  carry: Carry  # of the live beams, [B * K, ...]
  logits: Float[Array, "R V"]
  tokens: Int[Array, "B K N"]
  log_probabilities: Float[Array, "B K"]
  finished: Beams


def beam_search(
  step: Step,
  carry: Carry,
  logits: Float[Array, "B V"],
  *,
  beams: int = 4,
  num_tokens: int,
  stop_token: int,
  min_tokens: int = 0,
  length_penalty: float = 0.0,
  no_repeat: int = 0,
  forced: Int[Array, "B P"] | None = None,
  coverage: Callable[[Carry], Float[Array, "R S"]] | None = None,
  coverage_penalty: float = 0.0,
) -> Beams:
  """Finds the sequences of the highest scores.

  A sequence ends at its stop token, or after `num_tokens` tokens. With as many
  beams as there are sequences the search is exhaustive. It ends early, once no
  live beam can become better than those that have ended.

  Args:
    step: `(carry, token [rows]) -> (carry, logits [rows, V])`; rows are
      batch * beams.
    carry: the carry before the first token, [batch, ...].
    logits: the logits of the first token, [batch, V].
    beams: number of sequences K that are kept for each row.
    num_tokens: largest number of tokens N of a sequence, with its stop token.
    stop_token: id that ends a sequence.
    min_tokens: least number of tokens before the stop token.
    length_penalty: exponent a of the length penalty ((5 + length) / 6) ** a,
      where the length includes the stop token; 0: none.
    no_repeat: n, if no n tokens in a row may occur twice in a sequence; 0: they
      may.
    forced: [batch, P] ids with which each row must begin, padded with -1.
    coverage: returns from the carry how much attention each of S source
      positions has received so far, [rows, S].
    coverage_penalty: weight b of the coverage penalty
      -b * sum(log(min(coverage, 1))); needs `coverage`.

  Returns:
    K sequences for each row.

  Raises:
    ValueError: if an argument is out of range.

  Reference:
    Wu et al., "Google's neural machine translation system", 2016 (penalties);
    Paulus, Xiong & Socher, "A deep reinforced model for abstractive
    summarization", 2018 (n-grams).
  """
  batch, vocab_size = logits.shape
  for name, value, least in (
    ("beams", beams, 1),
    ("num_tokens", num_tokens, 1),
    ("min_tokens", min_tokens, 0),
    ("no_repeat", no_repeat, 0),
    ("length_penalty", length_penalty, 0),
    ("coverage_penalty", coverage_penalty, 0),
  ):
    if value < least:
      raise ValueError(f"{name} must be {least} or more, got {value}")
  if not 0 <= stop_token < vocab_size:
    raise ValueError(
      f"stop_token must be in [0, {vocab_size}), got {stop_token}"
    )
  if coverage_penalty and coverage is None:
    raise ValueError("coverage_penalty needs coverage, which is missing")

  def score(log_probabilities, length, uncovered):
    penalty = ((5.0 + length) / 6.0) ** length_penalty
    return jnp.maximum(log_probabilities / penalty - uncovered, NEVER)

  def uncovered(carry):
    if coverage is None or not coverage_penalty:
      return jnp.zeros((batch, beams))
    # Attention that is exactly zero would have an infinite penalty.
    seen = jnp.clip(coverage(carry), 1e-6, 1.0)
    return -coverage_penalty * jnp.log(seen).sum(axis=-1).reshape(batch, beams)

  def allowed(search):
    """Whether each token may come next, [batch, beams, V]."""
    number, ids = search.number, jnp.arange(vocab_size)
    may = jnp.broadcast_to(
      (number >= min_tokens) | (ids != stop_token), (batch, beams, vocab_size)
    )
    if no_repeat:
      may &= ~_repeated(search.tokens, number, no_repeat, vocab_size)
    if forced is not None:
      # Beyond the forced tokens, the index is clipped and the token is free.
      wanted = jnp.where(
        number < forced.shape[1],
        jnp.take(forced, jnp.minimum(number, forced.shape[1] - 1), axis=1),
        -1,
      )[:, None, None]
      may = jnp.where(wanted < 0, may, ids[None, None] == wanted)
    return may

  def extend(search: _Search) -> _Search:
    """Appends one token to the beams of all rows."""
    number = search.number
    nats = jax.nn.log_softmax(search.logits.astype(jnp.float32), axis=-1)
    nats = nats.reshape(batch, beams, vocab_size)
    total = search.log_probabilities[..., None] + nats
    total = jnp.where(allowed(search), jnp.maximum(total, NEVER), NEVER)
    length = (number + 1).astype(jnp.float32)
    missed = uncovered(search.carry)
    # Each beam, ended here by the stop token, may be one of the finished.
    stopped = total[..., stop_token]
    lasts = jnp.full_like(search.tokens[..., 0], stop_token)
    finished = _best(
      search.finished,
      Beams(
        search.tokens.at[:, :, number].set(lasts),
        jnp.full((batch, beams), number),
        jnp.where(stopped > NEVER / 2, score(stopped, length, missed), NEVER),
        stopped,
      ),
    )
    # The K best of all K * V continuations stay live.
    going = total.at[..., stop_token].set(NEVER).reshape(batch, -1)
    best, place = jax.lax.top_k(going, min(beams, going.shape[-1]))
    spare = beams - best.shape[-1]
    best = jnp.pad(best, ((0, 0), (0, spare)), constant_values=NEVER)
    place = jnp.pad(place, ((0, 0), (0, spare)))
    parent, token = place // vocab_size, (place % vocab_size).astype(jnp.int32)
    tokens = jnp.take_along_axis(search.tokens, parent[..., None], axis=1)
    rows = (jnp.arange(batch)[:, None] * beams + parent).reshape(-1)
    carry, logits = step(
      jax.tree.map(lambda x: x[rows], search.carry), token.reshape(-1)
    )
    return _Search(
      number + 1,
      carry,
      logits,
      tokens.at[:, :, number].set(token),
      best,
      finished,
    )

  def may_improve(search: _Search) -> Bool[Array, ""]:
    """Returns whether a live beam can still become one of the best."""
    # Log-probabilities only fall, and the penalty of the greatest length is the
    # largest divisor, so this is a bound on all scores to come.
    most = score(search.log_probabilities.max(axis=1), num_tokens, 0.0)
    worst = search.finished.scores[:, -1]
    return (search.number < num_tokens) & (most > worst).any()

  repeat = lambda x: jnp.repeat(x, beams, axis=0)
  none = jnp.full((batch, beams), NEVER)
  empty = jnp.full((batch, beams, num_tokens), stop_token, jnp.int32)
  zeros = jnp.zeros((batch, beams), jnp.int32)
  start = _Search(
    jnp.int32(0),
    jax.tree.map(repeat, carry),
    repeat(logits),
    empty,
    # All beams are equal at first, so only one of them is live.
    none.at[:, 0].set(0.0),
    Beams(empty, zeros, none, none),
  )
  # Within `jax.shard_map` the carry of a loop must vary as its results do.
  start = vary_alike(start)
  search = jax.lax.while_loop(may_improve, extend, start)
  # Those that have not ended count if the search was not cut short.
  unended = search.log_probabilities
  ripe = (search.number >= num_tokens) & (unended > NEVER / 2)
  scores = score(unended, float(num_tokens), uncovered(search.carry))
  return _best(
    search.finished,
    Beams(
      search.tokens,
      jnp.full_like(zeros, num_tokens),
      jnp.where(ripe, scores, NEVER),
      unended,
    ),
  )


def _best(some: Beams, others: Beams) -> Beams:
  """The best of both, as many as `some` has, sorted by their scores."""
  both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), some, others)
  _, place = jax.lax.top_k(both.scores, some.scores.shape[1])

  def take(x):
    index = place.reshape(*place.shape, *[1] * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1)

  return jax.tree.map(take, both)


def _repeated(tokens, number, n, vocab_size):
  """Tokens [batch, beams, V] that would complete an n-gram a second time."""
  length = tokens.shape[-1]
  if n > length:
    return jnp.zeros((*tokens.shape[:2], vocab_size), bool)
  starts = jnp.arange(length - n + 1)
  # The n-grams so far, [batch, beams, windows, n], and the last n - 1 tokens.
  grams = tokens[..., starts[:, None] + jnp.arange(n)[None]]
  at = jnp.maximum(number - (n - 1), 0) + jnp.arange(n - 1)
  last = tokens[..., at][..., None, :]
  same = (grams[..., :-1] == last).all(axis=-1)
  # Only whole n-grams of the tokens so far count.
  same &= (starts + n <= number)[None, None]
  ends = jax.nn.one_hot(grams[..., -1], vocab_size, dtype=bool)
  return (ends & same[..., None]).any(axis=-2) & (number >= n - 1)
