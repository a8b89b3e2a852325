"""Streaming: draws tokens from an autoregressive model block by block.

The device draws a block while the host reads the previous one. All blocks have
the same size, so one program is compiled for any number of tokens.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from recurrent.decoding.packing import pack_model
from recurrent.decoding.sampling import Sampled, Sampler, Step, sample
from recurrent.types import Array, Carry, Float, Int, PRNGKey

BLOCK = 256  # Tokens of each row that the device draws at a time.
WHOLE_MODEL = Sampler()  # Samples the model's distribution without a change.


class Block(NamedTuple):
  """A block of n tokens of each row, as NumPy arrays.

  Attributes:
    tokens: [batch, n] ids; after a row's stop token, more stop tokens.
    scores: [batch, n] log-probabilities in nats; 0 after a stop token.
    lengths: [batch], the number of tokens of each row before its stop token: n
      if it has none, 0 if the row had ended before this block.
  """

  tokens: Int[np.ndarray, "B N"]
  scores: Float[np.ndarray, "B N"]
  lengths: Int[np.ndarray, "B"]


def read(
  step: Step, carry: Carry, tokens: Int[Array, "B T"]
) -> tuple[Carry, Float[Array, "B V"]]:
  """Reads a prompt with a decoding step, one token after another.

  Args:
    step: `(carry, token [batch]) -> (carry, logits [batch, V])`; see `stream`.
    carry: the initial carry, [batch, ...].
    tokens: [batch, time] ids, with at least one time step.

  Returns:
    The carry and the logits after the last token.

  Raises:
    ValueError: if `tokens` has another rank, or no time step.
  """
  tokens = jnp.asarray(tokens, jnp.int32)
  if tokens.ndim != 2 or not tokens.shape[1]:
    raise ValueError(
      "tokens must be [batch, time] with at least one time step, got"
      f" {tokens.shape}"
    )
  return _read(_with_weights(step), carry, tokens)


def stream(
  step: Step,
  carry: Carry,
  logits: Float[Array, "B V"],
  key: PRNGKey,
  *,
  num_tokens: int,
  block: int = BLOCK,
  sampler: Sampler = WHOLE_MODEL,
  stop_tokens: tuple[int, ...] = (),
) -> Iterator[Block]:
  """Draws tokens block by block.

  For any size of `block`, the tokens equal those of `sample` with the same
  arguments.

  Args:
    step: `(carry, token [batch]) -> (carry, logits [batch, V])`. Pass a step
      with weights as `jax.tree_util.Partial(step, weights)`: the weights are
      then arguments of the compiled program, and later calls with the same
      function reuse that program. The weights of any other function are
      compiled into the program as constants.
    carry: the carry after the prompt, [batch, ...]. It is not donated.
    logits: the logits after the prompt, [batch, V].
    key: PRNG key; token n is drawn with fold_in(key, n).
    num_tokens: number of tokens to draw for each row.
    block: tokens per block. The device always draws whole blocks; tokens of the
      last one beyond `num_tokens` are cut off.
    sampler: chooses a token from logits.
    stop_tokens: ids that end a row.

  Yields:
    A `Block` of at most `block` tokens for each row, until there are
    `num_tokens` tokens or every row has ended.

  Raises:
    ValueError: if `num_tokens` is negative or `block` not positive.
  """
  if num_tokens < 0:
    raise ValueError(f"num_tokens must be 0 or more, got {num_tokens}")
  if block < 1:
    raise ValueError(f"block must be 1 or more, got {block}")
  draw = functools.partial(
    _draw,
    _with_weights(step),
    num_tokens=block,
    sampler=sampler,
    stop_tokens=stop_tokens,
  )
  return _blocks(draw, carry, logits, key, num_tokens, block, stop_tokens)


class Stream:
  """Draws tokens block by block from a model, with packed weights.

  Args:
    graphdef: graph definition of a model with the methods `decoder` and
      `initial_carry`, such as `models.LanguageModel`.
    params: parameters of the model.
    sampler: chooses a token from logits.
    stop_tokens: ids that end a row.
    weights: dtype of the weight matrices, one of `decoding.DTYPES`.
    block: tokens of each row that the device draws at a time.

  Attributes:
    weight_bytes: the bytes of weights that each token reads, once a prompt has
      been read.
  """

  def __init__(
    self,
    graphdef: nnx.GraphDef,
    params: Any,
    sampler: Sampler = WHOLE_MODEL,
    stop_tokens: tuple[int, ...] = (),
    weights: str = "float32",
    block: int = BLOCK,
  ):
    self._pack = functools.cache(
      lambda rows: pack_model(graphdef, params, rows, weights)
    )
    self._draw = functools.partial(
      stream, block=block, sampler=sampler, stop_tokens=stop_tokens
    )
    self.weight_bytes = 0

  def read(self, prompts: np.ndarray) -> tuple[Step, Carry, jax.Array]:
    """Reads prompts, [batch, time] ids.

    Returns:
      The decoding step, and the carry and logits after the prompts.
    """
    step, carry = self._pack(len(prompts))
    self.weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(step))
    return step, *read(step, carry, jnp.asarray(prompts))

  def draw(
    self, start: tuple[Step, Carry, jax.Array], key: jax.Array, num_tokens: int
  ) -> Iterator[Block]:
    """Draws `num_tokens` tokens for each row, starting from `read`'s result."""
    return self._draw(*start, key, num_tokens=num_tokens)

  def __call__(
    self, prompts: np.ndarray, key: jax.Array, num_tokens: int
  ) -> Iterator[Block]:
    """Reads prompts, and draws the tokens after them block by block."""
    return self.draw(self.read(prompts), key, num_tokens)


