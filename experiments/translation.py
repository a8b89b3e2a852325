r"""Trains a model that translates texts, one sentence a line.

  python -m experiments.translation --workdir=runs/dates
  python -m experiments.translation --workdir=runs/de \
    --train_files=train.de,train.en --valid_files=dev.de,dev.en \
    --test_files=test.de,test.en --tokenizer=sentencepiece

By default it learns to write dates of many languages in ISO 8601. Results are
the share of exact matches, and BLEU and chrF by sacrebleu.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import network, runner, text
from recurrent import data, decoding, losses, models
from recurrent.data import dates, parallel, tokenizers
from recurrent.errors import ConfigError, DataError
from recurrent.metrics import Mean
from recurrent.training.evaluation import Scores
from recurrent.training.step import loss_of
from recurrent.types import PRNGKey

LOG = logging.getLogger("recurrent")
NAME = "translation"
FILES = ("train", "valid", "test")
MASKS = {"source": "source_mask", "inputs": "mask", "targets": "mask"}
SHOWN = 5  # translations that are shown at an evaluation


@dataclasses.dataclass(frozen=True)
class Config(text.TokenizerConfig, network.NetworkConfig):
  """Flags of the translator; the defaults are a recipe for the dates.

  Args:
    dataset: dates, or a translation dataset of the TFDS catalogue that has been
      prepared, such as ted_hrlr_translate/pt_to_en.
    data_dir: directory in which the dataset was prepared; by default that of
      TFDS.
    train_files: two UTF-8 files, source and target, separated by a comma, of
      which equal lines are translations; instead of a dataset.
    valid_files: the same for the valid split.
    test_files: the same for the test split.
    joint: one vocabulary and one embedding for source and target.
    attention: attention after the decoder's layers: none, dot, general,
      additive or multi_head. A transformer has its own.
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
    max_length: longest source and target, in tokens. Longer pairs are left out
      of training, and longer sources are cut in scoring.
    beams: number of beams of the search.
    length_penalty: exponent of the length penalty of the search.
  """

  dataset: str = "dates"
  data_dir: str = ""
  train_files: str = ""
  valid_files: str = ""
  test_files: str = ""
  joint: bool = False
  attention: str = "additive"
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
  beams: int = 4
  length_penalty: float = 0.6
  # Defaults that differ from those of the base classes.
  cell: str = "gru"
  features: int = 128
  steps: int = 2000
  batch_size: int = 64
  eval_every: int = 500
  learning_rate: float = 4e-3
  schedule: str = "cosine"
  warmup_steps: int = 100
  ema: float = 0.99

  POSITIVE: typing.ClassVar[frozenset[str]] = frozenset(
    "embedding_features max_length beams".split()
  )
  BELOW_ONE: typing.ClassVar[frozenset[str]] = frozenset(
    "embedding_dropout output_dropout label_smoothing"
    " scheduled_sampling".split()
  )
  CHOICES: typing.ClassVar[dict[str, Sequence[str]]] = {
    "attention": ("none", "dot", "general", "additive", "multi_head"),
  }
  SMOKE: typing.ClassVar[dict[str, Any]] = {"embedding_features": 8}
  NEEDS: typing.ClassVar[dict[str, tuple[str, Sequence[Any]]]] = {
    "dataset": ("train_files", ("",)),
    "data_dir": ("train_files", ("",)),
    "embedding_features": ("tied", (False,)),
    "copying": ("joint", (True,)),
  }

  def check(self):
    """Raises ConfigError if a value is wrong."""
    super().check()
    given = [bool(getattr(self, f"{name}_files")) for name in FILES]
    if any(given) and not all(given):
      raise ConfigError(
        "--train_files, --valid_files and --test_files go together",
        "give all three, or none",
      )
    if (self.feeding or self.copying) and not self.attends:
      raise ConfigError(
        "--feeding and --copying need attention after recurrent layers",
        "leave them out, or choose --attention and a recurrent --cell",
      )
    for name in FILES:
      if all(given):
        self.files(name)

  @property
  def attends(self) -> bool:
    """Whether attention follows the decoder's layers."""
    return self.attention != "none" and self.cell != network.TRANSFORMER

  def files(self, split: str) -> list[str]:
    """The source and target files of a split."""
    value = getattr(self, f"{split}_files")
    paths = value.split(",")
    if len(paths) != 2 or not all(paths):
      raise ConfigError(
        f"--{split}_files={value} does not name two files",
        "give SOURCE,TARGET",
      )
    return paths


