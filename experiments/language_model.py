"""Trains a language model on text: recurrent layers, or a Transformer.

  python -m experiments.language_model --workdir=runs/pydoc

It trains by truncated back-propagation through time: each row of the batch
reads one contiguous segment of the text, window by window, and the carry of one
window is the initial carry of the next. Results are in bits per character (bpc)
of the text, for any tokenizer that can encode every text. The tokenizer word
cannot, so its results are the perplexity of its tokens and the share of them
that are unknown.
"""

import dataclasses
import functools
import hashlib
import math
import os
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import network, runner, text
from recurrent import data, decoding, losses, restart
from recurrent.data import splits, tokenizers
from recurrent.metrics import Mean
from recurrent.models import LanguageModel
from recurrent.training import dynamic
from recurrent.types import Carry, PRNGKey

NAME = "language_model"
LARGE = 1 << 30  # bytes of a text file that is not read into the memory
DYNAMIC_WINDOW = 20  # tokens of a window in dynamic evaluation
DYNAMIC_STATISTICS = 400  # windows of the train split for gradient statistics


@dataclasses.dataclass(frozen=True)
class Config(text.TokenizerConfig, network.NetworkConfig):
  """Flags of the language model; the defaults are the recipe of README.md.

  Args:
    dataset: text to train on: pydoc, stdlib, or a text dataset of the TFDS
      catalogue that has been prepared. The share of valid and test that also
      occurs in the splits before them is logged.
    data_dir: directory in which the dataset was prepared; by default that of
      TFDS.
    text_file: path of a UTF-8 text file to train on, instead of a dataset. With
      --tokenizer=byte a file of more than 1 GiB is read as needed, so that it
      may be larger than the memory; its shares are then those of its bytes.
    splits: shares of train, valid and test in percent, in the order of the
      text, for a text without splits of its own.
    embedding_features: width of the embedding; with --tied it is that of
      --features.
    tied: share the weights of the embedding and the output layer.
    embedding_dropout: dropout rate of the embedded inputs, with one mask for a
      whole window.
    embedding_row_dropout: rate at which whole rows of the embedding matrix,
      that is tokens, are dropped.
    output_dropout: dropout rate of the last layer's outputs, with one mask for
      a whole window.
    activation_penalty: weight of the penalty on the mean square of the outputs
      (AR).
    temporal_penalty: weight of the penalty on the mean squared change of the
      outputs between time steps (TAR).
    seq_len: tokens of a training window, through which gradients are
      propagated.
    eval_rows: number of segments of a split that an evaluation reads in
      parallel.
    eval_warm_up: number of tokens that an evaluation reads before each segment
      without scoring them.
  """

  dataset: str = "pydoc"
  data_dir: str = ""
  text_file: str = ""
  splits: str = "90,5,5"
  embedding_features: int = 128
  tied: bool = False
  embedding_dropout: float = 0.0
  embedding_row_dropout: float = 0.0
  output_dropout: float = 0.4
  activation_penalty: float = 0.0
  temporal_penalty: float = 0.0
  seq_len: int = 64
  eval_rows: int = 8
  eval_warm_up: int = 256
  # Defaults that differ from those of the base classes.
  cell: str = "lstm_coupled"
  features: int = 448
  steps: int = 4600
  batch_size: int = 16
  eval_every: int = 920
  learning_rate: float = 5e-3
  schedule: str = "cosine"
  final_learning_rate: float = 0.5
  warmup_steps: int = 100
  weight_decay: float = 0.2
  b2: float = 0.99
  # An average over about 500 steps, which allows a high learning rate.
  ema: float = 0.998

  POSITIVE: typing.ClassVar[frozenset[str]] = frozenset(
    "embedding_features seq_len eval_rows".split()
  )
  BELOW_ONE: typing.ClassVar[frozenset[str]] = frozenset(
    "embedding_dropout embedding_row_dropout output_dropout".split()
  )
  SMOKE: typing.ClassVar[dict[str, Any]] = {
    "embedding_features": 8,
    "seq_len": 16,
  }
  NEEDS: typing.ClassVar[dict[str, tuple[str, Sequence[Any]]]] = {
    "dataset": ("text_file", ("",)),
    "data_dir": ("text_file", ("",)),
    "embedding_features": ("tied", (False,)),
  }

  def check(self):
    """Raises ConfigError if a value is wrong."""
    super().check()
    splits.parse_shares(self.splits)


