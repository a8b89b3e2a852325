"""Samples text from a trained language model.

  python -m experiments.generate --workdir=runs/pydoc --prompt='The '
  python -m experiments.generate --workdir=runs/pydoc --weights=int8

The text streams to stdout as it is drawn; the last line is one JSON object.
"""

import dataclasses
import functools
import sys
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import config as config_lib
from experiments import language_model, runner
from recurrent import decoding
from recurrent.errors import ConfigError

BLOCK = 256  # tokens a call


@dataclasses.dataclass(frozen=True)
class Config(config_lib.Checked):
  """Flags of generate.

  Args:
    prompt: what the text begins with.
    num_tokens: tokens to draw after the prompt.
    temperature: 1 samples the model as it is, 0 takes the likeliest token.
    top_k: only the k likeliest tokens; 0: all.
    top_p: only the likeliest tokens that together reach p; 1: all.
    num_samples: texts to draw at once.
    stop: end a text at this token, such as a newline; empty: never.
    seed: another seed, another text.
    weights: what the matrices are kept in: float32, bfloat16 or int8; evaluate
      has the same flag, and tells what the narrow ones cost.
  """

  prompt: str = "The "
  num_tokens: int = 400
  temperature: float = 0.8
  top_k: int = 0
  top_p: float = 1.0
  num_samples: int = 1
  stop: str = ""
  seed: int = 0
  weights: str = "float32"

  POSITIVE: typing.ClassVar[frozenset[str]] = frozenset(
    "num_tokens num_samples".split()
  )
  CHOICES: typing.ClassVar[dict[str, Sequence[str]]] = {
    "weights": decoding.DTYPES
  }

  def check(self):
    """Raises ConfigError at the first value that cannot be meant."""
    super().check()
    self.sampler()

  def sampler(self) -> decoding.Sampler:
    """How a token is chosen."""
    try:
      return decoding.Sampler(self.temperature, self.top_k, self.top_p)
    except ValueError as error:
      raise ConfigError(f"--{error}", "--help tells the ranges") from error


def run(config: Config) -> dict[str, Any]:
  """Prints the samples; returns the speed and their log-probabilities."""
  trained, tokenizer = language_model.read(config.workdir)
  prompt = language_model.encode_prompt(tokenizer, config.prompt)
  stop_tokens = ()
  if config.stop:
    stop_tokens = tuple(language_model.encode_prompt(tokenizer, config.stop))
    if len(stop_tokens) != 1:
      raise ConfigError(
        f"--stop={config.stop!r} is {len(stop_tokens)} tokens",
        "give one token, such as a newline",
      )
  graphdef, params, step = runner.load_params(
    trained,
    lambda rngs: language_model.make_model(trained, tokenizer.vocab_size, rngs),
  )
  # A first short run compiles, so that the second measures decoding.
  stream = Stream(
    graphdef, params, config.sampler(), stop_tokens, config.weights
  )
  rows = np.tile(prompt, (config.num_samples, 1))
  key = jax.random.key(config.seed)
  next(stream(rows, key, BLOCK))
  begun = time.perf_counter()
  tokens, scores = [], []
  for block in stream(rows, key, config.num_tokens):
    tokens.append(block.tokens)
    scores.append(block.scores)
    if config.num_samples == 1:
      if len(tokens) == 1:
        sys.stdout.write(config.prompt)
      sys.stdout.write(tokenizer.decode(block.tokens[0]))
      sys.stdout.flush()
  seconds = time.perf_counter() - begun
  drawn = np.concatenate(tokens, axis=1)
  if config.num_samples > 1:
    for number, row in enumerate(drawn):
      print(f"--- sample {number + 1}")
      print(config.prompt + tokenizer.decode(row))
  print()
  return {
    "step": step,
    "tokens": int(drawn.size),
    "tokens_per_second": drawn.size / seconds,
    "weight_bytes": stream.weight_bytes,
    "log_probabilities": np.concatenate(scores, 1).sum(axis=1).tolist(),
  }


class _Compiled(NamedTuple):
  """What a `Stream` runs for a number of rows."""

  packed: decoding.Packed
  read: Callable[[jax.Array], tuple[Any, jax.Array]]
  draw: Callable[..., tuple[Any, jax.Array, decoding.Sampled]]


class Stream:
  """Draws text block by block from a language model.

  Args:
    graphdef: of the model.
    params: of the model.
    sampler: how a token is chosen.
    stop_tokens: ids that end a row.
    weights: dtype of the matrices, one of `decoding.DTYPES`. In narrow ones the
      prompt is read as well, token by token.
  """

  def __init__(
    self,
    graphdef: nnx.GraphDef,
    params: Any,
    sampler: decoding.Sampler,
    stop_tokens: tuple[int, ...] = (),
    weights: str = "float32",
  ):
    self._graphdef, self._params = graphdef, params
    self._sampler, self._stop_tokens = sampler, stop_tokens
    self._dtype = weights
    self._compiled: dict[int, _Compiled] = {}

  @property
  def weight_bytes(self) -> int:
    """Of the weights that blocks of tokens are drawn with."""
    return max(x.packed.bytes for x in self._compiled.values())

  def _compile(self, rows: int) -> _Compiled:
    """What draws so many rows; compiled at first use."""
    if rows in self._compiled:
      return self._compiled[rows]
    packed, initial = language_model.pack(
      self._graphdef, self._params, rows, self._dtype
    )

    def read_in_bulk(params, tokens):
      carry, logits = nnx.merge(self._graphdef, params)(None, tokens)
      return carry, logits[:, -1]

    def read(weights, carry, tokens):
      by_tick = tokens.T
      both, _ = jax.lax.scan(
        lambda both, token: (packed.step(weights, both[0], token), None),
        packed.step(weights, carry, by_tick[0]),
        by_tick[1:],
      )
      return both

    def draw(weights, carry, logits, key, first, done):
      return decoding.sample(
        functools.partial(packed.step, weights),
        carry,
        logits,
        key,
        num_tokens=BLOCK,
        sampler=self._sampler,
        stop_tokens=self._stop_tokens,
        first=first,
        done=done,
      )

    self._compiled[rows] = _Compiled(
      packed,
      functools.partial(jax.jit(read_in_bulk), self._params)
      if self._dtype == "float32"
      else functools.partial(jax.jit(read), packed.weights, initial),
      jax.jit(draw, donate_argnames=("carry", "logits")),
    )
    return self._compiled[rows]

  def __call__(
    self, prompts: np.ndarray, key: jax.Array, num_tokens: int
  ) -> Iterator[decoding.Sampled]:
    """Yields blocks of tokens until there are enough, or all rows ended.

    Args:
      prompts: [batch, time] ids.
      key: PRNG key.
      num_tokens: tokens a row.

    Yields:
      NumPy arrays of at most BLOCK tokens a row.
    """
    packed, read, draw = self._compile(len(prompts))
    carry, logits = read(jnp.asarray(prompts))
    done = jnp.zeros(len(prompts), bool)
    ahead = None
    for first in range(0, num_tokens, BLOCK):
      carry, logits, drawn = draw(
        packed.weights, carry, logits, key, jnp.int32(first), done
      )
      done = drawn.done
      # The device draws this block while the host reads the one before.
      if ahead is not None:
        block = jax.device_get(ahead)
        yield block
        if block.done.all():
          return
      ahead = drawn
    drawn = jax.device_get(ahead)
    wanted = num_tokens - first
    yield drawn._replace(
      tokens=drawn.tokens[:, :wanted], scores=drawn.scores[:, :wanted]
    )


if __name__ == "__main__":
  runner.main(run, Config)
