r"""Trains a classifier of sequences, or of each of their time steps.

  python -m experiments.classification --workdir=runs/digits
  python -m experiments.classification --workdir=runs/mine \
    --data_file=reviews.csv --cell=lstm --pooling=attention

By default it reads the 1,797 handwritten digits of scikit-learn pixel by pixel.
docs/classification.md has the formats of your own files.
"""

import dataclasses
import functools
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import config as config_lib
from experiments import figures, missing, network, runner, text
from recurrent import cells, data, losses, nn
from recurrent.data import encoding, labelled, labelled_sets, splits, words
from recurrent.errors import ConfigError
from recurrent.metrics import Mean, classification
from recurrent.models import Classifier
from recurrent.types import PRNGKey

NAME = "classification"
BUCKETS = 4  # lengths to which sequences are padded


@dataclasses.dataclass(frozen=True)
class Config(
  text.TokenizerConfig, missing.MissingConfig, network.NetworkConfig
):
  """Flags of classification; the defaults are the recipe of the digits.

  Args:
    dataset: digits, which is part of scikit-learn; or a dataset of the TFDS
      catalogue with labelled grey images, texts or sounds that has been
      prepared, such as mnist, imdb_reviews or spoken_digit.
    data_dir: directory in which the dataset was prepared; by default that of
      TFDS.
    data_file: path of a .csv, .jsonl or .npz file to train on, instead of a
      dataset.
    splits: shares of train, valid and test in percent. The splits that the data
      lack are drawn from train, by a hash of each row.
    images: how an image becomes a sequence: pixels, one time step a pixel;
      permuted, pixels in one random order; or rows, one time step a row.
    shift: training images are moved by up to this many pixels, at random.
    rotation: training images are turned by up to this many degrees.
    zoom: height and width of training images are changed by up to this share.
    scaling: how real values are scaled to mean 0 and variance 1: each variable
      by itself, all together (as the pixels of images always are), or none.
    max_length: largest number of time steps; the rest of a sequence is left
      out.
    lower_case: lower-case texts.
    stop_words: words to leave out of texts: none, or english for the list of
      scikit-learn.
    embedding_features: width of the embedding of tokens.
    embeddings: path of a text file of word vectors, as GloVe and word2vec write
      them, from which the embedding starts.
    freeze_embeddings: do not train the embedding.
    bidirectional: run each layer in both directions.
    pooling: how the outputs of all time steps become one vector: last (with
      --bidirectional the last of each direction), mean, max or attention.
    input_dropout: dropout rate of the inputs, with one mask for all time steps.
      With --missing=decay or model, the share of the variables of a training
      sequence that are made missing.
    output_dropout: dropout rate of the vectors that are classified.
    class_weights: weights of the classes in the loss: none, or balanced, which
      weighs a class by the inverse of its frequency.
    label_smoothing: share of the target probability that is divided among all
      classes.
    imputation_weight: weight of the error of the predicted inputs in the loss,
      with --missing=model.
  """

  dataset: str = "digits"
  data_dir: str = ""
  data_file: str = ""
  splits: str = "90,5,5"
  images: str = "pixels"
  shift: float = 1.0
  rotation: float = 10.0
  zoom: float = 0.1
  scaling: str = "each"
  max_length: int = 1000
  lower_case: bool = True
  stop_words: str = "none"
  embedding_features: int = 128
  embeddings: str = ""
  freeze_embeddings: bool = False
  bidirectional: bool = True
  pooling: str = "last"
  input_dropout: float = 0.0
  output_dropout: float = 0.2
  class_weights: str = "none"
  label_smoothing: float = 0.1
  imputation_weight: float = 1.0
  # Defaults that differ from those of the base classes.
  tokenizer: str = "word"
  cell: str = "gru"
  layers: int = 2
  features: int = 64
  dropout: float = 0.2
  steps: int = 2000
  batch_size: int = 64
  eval_every: int = 250
  learning_rate: float = 4e-3
  schedule: str = "cosine"
  warmup_steps: int = 50
  weight_decay: float = 0.01
  ema: float = 0.99

  POSITIVE: typing.ClassVar[frozenset[str]] = frozenset(
    "max_length embedding_features".split()
  )
  BELOW_ONE: typing.ClassVar[frozenset[str]] = frozenset(
    "input_dropout output_dropout label_smoothing".split()
  )
  CHOICES: typing.ClassVar[dict[str, Sequence[str]]] = {
    "images": labelled_sets.LAYOUTS,
    "scaling": ("each", "all", "none"),
    "stop_words": ("none", "english"),
    "pooling": ("last", "mean", "max", "attention"),
    "class_weights": ("none", "balanced"),
  }
  SMOKE: typing.ClassVar[dict[str, Any]] = {"embedding_features": 8}
  NEEDS: typing.ClassVar[dict[str, tuple[str, Sequence[Any]]]] = {
    "dataset": ("data_file", ("",)),
    "data_dir": ("data_file", ("",)),
    "images": ("data_file", ("",)),
    **dict.fromkeys(("shift", "rotation", "zoom"), ("data_file", ("",))),
    "embeddings": ("tokenizer", ("word",)),
    "embedding_features": ("embeddings", ("",)),
    "imputation_weight": ("missing", ("model",)),
  }

  def check(self):
    """Raises ConfigError if a value is wrong."""
    super().check()
    splits.parse_shares(self.splits)
    if self.freeze_embeddings and not self.embeddings:
      raise ConfigError(
        "--freeze_embeddings without --embeddings would never train them",
        "add --embeddings=FILE",
      )
    if self.missing == "decay" and self.bidirectional:
      raise ConfigError(
        "--missing=decay runs forward in time only",
        "add --nobidirectional, or use another --missing",
      )


