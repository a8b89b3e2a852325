"""Turns labelled sequences into examples of tokens or values, and classes."""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from recurrent import files
from recurrent.data import labelled, missing, tokenizers, words
from recurrent.errors import DataError

LOG = logging.getLogger("recurrent")

FILE = "encoder.json"
UNLABELLED = -1


class Encoded(NamedTuple):
  """Examples for `data.ExampleBatches`.

  Attributes:
    examples: dicts of `inputs`, int32 [time] or float32 [time, D]; with labels
      `labels`, int32 numbers of classes, a number or [time], where `UNLABELLED`
      marks time steps without a label; and for networks that read what is
      missing `observed`, bool [time, D], and `times`, float32 [time].
    steps: for labels per time step, the time step of each label that was read,
      ints [labels]; -1 where it has been left out.
  """

  examples: list[dict[str, np.ndarray]]
  steps: list[np.ndarray]

  def targets(self) -> np.ndarray:
    """The class of each sequence, or of each labelled time step, [labels]."""
    flat = np.concatenate([np.ravel(x["labels"]) for x in self.examples])
    return flat[flat != UNLABELLED]

  def flatten(self, rows: Sequence[np.ndarray]) -> np.ndarray:
    """Joins predictions in the order of `targets`.

    Args:
      rows: one array [...] per sequence, or with labels per time step [time,
        ...], where time may be padded.
    """
    if not np.ndim(self.examples[0]["labels"]):
      return np.stack(rows)
    labels = [x["labels"] for x in self.examples]
    pairs = zip(rows, labels, strict=True)
    return np.concatenate([row[: len(x)][x != UNLABELLED] for row, x in pairs])

  def unflatten(self, flat: np.ndarray) -> list[np.ndarray]:
    """Splits an array in the order of `targets` into one per sequence."""
    labels = [np.ravel(x["labels"]) for x in self.examples]
    ends = np.cumsum([(x != UNLABELLED).sum() for x in labels])
    return np.split(flat, ends[:-1])


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
  """What a model must know about the data that it was trained on.

  Args:
    kind: "text", "tokens" or "values"; see `labelled.Labelled`.
    per_step: whether a label belongs to each time step.
    classes: the labels of the train split, sorted.
    width: width of the inputs of a network: the number of variables D of
      values, or the width of the embedding of tokens.
    vocab_size: number of tokens; 0 for values.
    mean: [D] or [1]; values are encoded as (value - mean) / scale.
    scale: [D] or [1].
    tokenizer: of texts.
    statistics: of the values of the train split, to fill gaps.
    strategy: what replaces missing values, one of `missing.STRATEGIES`.
    lower: whether texts are lower-cased.
    stop_words: whether the stop words of texts are left out.
    max_length: time steps after this many are left out.
    span: the unit of the `times` of examples: the mean time from the first to
      the last time step of a sequence of the train split. Rates of decay per
      time are drawn for times of this size.
  """

  kind: str
  per_step: bool
  classes: np.ndarray
  width: int
  vocab_size: int
  mean: np.ndarray
  scale: np.ndarray
  tokenizer: tokenizers.Tokenizer | None
  statistics: missing.Statistics | None
  strategy: str
  lower: bool
  stop_words: bool
  max_length: int
  span: float = 1.0

  @property
  def reads_gaps(self) -> bool:
    """Whether examples have `observed` and `times`."""
    return self.kind == "values" and self.strategy in missing.LEARNT

  @property
  def ragged(self) -> dict[str, str]:
    """The `masks` of `data.ExampleBatches`."""
    keys = ["inputs"]
    keys += ["labels"] * self.per_step
    keys += ["observed", "times"] * self.reads_gaps
    return dict.fromkeys(keys, "mask")

  def prepare(self, text: str) -> str:
    """Lower-cases a text and leaves out stop words, if asked for.

    The result begins with a space, as the other words of a text do, so that its
    first word is the same token as elsewhere.
    """
    drop = words.stop_words() if self.stop_words else ()
    return " " + words.prepare(text.lstrip(), lower=self.lower, drop=drop)

  def encode(self, data: labelled.Labelled) -> Encoded:
    """Encodes sequences, and logs how many were cut.

    Raises:
      DataError: if they are of another kind than those the encoder was made
        from, or a label was never seen.
    """
    self._check(data)
    labels = labelled.encode_labels(data, self.classes)
    examples, steps, long = [], [], 0
    for i, row in enumerate(data.inputs):
      times = None if data.times is None else data.times[i]
      example, places = self._sequence(row, times)
      length = len(example["inputs"])
      long += length > self.max_length
      example = {k: v[: self.max_length] for k, v in example.items()}
      places = np.where(places < self.max_length, places, -1)
      if labels and self.per_step:
        found = np.full(min(length, self.max_length), UNLABELLED, np.int32)
        found[places[places >= 0]] = labels[i][places >= 0]
        example["labels"] = found
      elif labels:
        example["labels"] = labels[i]
      examples.append(example)
      steps.append(places)
    if long:
      LOG.info(
        "%d of %d sequences have more than max_length=%d time steps; the rest"
        " of each is left out.",
        long,
        len(examples),
        self.max_length,
      )
    return Encoded(examples, steps)

  def _check(self, data):
    if data.kind != self.kind:
      raise DataError(
        f"the data are {data.kind}, and the model was trained on {self.kind}",
        "give data of the format that it was trained on",
      )
    for i, row in enumerate(data.inputs):
      if self.kind == "values" and row.shape[-1] != self.width:
        raise DataError(
          f"{data.place(i)}: {row.shape[-1]} variables, not {self.width}",
          "give each time step as many variables as the train split has",
        )
      if self.kind == "tokens" and row.max(initial=0) >= self.vocab_size:
        raise DataError(
          f"{data.place(i)}: token {row.max()}, and the largest of the train"
          f" split is {self.vocab_size - 1}",
          "leave it out, or replace it by a token for all rare ones",
        )

  def _sequence(self, row, times):
    """Encodes a sequence, and finds the time step of each of its labels."""
    if self.kind == "tokens":
      return {"inputs": row.astype(np.int32)}, np.arange(len(row))
    if self.kind == "text":
      return self._text(row)
    row = np.asarray(row, np.float32)
    filled = missing.fill(row, self.strategy, self.statistics, times=times)
    values = ((filled.values - self.mean) / self.scale).astype(np.float32)
    example = {"inputs": values}
    if self.reads_gaps:
      example |= {
        "observed": filled.observed,
        "times": (_since_start(row, times) / self.span).astype(np.float32),
      }
    # "drop" leaves out time steps.
    places = np.where(filled.keep, np.cumsum(filled.keep) - 1, -1)
    return {k: v[filled.keep] for k, v in example.items()}, places

  def _text(self, text):
    if not self.per_step:
      ids = self.tokenizer.encode(self.prepare(text))
      return {"inputs": ids.astype(np.int32)}, np.zeros(0, int)
    # The label of a word belongs to the last of its tokens.
    parts = [self.tokenizer.encode(self.prepare(x)) for x in text.split()]
    places = np.cumsum([len(ids) for ids in parts]) - 1
    return {"inputs": np.concatenate(parts).astype(np.int32)}, places

  def save(self, folder: str | os.PathLike) -> None:
    """Writes the encoder to a folder; `load` reads it."""
    folder = pathlib.Path(folder)
    values = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
    }
    if (tokenizer := values.pop("tokenizer")) is not None:
      tokenizer.save(folder / "tokenizer.json")
    if self.statistics is not None:
      values["statistics"] = [x.tolist() for x in self.statistics]
    values = {
      k: v.tolist() if isinstance(v, np.ndarray) else v
      for k, v in values.items()
    }
    files.write_text(folder / FILE, json.dumps(values))


