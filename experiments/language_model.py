"""Trains a recurrent language model on text.

  python -m experiments.language_model --workdir=runs/pydoc

It trains by truncated back-propagation through time: each row of the batch
reads one contiguous segment of the text, window by window, and the carry of one
window is the initial carry of the next. Results are in bits per character (bpc)
of the text, for any tokenizer that can encode every text. The tokenizer word
cannot, so its results are the perplexity of its tokens and the share of them
that are unknown.
"""

import contextlib
import dataclasses
import functools
import hashlib
import math
import textwrap
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from experiments import runner
from recurrent import cells, data, decoding, losses, restart, sharding
from recurrent.data import tokenizers
from recurrent.errors import ConfigError
from recurrent.executors import Setting
from recurrent.masking import hold
from recurrent.metrics import Mean
from recurrent.models import LanguageModel
from recurrent.training import dynamic, loop
from recurrent.types import Carry, PRNGKey
from recurrent.unroll import (
  check_method,
  check_remat,
  resolve_method,
)

NAME = "language_model"
SAMPLE_TOKENS = 200
DYNAMIC_WINDOW = 20  # tokens of a window in dynamic evaluation
DYNAMIC_STATISTICS = 400  # windows of the train split for gradient statistics


@dataclasses.dataclass(frozen=True)
class Config(runner.TrainConfig):
  """Flags of the language model; the defaults are the recipe of README.md.

  Args:
    dataset: text to train on: pydoc, stdlib, or a text dataset of the TFDS
      catalogue that has been prepared. The share of valid and test that also
      occurs in the splits before them is logged.
    data_dir: directory in which the dataset was prepared; by default that of
      TFDS.
    text_file: path of a UTF-8 text file to train on, instead of a dataset.
    tokenizer: kind of tokens: char, byte, word or sentencepiece.
    vocab_size: vocabulary size of the tokenizer sentencepiece, or largest size
      for word; 0: the tokenizer's default.
    min_count: least number of occurrences of a word in the vocabulary, for the
      tokenizer word; 0: its default.
    cell: name of the recurrent cell, such as lstm or gru.
    layers: number of recurrent layers.
    features: width of every recurrent layer.
    embedding_features: width of the embedding; with --tied it is that of
      --features.
    tied: share the weights of the embedding and the output layer.
    residual: add the inputs of a layer to its outputs.
    dropout: dropout rate between layers, with a new mask at each time step.
    embedding_dropout: dropout rate of the embedded inputs, with one mask for a
      whole window.
    embedding_row_dropout: rate at which whole rows of the embedding matrix,
      that is tokens, are dropped.
    output_dropout: dropout rate of the last layer's outputs, with one mask for
      a whole window.
    recurrent_dropout: dropout rate of the hidden state in the recurrent
      product, with one mask for a whole window.
    weight_drop: dropout rate of the recurrent weights (DropConnect), with one
      mask for a whole window.
    update_dropout: dropout rate of the candidate of an LSTM or GRU.
    zoneout: probability that a hidden unit keeps its previous value at a time
      step.
    memory_zoneout: probability that a cell unit of an LSTM keeps its previous
      value at a time step.
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
  tokenizer: str = "char"
  vocab_size: int = 0
  min_count: int = 0
  cell: str = "lstm_coupled"
  layers: int = 1
  features: int = 448
  embedding_features: int = 128
  tied: bool = False
  residual: bool = False
  dropout: float = 0.0
  embedding_dropout: float = 0.0
  embedding_row_dropout: float = 0.0
  output_dropout: float = 0.4
  recurrent_dropout: float = 0.0
  weight_drop: float = 0.0
  update_dropout: float = 0.0
  zoneout: float = 0.0
  memory_zoneout: float = 0.0
  activation_penalty: float = 0.0
  temporal_penalty: float = 0.0
  seq_len: int = 64
  eval_rows: int = 8
  eval_warm_up: int = 256
  # Defaults that differ from those of RunConfig and OptimizerConfig.
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
    "layers features embedding_features seq_len eval_rows".split()
  )
  BELOW_ONE: typing.ClassVar[frozenset[str]] = frozenset(
    "dropout embedding_dropout embedding_row_dropout output_dropout"
    " recurrent_dropout weight_drop update_dropout zoneout"
    " memory_zoneout".split()
  )
  CHOICES: typing.ClassVar[dict[str, Sequence[str]]] = {
    "cell": cells.vector_cells(),
    "tokenizer": tuple(data.TOKENIZERS),
  }
  SMOKE: typing.ClassVar[dict[str, Any]] = {
    "features": 16,
    "embedding_features": 8,
    "seq_len": 16,
  }
  NEEDS: typing.ClassVar[dict[str, tuple[str, Sequence[Any]]]] = {
    "dataset": ("text_file", ("",)),
    "data_dir": ("text_file", ("",)),
    "vocab_size": ("tokenizer", ("word", "sentencepiece")),
    "min_count": ("tokenizer", ("word",)),
    "embedding_features": ("tied", (False,)),
  }

  def check(self):
    """Raises ConfigError if a value is wrong."""
    super().check()
    for name in ("activation_penalty", "temporal_penalty"):
      if getattr(self, name) < 0:
        raise ConfigError(f"--{name} is negative", "give 0 or more")
    try:
      cell = make_cell(self, self.features)
    except ValueError as error:
      raise ConfigError(
        f"--cell={self.cell}: {error}", "choose another cell, or leave that out"
      ) from error
    with _as_bad_method(self):
      check_method(cell, self.method)
    try:
      check_remat(cell, self.method, self.remat or None)
    except ValueError as error:
      raise ConfigError(
        f"--remat={self.remat}: {error}", "or leave --remat out"
      ) from error


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
    batch: `inputs` and `targets`, [batch, time] ids. Optional: `resets`
      [batch], True where the carry of a row is reset; `mask` [batch, time],
      True where a token is real; `weights` [batch, time] of the targets.
    key: PRNG key of the dropout masks; None for evaluation.
    activation_penalty: weight of `losses.activation_penalty`.
    temporal_penalty: weight of `losses.temporal_activation_penalty`.

  Returns:
    The loss, and a pair of the next carry and the metrics: `nats`, the mean
    cross-entropy.
  """
  resets = batch.get("resets")
  if resets is not None:
    carry = restart(resets, model.initial_carry(len(resets)), carry)
  mask = batch.get("mask")
  carry, raw, dropped = model.activations(
    carry, batch["inputs"], mask=mask, key=key
  )
  nats = Mean.of(
    losses.cross_entropy(model.logits(dropped), batch["targets"]),
    batch.get("weights"),
  )
  total = nats.total / nats.weight
  if activation_penalty:
    total += activation_penalty * losses.activation_penalty(dropped, mask)
  if temporal_penalty:
    total += temporal_penalty * losses.temporal_activation_penalty(raw, mask)
  return total, (carry, {"nats": nats})