def load(config: Config) -> labelled.Labelled:
  """Reads the sequences that the flags name, in splits."""
  shares = splits.parse_shares(config.splits)
  if config.data_file:
    return labelled.read(config.data_file).divided(shares)
  if config.dataset == "digits":
    return labelled_sets.digits(config.images)
  return labelled_sets.load_dataset(
    config.dataset, config.data_dir or None, config.images
  ).divided(shares)


def make_model(
  config: Config, encoder: encoding.Encoder, rngs: nnx.Rngs
) -> Classifier:
  """Makes the model that the flags describe, for the data of an encoder."""
  imputer = None
  if encoder.reads_gaps and config.missing == "model":
    imputer = network.make_imputer(config, encoder.width, rngs=rngs)
  stack = network.make_stack(
    config,
    encoder.width,
    causal=not config.bidirectional,
    observed=encoder.reads_gaps and config.missing == "decay",
    rngs=rngs,
  )
  both_ends = config.bidirectional and config.cell != network.TRANSFORMER
  kind = "ends" if both_ends and config.pooling == "last" else config.pooling
  return Classifier(
    stack,
    len(encoder.classes),
    pooling=None if encoder.per_step else kind,
    imputer=imputer,
    vocab_size=encoder.vocab_size or None,
    freeze_embedding=config.freeze_embeddings,
    input_dropout=config.input_dropout,
    output_dropout=config.output_dropout,
    dtype=jnp.dtype(config.dtype),
    rngs=rngs,
  )


def run_model(model: Classifier, batch, key=None):
  """The result of `Classifier.run` for a batch of `Encoded.examples`."""
  inputs, mask = batch["inputs"], batch["mask"]
  if "observed" in batch:
    observed = batch["observed"] & mask[..., None]
    if key is not None:
      key, drawn = jax.random.split(key)
      observed = nn.drop_variables(drawn, observed, model.input_dropout)
    elapsed = cells.elapsed_since_observed(batch["times"], observed)
    inputs = cells.Observations(inputs, observed, elapsed)
  return model.run(inputs, mask=mask, key=key)


