"""What the experiments share that learn to turn one text into another.

The `Config` of such an experiment extends `Seq2SeqConfig`. Its task is made by
`make_task` from pairs of texts and a function that scores the texts found, and
`make_answer` applies the trained model to other texts.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import figures, network, runner, text
from recurrent import data, decoding, losses, models
from recurrent.data.parallel import Pairs, Vocabulary
from recurrent.errors import ConfigError, DataError
from recurrent.metrics import Mean
from recurrent.rows import bernoulli
from recurrent.training.evaluation import Scores
from recurrent.training.step import loss_of
from recurrent.types import PRNGKey

LOG = logging.getLogger("recurrent")
MASKS = {"source": "source_mask", "inputs": "mask", "targets": "mask"}
SHOWN = 5  # examples that are shown at an evaluation
SHOWN_WIDTH = 300  # characters of a source that are shown
MAPS = 4  # examples in the picture of the attention ...
MAP_LENGTH = 80  # ... with at most this many source tokens, if there are any


@dataclasses.dataclass(frozen=True)
class Seq2SeqConfig(text.TokenizerConfig, network.NetworkConfig):
  """Flags of an encoder-decoder and of its search.

  Args:
    joint: one vocabulary and one embedding for source and target.
    attention: attention after the decoder's layers: none, dot, general,
      additive, multi_head, or to a window of the source whose centre moves by
      one token a time step (local_m) or is predicted (local_p). A transformer
      has its own.
    attention_features: width inside additive attention; 0: --features. Most of
      the time of additive attention is proportional to it.
    attention_window: with local_m and local_p, the number of source tokens on
      each side of the centre.
    coverage: let the scores of additive attention depend on the attention that
      each source token has received before; slower.
    coverage_loss: weight of the loss on attention to source tokens that have
      received attention before; needs attention.
    feeding: feed the attentional state back into the decoder; slower.
    copying: allow to copy tokens of the source; needs --joint.
    bidirectional: let the encoder read in both directions.
    embedding_features: width of the embeddings.
    tied: share the weights of the target embedding and the output layer; the
      embedding is then as wide as --features.
    embedding_dropout: dropout rate of the embedded tokens.
    output_dropout: dropout rate of what the logits are computed from.
    label_smoothing: share of the targets' probability that is spread evenly.
    scheduled_sampling: share of the decoder's inputs that are replaced by what
      the model itself finds most likely there.
    max_length: longest source, in tokens. A longer one is cut.
    max_target_length: longest target, in tokens; pairs with a longer one are
      left out of training. 0: the same as --max_length.
    beams: number of beams of the search.
    length_penalty: exponent of the length penalty of the search.
    coverage_penalty: weight of the coverage penalty of the search, on sources
      that were attended to too little; needs attention.
    no_repeat: n, so that no n tokens in a row occur twice in an output; 0: they
      may.
    min_tokens: least number of tokens of an output.
  """

  joint: bool = False
  attention: str = "additive"
  attention_features: int = 0
  attention_window: int = 10
  coverage: bool = False
  coverage_loss: float = 0.0
  feeding: bool = False
  copying: bool = False
  bidirectional: bool = True
  embedding_features: int = 64
  tied: bool = False
  embedding_dropout: float = 0.0
  output_dropout: float = 0.1
  label_smoothing: float = 0.0
  scheduled_sampling: float = 0.0
  max_length: int = 64
  max_target_length: int = 0
  beams: int = 4
  length_penalty: float = 0.6
  coverage_penalty: float = 0.0
  no_repeat: int = 0
  min_tokens: int = 0

  POSITIVE: typing.ClassVar[frozenset[str]] = frozenset(
    "embedding_features attention_window max_length beams".split()
  )
  BELOW_ONE: typing.ClassVar[frozenset[str]] = frozenset(
    "embedding_dropout output_dropout label_smoothing"
    " scheduled_sampling".split()
  )
  CHOICES: typing.ClassVar[dict[str, Sequence[str]]] = {
    "attention": network.ATTENTIONS,
  }
  SMOKE: typing.ClassVar[dict[str, Any]] = {"embedding_features": 8}
  NEEDS: typing.ClassVar[dict[str, tuple[str, Sequence[Any]]]] = {
    "embedding_features": ("tied", (False,)),
    "copying": ("joint", (True,)),
    "attention_window": ("attention", ("local_m", "local_p")),
    "attention_features": ("attention", ("additive",)),
    "coverage": ("attention", ("additive",)),
  }
  # Flags that need attention after recurrent layers.
  ATTENDING: typing.ClassVar[Sequence[str]] = (
    "feeding copying coverage coverage_loss coverage_penalty".split()
  )

  def check(self):
    """Raises ConfigError if a value is wrong."""
    super().check()
    for name in self.ATTENDING:
      if getattr(self, name) and not self.attends:
        raise ConfigError(
          f"--{name} needs attention after recurrent layers",
          "leave it out, or choose --attention and a recurrent --cell",
        )
    if self.copying and self.attention == "local_p":
      raise ConfigError(
        "--copying needs attention weights that sum to one, and those of"
        " --attention=local_p do not",
        "choose another --attention",
      )

  @property
  def attends(self) -> bool:
    """Whether attention follows the decoder's layers."""
    return self.attention != "none" and self.cell != network.TRANSFORMER

  @property
  def longest_target(self) -> int:
    """The largest number of tokens of a target."""
    return self.max_target_length or self.max_length

  def build_vocabulary(self, train: Pairs) -> Vocabulary:
    """Builds the tokenizers of both sides, or one with --joint."""
    build = lambda side, texts: self.build_tokenizer(
      "\n".join(texts), Vocabulary.file(side)
    )
    if self.joint:
      return Vocabulary(*[build("source", train.sources + train.targets)] * 2)
    return Vocabulary(
      build("source", train.sources), build("target", train.targets)
    )