def make_cell(config: Config, features: int) -> cells.Cell:
  """Makes the cell that the flags describe, with its dropout and zoneout.

  Raises:
    ValueError: if the cell does not support one of them.
  """
  return cells.noisy(
    cells.get(config.cell)(features),
    update_dropout=config.update_dropout,
    weight_drop=config.weight_drop,
    recurrent_dropout=config.recurrent_dropout,
    zoneout=config.zoneout,
    memory_zoneout=config.memory_zoneout,
  )


def make_model(config: Config, vocab_size: int, rngs: nnx.Rngs):
  """Makes the model that the flags describe."""
  return LanguageModel(
    vocab_size,
    cell=functools.partial(make_cell, config),
    layers=config.layers,
    features=config.features,
    embedding_features=config.embedding_features,
    tied=config.tied,
    residual=config.residual,
    dropout=config.dropout,
    embedding_dropout=config.embedding_dropout,
    embedding_row_dropout=config.embedding_row_dropout,
    output_dropout=config.output_dropout,
    method=config.method,
    remat=config.remat or None,
    dtype=jnp.dtype(config.dtype),
    rngs=rngs,
  )


def make_task(config: Config) -> runner.Task:
  """Makes the `Task` of the runner: data, model, loss and evaluation."""
  cell = make_cell(config, config.features)
  with _as_bad_method(config):
    resolve_method(cell, config.method, Setting.here(config.dtype))
  corpus = data.load_text(
    config.dataset,
    text_file=config.text_file or None,
    data_dir=config.data_dir or None,
  )
  tokenizer = tokenizers.build(
    config.tokenizer,
    corpus.train,
    vocab_size=config.vocab_size or None,
    min_count=config.min_count or None,
  )
  tokens = {k: tokenizer.encode(v) for k, v in corpus._asdict().items()}
  # Tokens per character: multiplied by bits per token, bits per character.
  density = {k: len(tokens[k]) / len(v) for k, v in corpus._asdict().items()}
  batches = data.ContiguousBatches(
    tokens["train"],
    batch_size=config.batch_size,
    seq_len=config.seq_len,
    seed=config.seed,
  )

  unknown = {k: float((v == 0).mean()) for k, v in tokens.items()}

  def measure(split, nats):
    if tokenizer.exact:
      bits = nats / math.log(2)
      return {f"{split}_loss": nats, f"{split}_bpc": bits * density[split]}
    return {f"{split}_loss": nats, f"{split}_perplexity": float(np.exp(nats))}

  def describe(means):
    return {
      **measure("train", means["nats"]),
      "grad_norm": means["grad_norm"],
    }

  def make_evaluate(graphdef, mesh):
    score = make_score(config, graphdef, mesh)

    def evaluate(params, split, interrupted):
      nats = score(params, tokens[split], interrupted)
      return None if nats is None else name_score(split, nats)

    return evaluate

  def name_score(split, nats):
    shares = (
      {} if tokenizer.exact else {f"{split}_unknown_share": unknown[split]}
    )
    return {**measure(split, nats), **shares}

  def evaluate_dynamically(graphdef, params, split, rate, decay):
    return name_score(
      split, score_dynamically(graphdef, params, tokens, split, rate, decay)
    )

  def evaluate_packed(graphdef, params, split, weights):
    return name_score(
      split, score_packed(config, graphdef, params, tokens[split], weights)
    )

  def make_sample(graphdef):
    prompt = tokens["valid"][:64]

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
      key = jax.random.fold_in(jax.random.key(config.seed), step)
      ids = np.asarray(draw(params, key).addressable_data(0))[0]
      return f"--- a sample at step {step}:\n" + textwrap.indent(
        tokenizer.decode(ids), "  | ", lambda _: True
      )

    return sample

  return runner.Task(
    name=NAME,
    make_model=lambda rngs: make_model(config, tokenizer.vocab_size, rngs),
    make_carry=lambda model: model.initial_carry(config.batch_size),
    loss=functools.partial(
      loss,
      activation_penalty=config.activation_penalty,
      temporal_penalty=config.temporal_penalty,
    ),
    metrics=("nats",),
    batches=batches,
    units=("tokens", config.batch_size * config.seq_len),
    make_evaluate=make_evaluate,
    objective="valid_bpc" if tokenizer.exact else "valid_perplexity",
    describe=describe,
    make_sample=make_sample,
    splits=("valid", "test"),
    data_sha256=hashlib.sha256(tokens["train"].tobytes()).hexdigest(),
    save=lambda path: tokenizer.save(path / "tokenizer.json"),
    modes={"dynamic": evaluate_dynamically, "packed": evaluate_packed},
    next_command="experiments.generate --prompt='The '",
  )