def loss(
  model: Classifier,
  carry: Any,
  batch: dict[str, jax.Array],
  key: PRNGKey | None,
  *,
  class_weights: np.ndarray,
  label_smoothing: float,
  imputation_weight: float,
):
  """Mean cross-entropy in nats, weighted by class and smoothed in training.

  Args:
    model: the model.
    carry: returned as it is.
    batch: `inputs`, `mask`, `labels` and `weights`; see `Encoded`.
    key: PRNG key of the dropout masks; None for evaluation.
    class_weights: weight of each class, [C].
    label_smoothing: see `losses.cross_entropy`.
    imputation_weight: weight of the squared error of the predicted inputs.
  """
  labels, weights = batch["labels"], batch["weights"]
  if labels.ndim == 2:
    weights = weights[:, None] * (batch["mask"] & (labels >= 0))
  labels = jnp.maximum(labels, 0)
  logits, error = run_model(model, batch, key)
  smoothed = losses.cross_entropy(
    logits, labels, label_smoothing=label_smoothing
  )
  total = Mean.of(smoothed, weights * jnp.asarray(class_weights)[labels])
  nats = Mean.of(losses.cross_entropy(logits, labels), weights)
  correct = Mean.of(logits.argmax(axis=-1) == labels, weights)
  objective, metrics = total.value(), {"nats": nats, "accuracy": correct}
  if error is not None:
    seen = batch["observed"] & batch["mask"][..., None]
    metrics["imputation_loss"] = Mean.of(error, seen)
    objective += imputation_weight * metrics["imputation_loss"].value()
  return objective, (carry, metrics)


def predict_batch(model: Classifier, batch) -> dict[str, jax.Array]:
  """The probabilities of the classes."""
  return {"probabilities": jax.nn.softmax(run_model(model, batch)[0])}


def make_task(config: Config) -> runner.Task:
  """Makes the `Task` of the runner: data, model, loss and evaluation."""
  config.check_device()
  found = load(config)
  encoder = encoding.fit(
    found,
    tokenizer=config.build_tokenizer,
    strategy=config.missing,
    lower=config.lower_case,
    stop_words=config.stop_words != "none",
    max_length=config.max_length,
    scaling=config.scaling,
  )
  check_kind(config, encoder, found)
  if encoder.per_step:
    classification.check_seqeval()  # It is needed after training only.
  parts = {name: encoding.select(found, name) for name in labelled.SPLITS}
  encoded = {name: encoder.encode(part) for name, part in parts.items()}
  table = embedding(config, encoder)
  width = config.embedding_features if table is None else table.shape[1]
  if encoder.kind != "values":
    encoder = dataclasses.replace(encoder, width=width)
  targets = {name: x.targets() for name, x in encoded.items()}
  names = np.array([str(x) for x in encoder.classes])
  counts = np.bincount(targets["train"], minlength=len(encoder.classes))
  class_weights = np.ones(len(counts), np.float32)
  if config.class_weights == "balanced":
    class_weights *= counts.sum() / (len(counts) * np.maximum(counts, 1))

  def make(rngs):
    model = make_model(config, encoder, rngs)
    if table is not None:
      model.embedding[...] = jnp.asarray(table)
    return model

  def describe(split, scores):
    means = {f"{split}_{name}": x for name, x in scores.means.items()}
    if split == "train":
      return means
    flat = encoded[split].flatten(scores.predictions["probabilities"])
    metrics = classification.summary(targets[split], flat)
    if encoder.per_step:
      metrics["slot_f1"] = classification.entity_f1(
        *(
          encoded[split].unflatten(names[numbers])
          for numbers in (targets[split], flat.argmax(axis=1))
        )
      )
    return means | {f"{split}_{name}": x for name, x in metrics.items()}

  def report(split, scores, folder, model):
    del model
    flat = encoded[split].flatten(scores.predictions["probabilities"])
    predicted = flat.argmax(axis=1)
    counts = classification.confusion(targets[split], predicted, len(names))
    path = folder / f"confusion_{split}.png"
    figures.confusion(counts, names, path)
    table = classification.per_class(targets[split], predicted, names)
    return f"{table}\nConfusion matrix: {path}"

  batches: Any = data.ExampleBatches(
    encoded["train"].examples,
    config.batch_size,
    buckets=BUCKETS,
    masks=encoder.ragged,
    seed=config.seed,
  )
  if found.image and (config.shift or config.rotation or config.zoom):
    change = functools.partial(augment, config, found, encoder)
    batches = data.AugmentedBatches(batches, change, config.seed)
  return runner.Task(
    name=NAME,
    make_model=make,
    loss=functools.partial(
      loss,
      class_weights=class_weights,
      label_smoothing=config.label_smoothing,
      imputation_weight=config.imputation_weight,
    ),
    batches=batches,
    splits={
      name: _in_batches(x.examples, config, encoder)
      for name, x in encoded.items()
    },
    objective="valid_nats",
    predict=predict_batch,
    describe=describe,
    report=report,
    data_sha256=encoding.digest(encoded["train"].examples),
    save=encoder.save,
    next_command="experiments.predict --input=FILE --output=labels.jsonl",
  )