def make_model(
  config: Seq2SeqConfig, vocabulary: Vocabulary, rngs: nnx.Rngs
) -> models.EncoderDecoder:
  """Makes the model that the flags describe."""
  width = config.features if config.tied else config.embedding_features
  encoder = network.make_stack(
    config, width, causal=not config.bidirectional, rngs=rngs
  )
  decoder = network.make_decoder(
    config,
    width + config.features * config.feeding,
    encoder.features,
    rngs=rngs,
  )
  sizes = vocabulary.source.vocab_size + config.joint, vocabulary.stop + 1
  return models.EncoderDecoder(
    *sizes,
    encoder,
    decoder,
    attention=network.make_attention(
      config.attention if config.attends else "none",
      decoder.features,
      encoder.features,
      features=config.attention_features or config.features,
      heads=config.heads,
      window=config.attention_window,
      coverage=config.coverage,
      rngs=rngs,
    ),
    feeding=config.feeding,
    copying=config.copying,
    tied=config.tied,
    shared=config.joint,
    embedding_dropout=config.embedding_dropout,
    output_dropout=config.output_dropout,
    dtype=jnp.dtype(config.dtype),
    rngs=rngs,
  )


def measure(
  model: models.EncoderDecoder,
  batch: dict[str, jax.Array],
  key: PRNGKey | None,
  *,
  label_smoothing: float = 0.0,
  scheduled_sampling: float = 0.0,
  coverage_loss: float = 0.0,
) -> dict[str, Mean]:
  """Per target token: the objective, the cross-entropy, and the coverage loss.

  With scheduled sampling the model runs twice: its most likely tokens of the
  first run replace some inputs of the second.

  Reference:
    Mihaylova & Martins, "Scheduled sampling for Transformers", 2019.
  """
  run = functools.partial(
    model, batch["source"], batch["source_mask"], mask=batch["mask"]
  )
  inputs = batch["inputs"]
  if key is not None and scheduled_sampling:
    guess = run(inputs, key=key)[0].argmax(axis=-1).astype(inputs.dtype)
    guess = jnp.concatenate([inputs[:, :1], guess[:, :-1]], axis=1)
    drawn = bernoulli(
      jax.random.fold_in(key, 1), scheduled_sampling, inputs.shape, inputs
    )
    inputs = jnp.where(drawn, guess, inputs)
  logits, weights = run(inputs, key=key)
  nats = losses.cross_entropy(logits, batch["targets"])
  found = {"nats": Mean.of(nats, batch["mask"])}
  loss = nats
  if key is not None and label_smoothing:
    loss = losses.cross_entropy(
      logits, batch["targets"], label_smoothing=label_smoothing
    )
  if coverage_loss and weights is not None:
    again = losses.coverage(weights)
    found["coverage_loss"] = Mean.of(again, batch["mask"])
    loss += coverage_loss * again
  return {"objective": Mean.of(loss, batch["mask"]), **found}