def _with_weights(step: Step) -> jax.tree_util.Partial:
  """The step as a `Partial`, so that it is a pytree that `jax.jit` takes."""
  if isinstance(step, jax.tree_util.Partial):
    return step
  return jax.tree_util.Partial(step)


@jax.jit
def _read(step, carry, tokens):
  """Implements `read`, whose arguments have been checked."""
  advance = lambda both, token: (step(both[0], token), None)
  by_time = tokens.T
  return jax.lax.scan(advance, step(carry, by_time[0]), by_time[1:])[0]


def _blocks(draw, carry, logits, key, num_tokens, block, stop_tokens):
  """The generator behind `stream`, whose arguments are checked at the call."""
  carry, logits, done = _begin(carry, logits)
  before = None
  for first in range(0, num_tokens, block):
    carry, logits, drawn = draw(carry, logits, key, jnp.int32(first), done)
    done = drawn.done
    if before is not None:
      # The device draws the new block while the host reads this one.
      before = jax.device_get(before)
      yield _cut(before, block, stop_tokens)
      if before.done.all():
        return
    before = drawn
  if before is not None:
    yield _cut(jax.device_get(before), num_tokens - first, stop_tokens)


@jax.jit
def _begin(carry, logits):
  """Copies carry and logits, since `_draw` donates them; no row has ended."""
  done = jnp.zeros_like(logits, shape=logits.shape[:1], dtype=bool)
  return *jax.tree.map(jnp.copy, (carry, logits)), done


@functools.partial(
  jax.jit,
  static_argnames=("num_tokens", "sampler", "stop_tokens"),
  donate_argnames=("carry", "logits"),
)
def _draw(step, carry, logits, key, first, done, **how):
  """Draws one block; compiled once for a step, its shapes and `how`."""
  return sample(step, carry, logits, key, first=first, done=done, **how)


def _cut(drawn: Sampled, wanted: int, stop_tokens: tuple[int, ...]) -> Block:
  """Cuts a block to `wanted` tokens and counts those before a stop token."""
  tokens, scores = np.asarray(drawn.tokens), np.asarray(drawn.scores)
  tokens = tokens[:, :wanted]
  stops = np.isin(tokens, stop_tokens)
  lengths = np.where(stops.any(1), stops.argmax(1), tokens.shape[1])
  return Block(tokens, scores[:, :wanted], lengths)