def loss(
  model: LanguageModel,
  carry: Carry,
  batch: dict[str, jax.Array],
  key: PRNGKey | None,
  *,
  activation_penalty: float = 0.0,
  temporal_penalty: float = 0.0,
) -> tuple[jax.Array, tuple[Carry, dict[str, Mean]]]:
  """Mean cross-entropy of a window in nats per token, plus penalties.

  Args:
    model: the model.
    carry: the carry after the previous window.
    batch: `inputs` and `targets`, [batch, time] ids. Optional: `restart`
      [batch], True where a row starts from the initial carry; `mask`
      [batch, time], True where a token is real; `weights` [batch, time] of the
      targets.
    key: PRNG key of the dropout masks; None for evaluation.
    activation_penalty: weight of `losses.activation_penalty`.
    temporal_penalty: weight of `losses.temporal_activation_penalty`.

  Returns:
    The loss, and a pair of the next carry and the metrics: `nats`, the mean
    cross-entropy.
  """
  if (new := batch.get("restart")) is not None:
    carry = restart(new, model.initial_carry(len(new)), carry)
  mask = batch.get("mask")
  carry, raw, dropped = model.activations(
    carry, batch["inputs"], mask=mask, key=key
  )
  nats = Mean.of(
    losses.cross_entropy(model.logits(dropped), batch["targets"]),
    batch.get("weights"),
  )
  total = nats.value()
  if activation_penalty:
    total += activation_penalty * losses.activation_penalty(dropped, mask)
  if temporal_penalty:
    total += temporal_penalty * losses.temporal_activation_penalty(raw, mask)
  return total, (carry, {"nats": nats})


def make_model(
  config: Config, vocab_size: int, rngs: nnx.Rngs
) -> LanguageModel:
  """Makes the model that the flags describe."""
  width = config.features if config.tied else config.embedding_features
  return LanguageModel(
    vocab_size,
    network.make_stack(config, width, rngs=rngs),
    tied=config.tied,
    embedding_dropout=config.embedding_dropout,
    embedding_row_dropout=config.embedding_row_dropout,
    output_dropout=config.output_dropout,
    dtype=jnp.dtype(config.dtype),
    rngs=rngs,
  )


def make_task(config: Config) -> runner.Task:
  """Makes the `Task` of the runner: data, model, loss and evaluation."""
  config.check_device()
  tokenizer, tokens, density = _load(config)

  def describe(split, nats):
    found = {f"{split}_loss": nats}
    if tokenizer.exact:
      return {**found, f"{split}_bpc": nats / math.log(2) * density[split]}
    found[f"{split}_perplexity"] = float(np.exp(nats))
    if split != "train":
      found[f"{split}_unknown_share"] = float((tokens[split] == 0).mean())
    return found

  def score_dynamically(graphdef, params, split, learning_rate, decay):
    found = dynamic.evaluate(
      graphdef,
      loss,
      params,
      nnx.merge(graphdef, params).initial_carry(1),
      data.EvalStreams(
        tokens["train"][-DYNAMIC_WINDOW * DYNAMIC_STATISTICS - 1 :],
        rows=1,
        seq_len=DYNAMIC_WINDOW,
      ),
      data.EvalStreams(tokens[split], rows=1, seq_len=DYNAMIC_WINDOW),
      learning_rate,
      decay,
    )
    return describe(split, found["nats"].compute())

  def score_packed(graphdef, params, split, weights):
    step, carry = decoding.pack_model(
      graphdef, params, config.eval_rows, weights
    )
    nats = decoding.score(step, carry, _windows(config, tokens[split]))
    return describe(split, nats.compute())

  return runner.Task(
    name=NAME,
    make_model=lambda rngs: make_model(config, tokenizer.vocab_size, rngs),
    make_carry=lambda model, rows: model.initial_carry(rows),
    loss=functools.partial(
      loss,
      activation_penalty=config.activation_penalty,
      temporal_penalty=config.temporal_penalty,
    ),
    batches=data.ContiguousBatches(
      tokens["train"],
      batch_size=config.batch_size,
      seq_len=config.seq_len,
      seed=config.seed,
    ),
    units=("tokens", lambda batch: batch["inputs"].size),
    splits={name: _windows(config, ids) for name, ids in tokens.items()},
    objective="valid_bpc" if tokenizer.exact else "valid_perplexity",
    describe=lambda split, scores: describe(split, scores.means["nats"]),
    make_sample=text.make_sample(tokenizer, tokens["valid"][:64], config.seed),
    data_sha256=_sha256(tokens["train"]),
    save=lambda path: tokenizer.save(path / "tokenizer.json"),
    modes={"dynamic": score_dynamically, "packed": score_packed},
    next_command="experiments.generate --prompt='The '",
  )