def fit(
  data: labelled.Labelled,
  *,
  tokenizer: Any = None,
  strategy: str = "mean",
  lower: bool = True,
  stop_words: bool = False,
  max_length: int = 1000,
  scaling: str = "each",
) -> Encoder:
  """Makes the encoder of data, from its train split.

  Args:
    data: sequences with labels and splits.
    tokenizer: `tokenizer(text) -> tokenizers.Tokenizer`, for texts; it is given
      the joined texts of the train split.
    strategy: one of `missing.STRATEGIES`.
    lower: whether texts are lower-cased.
    stop_words: whether the stop words of texts are left out.
    max_length: largest number of time steps.
    scaling: "each": every variable of values is scaled to mean 0 and variance 1
      of the train split; "all": all variables are scaled alike, as pixels
      should be; "none": none is.

  Raises:
    DataError: if the train split has one class only.
  """
  train = select(data, "train")
  labels: Any = train.labels
  one = np.ones(1)
  encoder = Encoder(
    kind=data.kind,
    per_step=data.per_step,
    classes=labelled.classes_of(labels),
    width=0,
    vocab_size=0,
    mean=0 * one,
    scale=one,
    tokenizer=None,
    statistics=None,
    strategy=strategy,
    lower=lower,
    stop_words=stop_words,
    max_length=max_length,
  )
  if data.kind == "text":
    made = tokenizer("".join(map(encoder.prepare, train.inputs)))
    return dataclasses.replace(
      encoder, tokenizer=made, vocab_size=made.vocab_size
    )
  if data.kind == "tokens":
    most = max(int(row.max(initial=0)) for row in train.inputs)
    return dataclasses.replace(encoder, vocab_size=1 + most)
  statistics = missing.measure(train.inputs)
  mean, scale = encoder.mean, encoder.scale
  if scaling != "none":
    together = scaling == "all" or data.image is not None
    mean, scale = _moments(train.inputs, together)
  return dataclasses.replace(
    encoder,
    width=len(statistics.mean),
    statistics=statistics,
    mean=mean,
    scale=scale,
    span=_span(train),
  )


