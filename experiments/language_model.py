"""Trains a recurrent language model on text.

  python -m experiments.language_model --workdir=runs/pydoc

Truncated back-propagation through time: each row of the batch reads one
contiguous stretch of the text, window by window, and the carry goes from one
window to the next. Bits per character (bpc) are over the characters of the
text, whatever the tokens are. A tokenizer that cannot write every text, such as
word, has no bpc, since what it cannot write would cost nothing: its results
have the perplexity of its tokens and the share of them that are unknown.
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
DYNAMIC_WINDOW = 20  # tokens scored before they are learnt from
DYNAMIC_STATISTICS = 400  # windows of the train split


@dataclasses.dataclass(frozen=True)
class Config(runner.TrainConfig):
  """Flags of the language model; the defaults are the recipe of README.md.

  Args:
    dataset: pydoc, stdlib, or any prepared text of the TFDS catalogue. What
      part of valid and test occurs in the splits before is in the log.
    data_dir: where that was prepared.
    text_file: a UTF-8 text of your own, instead of a dataset; the same part of
      it is in the log.
    tokenizer: char, byte, word or sentencepiece.
    vocab_size: of sentencepiece, and at most of word; 0: their default.
    min_count: occurrences that make a word one, for word; 0: its default.
    cell: name in recurrent.cells.CELLS, of one that takes vectors.
    layers: recurrent layers.
    features: width of every layer.
    embedding_features: width of the embedding; with --tied it is --features.
    tied: share the embedding with the output layer.
    residual: add a layer's inputs to its outputs.
    dropout: rate between layers, a fresh mask at each time step.
    embedding_dropout: rate on the embedding, one mask for a whole window.
    embedding_row_dropout: rate at which a token's whole row is dropped.
    output_dropout: rate on the last layer, one mask for a whole window.
    recurrent_dropout: rate on h in its product, one mask for a whole window.
    weight_drop: rate on the recurrent weights, one mask for a whole window.
    update_dropout: rate on the candidate of an LSTM or GRU.
    zoneout: probability that a hidden unit keeps its value at a time step.
    memory_zoneout: the same of an LSTM's cell.
    activation_penalty: weight of the mean square of the outputs (AR).
    temporal_penalty: weight of the mean square of their changes (TAR).
    seq_len: tokens of a window, through which gradients flow back.
    eval_rows: stretches of a split that are read side by side.
    eval_warm_up: tokens read before a stretch, unscored.
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
  # The recipe: where it differs from RunConfig and OptimizerConfig.
  steps: int = 4600
  batch_size: int = 16
  eval_every: int = 920
  learning_rate: float = 5e-3
  schedule: str = "cosine"
  final_learning_rate: float = 0.5
  warmup_steps: int = 100
  weight_decay: float = 0.2
  b2: float = 0.99
  # What is evaluated is an average over some 500 steps at a high rate.
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
    """Raises ConfigError at the first value that cannot be meant."""
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
  """Mean cross-entropy of a window, in nats a token, and penalties.

  Args:
    model: the model.
    carry: from the window before.
    batch: `inputs` and `targets`, [batch, time] ids. If given: `resets`
      [batch], True where a row begins anew; `mask` [batch, time], True where a
      token is real; `weights` [batch, time], of the targets.
    key: draws the dropout masks; None for evaluation.
    activation_penalty: weight of `losses.activation_penalty`.
    temporal_penalty: weight of `losses.temporal_activation_penalty`.

  Returns:
    The loss, and the next carry and the mean as a metric.
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
  """The cell that the flags describe, with its noise.

  Raises:
    ValueError: if the cell cannot have that noise.
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
  """The model that the flags describe."""
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
  """Data, model, loss and evaluation, for the runner."""
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
  # Bits a token times tokens a character are bits a character.
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
  """A function that streams tokens through the model: nats a token."""
  # A split takes the same rows on any number of devices: rows that only fill
  # up the mesh read nothing.
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
  """The windows of a split, as the flags have them."""
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
  """Nats a token of a split that the model learns from as it goes along."""

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
  """The decoder of a model with packed weights.

  Args:
    graphdef: of the model.
    params: of the model.
    rows: how many it is for.
    weights: dtype of the matrices, one of `decoding.DTYPES`.

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
  """Nats a token by the very step that `generate` decodes with.

  Args:
    config: of the run.
    graphdef: of the model.
    params: of the model.
    tokens: of a split.
    weights: dtype of the matrices, one of `decoding.DTYPES`.
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
  """Configuration and tokenizer of a run.

  Raises:
    CheckpointError: if the directory holds no run of a language model.
  """
  config = runner.read_config(workdir, NAME, Config)
  return config, tokenizers.load(Path(workdir) / "tokenizer.json")


def encode_prompt(
  tokenizer: tokenizers.Tokenizer, prompt: str, flag: str = "prompt"
) -> np.ndarray:
  """Ids of a prompt, which was the value of a flag.

  Raises:
    ConfigError: if it is empty, or has what the vocabulary lacks.
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
  """Makes a ValueError that of a bad flag."""
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