def make_score(
  config: Config, graphdef: nnx.GraphDef, mesh: Mesh
) -> Callable[[Any, np.ndarray, runner.Interrupted], float | None]:
  """Makes a function that scores a sequence of tokens, in nats per token."""
  # The segments are the same on any number of devices; rows that are added to
  # divide over the mesh are masked.
  rows = -(-config.eval_rows // mesh.size) * mesh.size

  @jax.jit
  def step(params, carry, window):
    return loss(nnx.merge(graphdef, params), carry, window, None)[1]

  @jax.jit
  def start(params):
    return nnx.merge(graphdef, params).initial_carry(rows)

  def score(params, tokens, interrupted):
    streams = eval_streams(config, tokens)
    where = sharding.split_batch(mesh)
    windows = (
      sharding.put({k: _pad(v, rows) for k, v in window.items()}, where)
      for window in streams
    )
    means = loop.evaluate(step, params, start(params), windows, interrupted)
    return None if means is None else means["nats"].compute()

  return score


def eval_streams(config: Config, tokens: np.ndarray) -> data.EvalStreams:
  """The windows in which the evaluation reads the tokens of a split."""
  return data.EvalStreams(
    tokens,
    rows=config.eval_rows,
    seq_len=max(config.seq_len, 128),
    warm_up=config.eval_warm_up,
  )


def score_dynamically(
  graphdef: nnx.GraphDef,
  params: Any,
  tokens: dict[str, np.ndarray],
  split: str,
  learning_rate: float,
  decay: float,
) -> float:
  """Scores a split by dynamic evaluation, in nats per token.

  See `recurrent.training.dynamic.score`.
  """

  def stream(tokens):
    windows = data.EvalStreams(tokens, rows=1, seq_len=DYNAMIC_WINDOW)
    return {
      key: jnp.stack([window[key] for window in windows]) for key in windows[0]
    }

  carry = nnx.merge(graphdef, params).initial_carry(1)
  last = tokens["train"][-DYNAMIC_WINDOW * DYNAMIC_STATISTICS - 1 :]
  rms = dynamic.gradient_rms(graphdef, loss, params, carry, stream(last))
  found = dynamic.score(
    graphdef,
    loss,
    params,
    carry,
    stream(tokens[split]),
    rms,
    learning_rate,
    decay,
  )
  return found["nats"].compute()


def pack(
  graphdef: nnx.GraphDef, params: Any, rows: int, weights: str
) -> tuple[decoding.Packed, Carry]:
  """Makes the decoding step of a model with packed weights.

  Args:
    graphdef: graph definition of the model.
    params: parameters of the model.
    rows: number of rows that the step decodes.
    weights: dtype of the weight matrices, one of `decoding.DTYPES`.

  Returns:
    The step `(weights, carry, token [rows]) -> (carry, logits)`, and the
    initial carry.
  """
  merge = functools.partial(nnx.merge, graphdef)
  carry = jax.jit(lambda params: merge(params).initial_carry(rows))(params)
  packed = decoding.pack_step(
    lambda params, carry, token: merge(params).decoder()(carry, token),
    params,
    carry,
    jax.ShapeDtypeStruct((rows,), jnp.int32),
    dtype=weights,
  )
  return packed, carry


def score_packed(
  config: Config,
  graphdef: nnx.GraphDef,
  params: Any,
  tokens: np.ndarray,
  weights: str,
) -> float:
  """Scores a split in nats per token, by the decoding step of `generate`.

  Args:
    config: configuration of the run.
    graphdef: graph definition of the model.
    params: parameters of the model.
    tokens: [N] ids of the split.
    weights: dtype of the weight matrices, one of `decoding.DTYPES`.
  """
  packed, carry = pack(graphdef, params, config.eval_rows, weights)

  @jax.jit
  def score(weights, carry, window):
    def time_step(carry, now):
      new, logits = packed.step(weights, carry, now["inputs"])
      nats = losses.cross_entropy(logits, now["targets"])
      return hold(now["mask"], new, carry), nats

    window = {name: x.T for name, x in window.items()}
    carry, nats = jax.lax.scan(time_step, carry, window)
    return carry, {"nats": Mean.of(nats, window["weights"])}

  streams = eval_streams(config, tokens)
  windows = [streams[number] for number in range(len(streams))]
  never = lambda: False
  means = loop.evaluate(score, packed.weights, carry, windows, never)
  assert means is not None
  return means["nats"].compute()


def read(workdir: str | Path) -> tuple[Config, tokenizers.Tokenizer]:
  """Reads the configuration and the tokenizer of a run.

  Raises:
    CheckpointError: if the directory holds no run of a language model.
  """
  config = runner.read_config(workdir, NAME, Config)
  return config, tokenizers.load(Path(workdir) / "tokenizer.json")


def encode_prompt(
  tokenizer: tokenizers.Tokenizer, prompt: str, flag: str = "prompt"
) -> np.ndarray:
  """Encodes a prompt, the value of the flag `flag`, as ids [tokens].

  Raises:
    ConfigError: if the prompt is empty, or the vocabulary lacks a part of it.
  """
  unknown = tokenizer.unknown(prompt)
  if unknown:
    raise ConfigError(
      f"--{flag} has what the model's vocabulary lacks:"
      f" {', '.join(map(repr, unknown))}",
      "leave that out; the vocabulary is in tokenizer.json of the workdir",
    )
  if not prompt:
    raise ConfigError(f"--{flag} is empty", "give at least one character")
  return np.asarray(tokenizer.encode(prompt), np.int32)


@contextlib.contextmanager
def _as_bad_method(config):
  """Turns a ValueError into a ConfigError about --method."""
  try:
    yield
  except ValueError as error:
    raise ConfigError(
      f"--method={config.method}: {error}", "or leave --method out"
    ) from error


def run(config: Config) -> dict[str, Any]:
  """Trains; returns the final metrics."""
  return runner.train(config, make_task)


def _pad(array: np.ndarray, rows: int) -> np.ndarray:
  return np.pad(array, [(0, rows - len(array)), (0, 0)])


if __name__ == "__main__":
  runner.main(run, Config)