def _since_start(row, times):
  """Times of the time steps of a sequence; the first is zero."""
  return np.arange(len(row)) if times is None else times - times[:1]


def _span(data) -> float:
  times = data.times or [None] * len(data.inputs)
  pairs = zip(data.inputs, times, strict=True)
  ends = [_since_start(row, time)[-1] for row, time in pairs if len(row)]
  return float(np.mean(ends)) or 1.0 if ends else 1.0


def _moments(rows, together) -> tuple[np.ndarray, np.ndarray]:
  """Mean and deviation of each variable, or of all pixels together."""
  flat = np.concatenate([row.reshape(-1, row.shape[-1]) for row in rows])
  flat = flat.reshape(-1, 1) if together else flat
  seen = ~np.isnan(flat)
  count = np.maximum(seen.sum(axis=0), 1)
  mean = np.where(seen, flat, 0.0).sum(axis=0, dtype=np.float64) / count
  square = np.where(seen, (flat - mean) ** 2, 0.0).sum(axis=0) / count
  scale = np.sqrt(square)
  # A variable that never changes is left as it is.
  return mean, np.where(scale > 1e-12 * np.abs(mean), scale, 1.0)


def load(folder: str | os.PathLike) -> Encoder:
  """Reads an encoder that `Encoder.save` wrote.

  Raises:
    DataError: if there is none.
  """
  folder = pathlib.Path(folder)
  try:
    values = json.loads((folder / FILE).read_text(encoding="utf-8"))
    for name in ("classes", "mean", "scale"):
      values[name] = np.array(values[name])
    if values["statistics"] is not None:
      columns = [np.array(x) for x in values["statistics"]]
      values["statistics"] = missing.Statistics(*columns)
    text = values["kind"] == "text"
    found = tokenizers.load(folder / "tokenizer.json") if text else None
    return Encoder(tokenizer=found, **values)
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise DataError(
      f"cannot read {folder / FILE}: {error}",
      "it is written where training starts: train again, or restore it",
    ) from error


def select(data: labelled.Labelled, split: str) -> labelled.Labelled:
  """The sequences of a split; `data` must have splits and labels."""
  return data.take(np.flatnonzero(data.splits == split))


def digest(examples: Sequence[Mapping[str, np.ndarray]]) -> str:
  """SHA-256 of examples, in hex."""
  sha = hashlib.sha256()
  for example in examples:
    for name in sorted(example):
      array = np.ascontiguousarray(example[name])
      sha.update(f"{name} {array.dtype} {array.shape}".encode())
      sha.update(array.tobytes())
  return sha.hexdigest()
