"""Ancestral sampling from an autoregressive model, on the device.

The model is any function `(carry, token) -> (carry, logits)`. The loop over
tokens, the choice of each token and the test for a stop token all run on the
device, so the host dispatches one program per block of tokens and not one per
token.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from recurrent.types import Array, Bool, Carry, Float, Int, Logits, PRNGKey

# Noise of at most so many numbers (16 MiB) is drawn for all tokens at once.
BULK_NOISE = 1 << 22

Step = Callable[[Carry, Int[Array, "B"]], tuple[Carry, Float[Array, "B V"]]]


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Chooses tokens from logits, by temperature, top-k and top-p.

  Example:
    >>> import jax.numpy as jnp
    >>> from recurrent import decoding
    >>> greedy = decoding.Sampler(temperature=0.0)
    >>> token, log_probability = greedy(None, jnp.array([[0.0, 2.0, 1.0]]))
    >>> int(token[0]), round(float(log_probability[0]), 3)
    (1, -0.408)

  Args:
    temperature: divides the logits; 0 takes the most likely token.
    top_k: only the k most likely tokens can be chosen; 0 for all tokens.
    top_p: only the smallest set of most likely tokens whose probabilities sum
      to at least p can be chosen. Tokens that are as likely as the last one
      that `top_k` or `top_p` keeps are kept too.

  Raises:
    ValueError: if a value is out of its range.

  Reference:
    top-p: Holtzman et al., "The curious case of neural text degeneration",
    2020.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self):
    if not 0 <= self.temperature < float("inf"):
      raise ValueError(f"temperature must be 0 or more, got {self.temperature}")
    if self.top_k < 0:
      raise ValueError(f"top_k must be 0 or more, got {self.top_k}")
    if not 0 < self.top_p <= 1:
      raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")

  def noise(self, key: PRNGKey, shape: tuple[int, ...]) -> Array | None:
    """Random numbers for `__call__`, or None if the temperature is 0."""
    return jax.random.gumbel(key, shape) if self.temperature else None

  def __call__(
    self, noise: Array | None, logits: Logits
  ) -> tuple[Int[Array, "*B"], Float[Array, "*B"]]:
    """Chooses a token from each row.

    Args:
      noise: from `noise`, [*batch, V].
      logits: [*batch, V].

    Returns:
      Tokens [*batch], and their log-probabilities under the model itself,
      before temperature and truncation, in nats.
    """
    if noise is None:
      token = jnp.argmax(logits, axis=-1)
    else:
      # The largest of logits plus Gumbel noise is a sample of the softmax.
      token = jnp.argmax(self.truncate(logits) + noise, axis=-1)
    token = token.astype(jnp.int32)
    scores = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    return token, scores - jax.nn.logsumexp(logits, axis=-1)

  def truncate(self, logits: Logits) -> Logits:
    """Divides by the temperature; -inf at tokens that cannot be chosen."""
    # Relative to the largest logit, since with a tiny temperature only the
    # others may then overflow, to -inf.
    logits = logits - logits.max(axis=-1, keepdims=True)
    logits = logits / max(self.temperature, 1e-30)
    if self.top_k and self.top_k < logits.shape[-1]:
      smallest = jax.lax.top_k(logits, self.top_k)[0][..., -1:]
      logits = _keep_from(smallest, logits)
    if self.top_p < 1:
      ordered = jnp.sort(logits, axis=-1, descending=True)
      probabilities = jax.nn.softmax(ordered, axis=-1)
      # A token is kept if the sum of those before it is below p, so the first
      # is always kept.
      before = jnp.cumsum(probabilities, axis=-1) - probabilities
      ordered = jnp.where(before < self.top_p, ordered, jnp.inf)
      logits = _keep_from(ordered.min(axis=-1, keepdims=True), logits)
    return logits


class Sampled(NamedTuple):
  """Tokens drawn by `sample`.

  Attributes:
    tokens: [batch, num_tokens] ids; after a stop token the rest of the row is
      filled with the first of `stop_tokens`.
    scores: [batch, num_tokens] log-probabilities in nats; 0 after a stop token.
    done: [batch], True where a stop token was drawn.
  """

  tokens: Int[Array, "B N"]
  scores: Float[Array, "B N"]
  done: Bool[Array, "B"]


def sample(
  step: Step,
  carry: Carry,
  logits: Float[Array, "B V"],
  key: PRNGKey,
  *,
  num_tokens: int,
  sampler: Sampler = Sampler(),
  stop_tokens: tuple[int, ...] = (),
  first: int | Int[Array, ""] = 0,
  done: Bool[Array, "B"] | None = None,
) -> tuple[Carry, Float[Array, "B V"], Sampled]:
  """Draws `num_tokens` tokens for each row, one after another.

  To draw a text block by block, pass the carry, logits and `done` of the
  previous block, the same key, and the number of tokens so far as `first`. The
  text does not depend on the size of the blocks.

  Args:
    step: `(carry, token [batch]) -> (carry, logits [batch, V])`.
    carry: the carry after the prompt, [batch, ...].
    logits: the logits after the prompt, [batch, V].
    key: PRNG key; token n is drawn with fold_in(key, n).
    num_tokens: number of tokens N to draw for each row.
    sampler: chooses a token from logits.
    stop_tokens: ids that end a row.
    first: the number n of the first token.
    done: [batch], True for rows that have ended already; None if none has.

  Returns:
    The carry and logits after the last token, and the `Sampled` tokens.
  """
  stops = jnp.asarray(stop_tokens, jnp.int32)
  ended = jnp.zeros(logits.shape[:1], bool) if done is None else done

  def draw_noise(number):
    return sampler.noise(jax.random.fold_in(key, number), logits.shape)

  numbers = first + jnp.arange(num_tokens)
  # Drawing the noise of all tokens at once is faster, if it fits in memory.
  in_bulk = num_tokens * logits.size <= BULK_NOISE

  def time_step(state, drawn):
    carry, logits, done = state
    noise = drawn if in_bulk else draw_noise(drawn)
    token, score = sampler(noise, logits)
    if stop_tokens:
      token = jnp.where(done, stops[0], token)
      score = jnp.where(done, 0.0, score)
      done = done | (token[:, None] == stops[None, :]).any(axis=1)
    carry, logits = step(carry, token)
    return (carry, logits, done), (token, score)

  (carry, logits, ended), (tokens, scores) = jax.lax.scan(
    time_step,
    (carry, logits, ended),
    jax.vmap(draw_noise)(numbers) if in_bulk else numbers,
    length=num_tokens,
  )
  return carry, logits, Sampled(tokens.T, scores.T, ended)


def _keep_from(smallest, logits):
  """The logits, with -inf where they are below `smallest`."""
  least = jnp.broadcast_to(smallest, logits.shape)
  return jnp.where(logits >= least, logits, -jnp.inf)