class Vocabulary(typing.NamedTuple):
  """The tokenizers of both sides; the id after the last one ends a target.

  The same id is the first input of the decoder.
  """

  source: tokenizers.Tokenizer
  target: tokenizers.Tokenizer

  @property
  def stop(self) -> int:
    """The id that begins and ends a target."""
    return self.target.vocab_size

  def examples(self, pairs: parallel.Pairs) -> list[dict[str, np.ndarray]]:
    """The ids of pairs; targets end with `stop`, and inputs begin with it."""
    found = []
    for source, target in zip(*pairs, strict=True):
      ids = np.append(self.target.encode(target).astype(np.int32), self.stop)
      found.append(
        {
          "source": self.source.encode(source).astype(np.int32),
          "inputs": np.roll(ids, 1),
          "targets": ids,
        }
      )
    return found

  def save(self, path: Path) -> None:
    """Writes both tokenizers to a folder."""
    for side, tokenizer in self._asdict().items():
      tokenizer.save(path / f"{side}_tokenizer.json")

  @classmethod
  def load(cls, path: Path) -> "Vocabulary":
    """Reads what `save` wrote."""
    sides = (f"{side}_tokenizer.json" for side in cls._fields)
    return cls(*(tokenizers.load(path / name) for name in sides))


def load_pairs(config: Config) -> dict[str, parallel.Pairs]:
  """The pairs of "train", "valid" and "test"."""
  if config.train_files:
    return {name: parallel.read_parallel(*config.files(name)) for name in FILES}
  if config.dataset == "dates":
    return dates.load_dates(seed=0)
  return parallel.load_parallel(config.dataset, config.data_dir or None)