def _load(config: Config):
  """The tokenizer, the tokens of each split, and how many a character takes.

  Tokens per character, multiplied by bits per token, are bits per character.
  """
  shares = splits.parse_shares(config.splits)
  if config.tokenizer == "byte" and _is_large(config.text_file):
    parts = data.split_file(config.text_file, shares)
    density = {k: len(v) / v.characters() for k, v in parts.items()}
    return config.build_tokenizer(""), parts, density
  corpus = data.load_text(
    config.dataset,
    text_file=config.text_file or None,
    data_dir=config.data_dir or None,
    shares=shares,
  )
  tokenizer = config.build_tokenizer(corpus.train)
  tokens = {k: tokenizer.encode(v) for k, v in corpus._asdict().items()}
  density = {k: len(tokens[k]) / len(v) for k, v in corpus._asdict().items()}
  return tokenizer, tokens, density


def _is_large(text_file: str) -> bool:
  """Whether a file is to be read as needed, and not into the memory."""
  path = os.path.expanduser(text_file)
  return os.path.isfile(path) and os.path.getsize(path) > LARGE


def _sha256(tokens: np.ndarray | data.FileTokens) -> str:
  if isinstance(tokens, data.FileTokens):
    return tokens.sha256()
  return hashlib.sha256(tokens.tobytes()).hexdigest()


def _windows(config: Config, tokens: np.ndarray) -> data.EvalStreams:
  """The windows in which the evaluation reads the tokens of a split."""
  return data.EvalStreams(
    tokens,
    rows=config.eval_rows,
    seq_len=max(config.seq_len, 128),
    warm_up=config.eval_warm_up,
  )


def load(workdir: str | Path) -> tuple[runner.Trained, tokenizers.Tokenizer]:
  """Loads the trained model of a run and its tokenizer, without the data.

  Raises:
    CheckpointError: if the directory holds no run of a language model.
  """
  config = runner.read_config(workdir, NAME, Config)
  tokenizer = tokenizers.load(Path(workdir) / "tokenizer.json")
  make = functools.partial(make_model, config, tokenizer.vocab_size)
  return runner.load_params(config, make), tokenizer


def predict(workdir: str, file: str) -> Iterator[dict[str, Any]]:
  """Scores every line of a text file, each after all lines before it.

  Args:
    workdir: directory of the run.
    file: path of a UTF-8 text.

  Yields:
    For each line, its `text`, and `nats`, the negative log-probability of its
    tokens and of the newline at its end. The first token of the text has no
    score.

  Raises:
    UserError: if the workdir has no model, or the file is no such text.
  """
  trained, tokenizer = load(workdir)
  lines = data.read_text(file).splitlines(keepends=True)
  encoded = [tokenizer.encode(line) for line in lines]
  windows = data.EvalStreams(np.concatenate(encoded), rows=1, seq_len=256)
  step, carry = decoding.pack_model(trained.graphdef, trained.params, 1)
  nats = np.concatenate([*decoding.score_tokens(step, carry, windows)], axis=1)
  # The first token is read and not predicted.
  nats = np.pad(nats[0], (1, 0))
  ends = np.cumsum([len(ids) for ids in encoded])
  for line, found in zip(lines, np.split(nats, ends), strict=False):
    yield {"text": line.removesuffix("\n"), "nats": float(found.sum())}


def run(config: Config) -> dict[str, Any]:
  """Trains; returns the final metrics."""
  return runner.train(config, make_task)


if __name__ == "__main__":
  runner.main(run, Config)
