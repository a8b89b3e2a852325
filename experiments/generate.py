"""Samples text from a language model; translates or summarises what is typed.

  python -m experiments.generate --workdir=runs/pydoc --prompt='The '
  python -m experiments.generate --workdir=runs/pydoc --weights=int8

The text is printed to stdout while it is drawn; the last line is a JSON object.
With the workdir of a translator or summariser, the answer to the prompt is
printed, or without a prompt the answer to every line of stdin; the JSON object
has all that the beams found, with scores. Flags of sampling are refused then.
"""

import dataclasses
import functools
import sys
import time
import typing
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np

from experiments import config as config_lib
from experiments import runner
from experiments import text as text_lib
from recurrent import decoding
from recurrent.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Config(config_lib.Checked):
  """Flags of text generation.

  Args:
    prompt: text with which each sample begins.
    num_tokens: number of tokens to draw after the prompt.
    temperature: divides the logits; 1 samples from the model's distribution, 0
      takes the most likely token.
    top_k: draw from the k most likely tokens only; 0: from all.
    top_p: draw from the most likely tokens whose probabilities sum to p only;
      1: from all.
    num_samples: number of texts to draw at once.
    stop: a token that ends a text, such as a newline; empty: none.
    seed: seed of the random choice of tokens.
    weights: dtype in which the weight matrices are stored: float32, bfloat16 or
      int8. Run evaluate with the same flag to see how much accuracy it costs.
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
    """Raises ConfigError if a value is wrong."""
    super().check()
    self.sampler()

  def sampler(self) -> decoding.Sampler:
    """The sampler that the flags describe."""
    try:
      return decoding.Sampler(self.temperature, self.top_k, self.top_p)
    except ValueError as error:
      raise ConfigError(f"--{error}", "--help tells the ranges") from error


def run(config: Config) -> dict[str, Any]:
  """Prints the samples as they are drawn.

  Returns:
    A dict of: `step`, that of the checkpoint; `tokens`, the number of tokens
    drawn, without stop tokens; `tokens_per_second` of decoding, without
    compilation; `weight_bytes`, the bytes of weights that each token reads;
    `log_probabilities` of the samples in nats, with the stop token; `texts`,
    the samples with the prompt.

  Raises:
    UserError: if a value is wrong, or the workdir has no model.
  """
  config.check()
  experiment = runner.find_experiment(config.workdir)
  if hasattr(experiment, "make_answer"):
    return _answer(config, experiment)
  experiment = runner.find_experiment(
    config.workdir, "load", "generates no text"
  )
  trained, tokenizer = experiment.load(config.workdir)
  prompt = text_lib.encode(tokenizer, config.prompt, "prompt")
  stop_tokens = ()
  if config.stop:
    stop_tokens = tuple(
      text_lib.encode(tokenizer, config.stop, "stop").tolist()
    )
    if len(stop_tokens) != 1:
      raise ConfigError(
        f"--stop={config.stop!r} is {len(stop_tokens)} tokens",
        "give one token, such as a newline",
      )
  stream = decoding.Stream(
    trained.graphdef,
    trained.params,
    config.sampler(),
    stop_tokens,
    config.weights,
  )
  start = stream.read(np.tile(prompt, (config.num_samples, 1)))
  draw = functools.partial(stream.draw, start, jax.random.key(config.seed))
  texts = [config.prompt] * config.num_samples
  decoders = [tokenizer.incremental_decoder() for _ in texts]
  tokens, scores = 0, np.zeros(len(texts))
  times: list[float] = []

  def show(new: list[str]) -> None:
    for row, text in enumerate(new):
      texts[row] += text
    if len(texts) == 1:  # Several at once are printed one after another.
      sys.stdout.write(texts[0] if not times else new[0])
      sys.stdout.flush()

  for block in draw(config.num_tokens):
    rows = zip(decoders, block.tokens, block.lengths, strict=True)
    show([decoder.decode(row[:length]) for decoder, row, length in rows])
    times.append(time.perf_counter())
    tokens += int(block.lengths.sum())
    scores += block.scores.sum(axis=1)
  show([decoder.decode([], final=True) for decoder in decoders])
  if len(texts) > 1:
    for number, text in enumerate(texts, 1):
      print(f"--- sample {number}\n{text}")
  print()
  if len(times) == 1:
    # The time of the only block includes the compilation, so a block is drawn
    # again and timed. With stop tokens the device may still be drawing another
    # block, which is waited for first.
    for _ in range(2 if stop_tokens else 1):
      times = [time.perf_counter()]
      next(draw(decoding.BLOCK))
      times.append(time.perf_counter())
  drawn = (len(times) - 1) * decoding.BLOCK * len(texts)
  return {
    "step": trained.step,
    "tokens": tokens,
    "tokens_per_second": drawn / (times[-1] - times[0]),
    "weight_bytes": stream.weight_bytes,
    "log_probabilities": scores.tolist(),
    "texts": texts,
  }


def _answer(config: Config, experiment: ModuleType) -> dict[str, Any]:
  """Answers the prompt, or every line of stdin; see `make_answer`."""
  given = config_lib.not_default(config)
  if idle := given.keys() - {"workdir", "prompt"}:
    raise ConfigError(
      f"--{min(idle)} does nothing with a run that answers a prompt",
      "leave it out",
    )
  answer = experiment.make_answer(config.workdir)
  answers = []
  lines = [config.prompt] if "prompt" in given else sys.stdin
  for line in lines:
    for found in answer([line.rstrip("\n")]):
      answers.append(found)
      print(found["text"], flush=True)
  return {
    "texts": [found["text"] for found in answers],
    "n_best": [found["n_best"] for found in answers],
  }


if __name__ == "__main__":
  runner.main(run, Config)