def check_kind(config, encoder, found) -> None:
  """Raises ConfigError if a flag is for data of another kind."""
  changed = config_lib.not_default(config)
  for_kind = {
    "text": "tokenizer vocab_size min_count embeddings lower_case stop_words",
    "values": "missing scaling",
  }
  for kind, names in for_kind.items():
    for name in names.split():
      if kind != encoder.kind and name in changed:
        raise ConfigError(
          f"--{name} is for {kind}, and the data are {encoder.kind}",
          "leave it out",
        )
  if encoder.per_step and config.stop_words != "none":
    raise ConfigError(
      "--stop_words would leave out words that have labels", "leave it out"
    )
  for name in ("shift", "rotation", "zoom"):
    if not found.image and name in changed:
      raise ConfigError(f"--{name} is for images", "leave it out")


def _in_batches(examples, config, encoder) -> data.EvalBatches:
  # Examples to predict have no labels.
  masks = {k: v for k, v in encoder.ragged.items() if k in examples[0]}
  return data.EvalBatches(
    examples, config.batch_size, buckets=BUCKETS, masks=masks
  )


def embedding(config, encoder) -> np.ndarray | None:
  """The word vectors [V, D] that the embedding starts from, if any."""
  if not config.embeddings:
    return None
  vocabulary = ("", *encoder.tokenizer.words)
  table, known = words.read_vectors(
    config.embeddings, vocabulary, seed=config.seed
  )
  runner.LOG.info(
    "%d of the %d words of the vocabulary are in %s.",
    known.sum(),
    len(vocabulary),
    config.embeddings,
  )
  return table


def augment(config, found, encoder, rng, batch):
  """Shifts, rotates and zooms each image of a batch by random amounts."""
  maps = labelled_sets.draw_maps(
    rng,
    len(batch["inputs"]),
    shift=config.shift,
    rotation=config.rotation,
    zoom=config.zoom,
  )
  [background] = (0 - encoder.mean) / encoder.scale
  inputs = labelled_sets.warp(
    batch["inputs"], found.image, found.order, maps, background
  )
  return {**batch, "inputs": inputs}


def predict(workdir: str, file: str) -> Iterator[dict[str, Any]]:
  """Classifies the rows of a file.

  Args:
    workdir: directory of the run.
    file: path of a file in a format of the training data, without labels.

  Yields:
    For each row, its `label`, and `probabilities` by label; or `labels` and a
    list of probabilities, one for each word or time step. They are None for
    time steps that were left out.

  Raises:
    UserError: if the workdir has no model, or the file has another format.
  """
  config = runner.read_config(workdir, NAME, Config)
  encoder = encoding.load(workdir)
  encoded = encoder.encode(labelled.read(file, labelled=False, flag="input"))
  make = functools.partial(make_model, config, encoder)
  trained = runner.load_params(config, make)
  batches = _in_batches(encoded.examples, config, encoder)
  found = runner.make_predictor(trained, predict_batch)(batches)
  names = [str(x) for x in encoder.classes]

  def label(row):
    by_name = dict(zip(names, map(float, row), strict=True))
    return names[int(row.argmax())], by_name

  pairs = zip(found["probabilities"], encoded.steps, strict=True)
  for row, steps in pairs:
    if encoder.per_step:
      each = [label(row[t]) if t >= 0 else (None, None) for t in steps]
      yield {
        "labels": [x for x, _ in each],
        "probabilities": [p for _, p in each],
      }
    else:
      yield dict(zip(("label", "probabilities"), label(row), strict=True))


run = functools.partial(runner.train, make_task=make_task)

if __name__ == "__main__":
  runner.main(run, Config)