def make_model(
  config: Config, vocabulary: Vocabulary, rngs: nnx.Rngs
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
      heads=config.heads,
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
) -> dict[str, Mean]:
  """Cross-entropy per target token: the one to minimise, and in plain nats.

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
    drawn = jax.random.bernoulli(
      jax.random.fold_in(key, 1), scheduled_sampling, inputs.shape
    )
    inputs = jnp.where(drawn, guess, inputs)
  logits, _ = run(inputs, key=key)
  nats = losses.cross_entropy(logits, batch["targets"])
  found = {"nats": Mean.of(nats, batch["mask"])}
  if key is not None and label_smoothing:
    nats = losses.cross_entropy(
      logits, batch["targets"], label_smoothing=label_smoothing
    )
  return {"smoothed": Mean.of(nats, batch["mask"]), **found}


def search(
  config: Config, stop: int, model: models.EncoderDecoder, batch: Any
) -> dict[str, jax.Array]:
  """The best translations of a batch of sources, [batch, beams, ...]."""
  carry = model.begin(model.encode(batch["source"], batch["source_mask"]))
  step = model.decoder()
  first = jnp.full(len(batch["source"]), stop, jnp.int32)
  carry, logits = step(carry, first)
  found = decoding.beam_search(
    step,
    carry,
    logits,
    beams=config.beams,
    num_tokens=config.max_length,
    stop_token=stop,
    length_penalty=config.length_penalty,
  )
  return found._asdict()


def decode(tokenizer: tokenizers.Tokenizer, tokens: Any, length: Any) -> str:
  """The text of a sequence that the search found."""
  return tokenizer.decode(np.asarray(tokens)[: int(length)])


def score_texts(found: Sequence[str], wanted: Sequence[str]) -> dict[str, Any]:
  """Exact match, BLEU and chrF of translations, with their signatures."""
  import sacrebleu

  bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
  pairs = list(found), [list(wanted)]
  return {
    "exact_match": float(
      np.mean([a == b for a, b in zip(found, wanted, strict=True)])
    ),
    "bleu": bleu.corpus_score(*pairs).score,
    "chrf": chrf.corpus_score(*pairs).score,
    "bleu_signature": str(bleu.get_signature()),
    "chrf_signature": str(chrf.get_signature()),
  }


def make_task(config: Config) -> runner.Task:
  """Makes the `Task` of the runner: data, model, loss and evaluation."""
  config.check_device()
  pairs = load_pairs(config)
  sides = [["\n".join(side)] for side in pairs["train"]]
  if config.joint:
    sides = [sides[0] + sides[1]] * 2
  made = [config.build_tokenizer("\n".join(side)) for side in sides]
  vocabulary = Vocabulary(*(made[:1] * 2 if config.joint else made))
  examples = {name: vocabulary.examples(split) for name, split in pairs.items()}
  train = [e for e in examples["train"] if _fits(e, config.max_length)]
  if not train:
    raise DataError(
      f"no pair of train has at most {config.max_length} tokens a side",
      "use a larger --max_length",
    )
  cut = 0
  for name in ("valid", "test"):
    for example in examples[name]:
      cut += len(example["source"]) > config.max_length
      example["source"] = example["source"][: config.max_length]
  LOG.info(
    "%d of %d train pairs are longer than --max_length=%d or empty and left"
    " out; %d sources of valid and test are cut.",
    *(len(examples["train"]) - len(train), len(examples["train"])),
    *(config.max_length, cut),
  )
  batches = functools.partial(data.ExampleBatches, masks=MASKS, buckets=4)
  scored = functools.partial(data.EvalBatches, masks=MASKS, buckets=2)

  def describe(split: str, scores: Scores) -> dict[str, Any]:
    found = {f"{split}_nats": scores.means["nats"]}
    if split == "train":
      return found
    best = zip(
      scores.predictions["tokens"], scores.predictions["lengths"], strict=True
    )
    texts = [decode(vocabulary.target, t[0], n[0]) for t, n in best]
    for source, mine in list(zip(pairs[split].sources, texts, strict=True))[
      :SHOWN
    ]:
      LOG.info("  %s -> %s", source, mine)
    wanted = pairs[split].targets
    values = score_texts(texts, wanted).items()
    return {**found, **{f"{split}_{name}": value for name, value in values}}

  return runner.Task(
    name=NAME,
    make_model=lambda rngs: make_model(config, vocabulary, rngs),
    loss=loss_of(
      functools.partial(
        measure,
        label_smoothing=config.label_smoothing,
        scheduled_sampling=config.scheduled_sampling,
      ),
      "smoothed",
    ),
    batches=batches(train, config.batch_size, seed=config.seed),
    splits={
      name: scored(examples[name], config.batch_size)
      for name in ("valid", "test")
    },
    objective="valid_nats",
    predict=functools.partial(search, config, vocabulary.stop),
    describe=describe,
    units=("tokens", lambda batch: int(batch["mask"].sum())),
    data_sha256=hashlib.sha256(json.dumps(pairs["train"]).encode()).hexdigest(),
    save=vocabulary.save,
    next_command="experiments.generate",
  )


def _fits(example, most: int) -> bool:
  source, target = len(example["source"]), len(example["targets"])
  return 0 < source <= most and 1 < target <= most + 1


def make_answer(
  workdir: str,
) -> Callable[[Sequence[str]], Iterator[dict[str, Any]]]:
  """Loads a trained translator.

  Args:
    workdir: directory of the run.

  Returns:
    `answer(sources)`, which yields for each source text `source`, `text`, the
    best translation, and `n_best`, all that the beams found, each with its
    `score`.

  Raises:
    UserError: if the workdir has no run of a translator.
  """
  config = runner.read_config(workdir, NAME, Config)
  vocabulary = Vocabulary.load(Path(workdir))
  trained = runner.load_params(
    config, functools.partial(make_model, config, vocabulary)
  )
  apply = runner.make_predictor(
    trained, functools.partial(search, config, vocabulary.stop)
  )

  def answer(sources):
    ids = [
      vocabulary.source.encode(row)[: config.max_length] for row in sources
    ]
    batches = data.EvalBatches(
      [{"source": row.astype(np.int32)} for row in ids],
      min(config.batch_size, len(ids)),
      masks={"source": MASKS["source"]},
      buckets=[config.max_length],
    )
    found = apply(batches)
    beams = zip(
      *(found[k] for k in ("tokens", "lengths", "scores")), strict=True
    )
    for source, (tokens, lengths, scores) in zip(sources, beams, strict=True):
      n_best = [
        {"text": decode(vocabulary.target, t, n), "score": float(s)}
        for t, n, s in zip(tokens, lengths, scores, strict=True)
        if s > -1e8
      ]
      yield {"source": source, "text": n_best[0]["text"], "n_best": n_best}

  return answer


def predict(workdir: str, file: str) -> Iterator[dict[str, Any]]:
  """Translates every line of a file; see `make_answer`."""
  return make_answer(workdir)(parallel.read_lines(file))


def run(config: Config) -> dict[str, Any]:
  """Trains; returns the final metrics."""
  return runner.train(config, make_task)


if __name__ == "__main__":
  runner.main(run, Config)
