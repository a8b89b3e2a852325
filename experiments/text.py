"""Text in experiments: the flags of a tokenizer, and texts that users type."""

import dataclasses
import os
import textwrap
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import config as config_lib
from experiments import runner
from recurrent import decoding
from recurrent.data import tokenizers
from recurrent.errors import ConfigError

SAMPLE_TOKENS = 200
TOKENIZER = "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(config_lib.RunConfig):
  """Flags of a tokenizer.

  Args:
    tokenizer: kind of tokens: char, byte, word or sentencepiece.
    vocab_size: vocabulary size of the tokenizer sentencepiece, or largest size
      for word; 0: the tokenizer's default.
    min_count: least number of occurrences of a word in the vocabulary, for the
      tokenizer word; 0: its default.
  """

  tokenizer: str = "char"
  vocab_size: int = 0
  min_count: int = 0

  CHOICES: typing.ClassVar[dict[str, Sequence[str]]] = {
    "tokenizer": tuple(tokenizers.TOKENIZERS),
  }
  NEEDS: typing.ClassVar[dict[str, tuple[str, Sequence[Any]]]] = {
    "vocab_size": ("tokenizer", ("word", "sentencepiece")),
    "min_count": ("tokenizer", ("word",)),
  }

  def build_tokenizer(
    self, text: str, file: str = TOKENIZER
  ) -> tokenizers.Tokenizer:
    """Builds the tokenizer that the flags describe from the train text.

    If the workdir has one already, it is that one; and with --init_from it is
    that of the other run, whose parameters stand for its tokens.

    Args:
      text: the train text.
      file: name of the file in a workdir that holds this tokenizer.
    """
    path = Path(self.workdir) / file
    # Not `Path.exists`, which fails where a name is too long for a folder.
    found = os.path.exists(path)
    if self.init_from and not found:
      path = runner.find_source(self.init_from).workdir / file
    if self.init_from or found:
      return tokenizers.load(path)
    return tokenizers.build(
      self.tokenizer,
      text,
      vocab_size=self.vocab_size or None,
      min_count=self.min_count or None,
    )


def make_sample(
  tokenizer: tokenizers.Tokenizer, prompt: np.ndarray, seed: int
) -> Callable[[nnx.GraphDef], Callable[[Any, int], str]]:
  """Makes the `Task.make_sample` of models that continue a text.

  Args:
    tokenizer: decodes the drawn tokens.
    prompt: ids [tokens] of the text to continue.
    seed: the sample of a step is drawn with fold_in(key(seed), step).
  """

  def make(graphdef):
    @jax.jit
    def draw(params, key):
      model = nnx.merge(graphdef, params)
      carry, logits = model(None, jnp.asarray(prompt, jnp.int32)[None])
      return decoding.sample(
        model.decoder(),
        carry,
        logits[:, -1],
        key,
        num_tokens=SAMPLE_TOKENS,
        sampler=decoding.Sampler(0.8),
      )[2].tokens

    def sample(params, step):
      key = jax.random.fold_in(jax.random.key(seed), step)
      ids = np.asarray(draw(params, key).addressable_data(0))[0]
      return f"--- a sample at step {step}:\n" + textwrap.indent(
        tokenizer.decode(ids), "  | ", lambda _: True
      )

    return sample

  return make


def encode(tokenizer: tokenizers.Tokenizer, text: str, flag: str) -> np.ndarray:
  """Encodes a text that the user gives with a flag, as int32 ids [tokens].

  Raises:
    ConfigError: if the text is empty, or the vocabulary lacks a part of it.
  """
  if unknown := tokenizer.unknown(text):
    raise ConfigError(
      f"--{flag} has what the model's vocabulary lacks:"
      f" {', '.join(map(repr, unknown))}",
      "leave that out; the vocabulary is in tokenizer.json of the workdir",
    )
  if not text:
    raise ConfigError(f"--{flag} is empty", "give at least one character")
  return np.asarray(tokenizer.encode(text), np.int32)
