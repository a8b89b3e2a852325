"""A trained language model that takes part in the search for transcripts."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import language_model
from recurrent.data import tokenizers
from recurrent.decoding import ctc
from recurrent.errors import ConfigError


def load(
  workdir: str, tokenizer: tokenizers.CharTokenizer, weight: float
) -> Callable[[int], ctc.LanguageModel]:
  """Loads a language model of characters.

  Args:
    workdir: directory of a run of `language_model`. A newline, or else a space,
      stands before a text.
    tokenizer: that of the transcripts; its id 0 is the blank.
    weight: factor of the log-probabilities.

  Returns:
    `make(rows)`, the language model for a batch of so many rows. It gives
    probabilities to the symbols of the transcripts only.

  Raises:
    CheckpointError: if the directory has no such run.
    ConfigError: if its tokens are no characters, or it lacks one.
  """
  trained, theirs = language_model.load(workdir)
  if not isinstance(theirs, tokenizers.CharTokenizer):
    raise ConfigError(
      f"--language_model={workdir} has tokens of the kind {theirs.name}",
      "train one with --tokenizer=char",
    )
  if lacking := theirs.unknown(tokenizer.alphabet):
    raise ConfigError(
      f"--language_model={workdir} lacks symbols of the transcripts:"
      f" {', '.join(map(repr, lacking))}",
      "train it on texts that have them",
    )
  ids = jnp.asarray(np.append(0, theirs.encode(tokenizer.alphabet)), jnp.int32)
  before = " " if theirs.unknown("\n") else "\n"
  begin = int(theirs.encode(before)[0])

  def make(rows: int) -> ctc.LanguageModel:
    model = nnx.merge(trained.graphdef, trained.params)
    step = model.decoder()

    def say(carry, token):
      carry, logits = step(carry, ids[token])
      return carry, logits[:, ids]

    carry, logits = model(None, jnp.full((rows, 1), begin, jnp.int32))
    return ctc.LanguageModel(say, carry, logits[:, -1][:, ids], weight)

  return make