def search(
  config: Seq2SeqConfig, stop: int, model: models.EncoderDecoder, batch: Any
) -> dict[str, jax.Array]:
  """The best outputs for a batch of sources, [batch, beams, ...]."""
  carry = model.begin(model.encode(batch["source"], batch["source_mask"]))
  step = model.decoder()
  first = jnp.full(len(batch["source"]), stop, jnp.int32)
  carry, logits = step(carry, first)
  found = decoding.beam_search(
    step,
    carry,
    logits,
    beams=config.beams,
    num_tokens=config.longest_target,
    stop_token=stop,
    min_tokens=config.min_tokens,
    length_penalty=config.length_penalty,
    no_repeat=config.no_repeat,
    coverage=lambda carry: carry.attended,
    coverage_penalty=config.coverage_penalty,
  )
  return found._asdict()


def make_task(
  config: Seq2SeqConfig,
  name: str,
  pairs: Mapping[str, Pairs],
  score: Callable[[str, Sequence[str]], dict[str, Any]],
  *,
  cut: bool = False,
) -> runner.Task:
  """Makes the `Task` of the runner: data, model, loss and evaluation.

  Args:
    config: the flags.
    name: name of the experiment.
    pairs: the pairs of "train", "valid" and "test".
    score: `score(split, texts) -> metrics` of the texts that the search found
      for the sources of a split.
    cut: whether sources longer than --max_length are cut in training as well;
      if not, such a pair is left out there.
  """
  vocabulary = config.build_vocabulary(pairs["train"])
  examples = {split: vocabulary.examples(x) for split, x in pairs.items()}
  train = _prepare(config, examples, cut)
  batches = functools.partial(data.ExampleBatches, masks=MASKS, buckets=4)
  scored = functools.partial(data.EvalBatches, masks=MASKS, buckets=2)

  def describe(split: str, scores: Scores) -> dict[str, Any]:
    means = {f"{split}_{name}": x for name, x in scores.means.items()}
    found = {k: v for k, v in means.items() if k != f"{split}_objective"}
    if split == "train":
      return found
    best = zip(
      scores.predictions["tokens"], scores.predictions["lengths"], strict=True
    )
    texts = [decode(vocabulary, t[0], n[0]) for t, n in best]
    for source, mine in list(zip(pairs[split].sources, texts, strict=True))[
      :SHOWN
    ]:
      LOG.info("  %s -> %s", textwrap.shorten(source, SHOWN_WIDTH), mine)
    return {**found, **score(split, texts)}

  def report(
    split: str, scores: Scores, folder: Path, model: models.EncoderDecoder
  ) -> str:
    if not config.attends:
      return ""
    path = folder / "attention.png"
    maps = attention_maps(
      model, vocabulary, examples[split], scores.predictions
    )
    figures.attention(path, maps)
    return f"Attention: {path}"

  return runner.Task(
    name=name,
    make_model=functools.partial(make_model, config, vocabulary),
    loss=loss_of(
      functools.partial(
        measure,
        label_smoothing=config.label_smoothing,
        scheduled_sampling=config.scheduled_sampling,
        coverage_loss=config.coverage_loss,
      ),
      "objective",
    ),
    batches=batches(train, config.batch_size, seed=config.seed),
    splits={
      split: scored(examples[split], config.batch_size)
      for split in ("valid", "test")
    },
    objective="valid_nats",
    predict=functools.partial(search, config, vocabulary.stop),
    describe=describe,
    report=report,
    units=("tokens", lambda batch: int(batch["mask"].sum())),
    data_sha256=hashlib.sha256(json.dumps(pairs["train"]).encode()).hexdigest(),
    save=vocabulary.save,
    next_command="experiments.generate",
  )


def _prepare(config, examples, cut) -> list[dict[str, np.ndarray]]:
  """Cuts sources in place, and returns the train examples that are kept."""
  train, long = [], 0
  for split, rows in examples.items():
    for row in rows:
      source, target = len(row["source"]), len(row["targets"]) - 1
      fits = source <= config.max_length
      if cut or split != "train":
        long += not fits
        row["source"] = row["source"][: config.max_length]
        fits = True
      if split == "train" and fits:
        if 0 < source and 0 < target <= config.longest_target:
          train.append(row)
  if not train:
    raise DataError(
      f"no pair of train has from 1 to {config.max_length} source tokens and"
      f" from 1 to {config.longest_target} target tokens",
      "use a larger --max_length and --max_target_length",
    )
  LOG.info(
    "%d of %d train pairs are left out: empty, or longer than %d and %d tokens"
    " (--max_length, --max_target_length). %d sources are cut.",
    len(examples["train"]) - len(train),
    len(examples["train"]),
    config.max_length,
    config.longest_target,
    long,
  )
  return train


def decode(vocabulary: Vocabulary, tokens: Any, length: Any) -> str:
  """The text of a sequence that the search found."""
  return vocabulary.target.decode(np.asarray(tokens)[: int(length)]).strip()


def attention_maps(
  model: models.EncoderDecoder,
  vocabulary: Vocabulary,
  examples: Sequence[Mapping[str, np.ndarray]],
  found: Mapping[str, Sequence[np.ndarray]],
) -> list[figures.AttentionMap]:
  """The attention of the first few examples to their sources.

  Args:
    model: the model.
    vocabulary: its tokenizers.
    examples: of a split, as `Vocabulary.examples` makes them.
    found: what `search` found for each of them.
  """
  lengths = np.array([len(example["source"]) for example in examples])
  # The short ones come first; the order is otherwise that of the examples.
  chosen = np.argsort(lengths > MAP_LENGTH, kind="stable")[:MAPS]
  rows = []
  for i in chosen:
    tokens = np.asarray(found["tokens"][i][0])[: found["lengths"][i][0]]
    inputs = np.append(vocabulary.stop, tokens).astype(np.int32)
    rows.append({"source": examples[i]["source"], "inputs": inputs})
  masks = {key: MASKS[key] for key in ("source", "inputs")}
  [batch] = data.EvalBatches(rows, len(rows), buckets=1, masks=masks)

  @nnx.jit
  def attend(model, batch):
    return model(batch["source"], batch["source_mask"], batch["inputs"])[1]

  weights = np.asarray(attend(model, batch))
  pieces = lambda tokenizer, ids: [tokenizer.decode([i]) for i in ids]
  return [
    figures.AttentionMap(
      weights[row, : len(x["inputs"]), : len(x["source"])],
      pieces(vocabulary.source, x["source"]),
      [*pieces(vocabulary.target, x["inputs"][1:]), "</s>"],
    )
    for row, x in enumerate(rows)
  ]


def make_answer(
  workdir: str, name: str, config_class: type[Seq2SeqConfig]
) -> Callable[[Sequence[str]], Iterator[dict[str, Any]]]:
  """Loads a trained model.

  Args:
    workdir: directory of the run.
    name: name of the experiment.
    config_class: class of its configuration.

  Returns:
    `answer(sources)`, which yields for each source text `source`, `text`, the
    best output, and `n_best`, all that the beams found, each with its `score`.

  Raises:
    UserError: if the workdir has no run of that experiment.
  """
  config = runner.read_config(workdir, name, config_class)
  vocabulary = Vocabulary.load(Path(workdir))
  trained = runner.load_params(
    config, functools.partial(make_model, config, vocabulary)
  )
  apply = runner.make_predictor(
    trained, functools.partial(search, config, vocabulary.stop)
  )

  def answer(sources):
    rows = [vocabulary.encode(x)[: config.max_length] for x in sources]
    batches = data.EvalBatches(
      [{"source": row} for row in rows],
      min(config.batch_size, len(rows)),
      masks={"source": MASKS["source"]},
      buckets=[config.max_length],
    )
    found = apply(batches)
    beams = zip(
      *(found[k] for k in ("tokens", "lengths", "scores")), strict=True
    )
    for source, (tokens, lengths, scores) in zip(sources, beams, strict=True):
      n_best = [
        {"text": decode(vocabulary, t, n), "score": float(s)}
        for t, n, s in zip(tokens, lengths, scores, strict=True)
        if s > decoding.NEVER / 2
      ]
      yield {"source": source, "text": n_best[0]["text"], "n_best": n_best}

  return answer
