r"""Trains a network that transcribes sounds, by CTC.

  python -m experiments.speech_recognition --workdir=runs/morse
  python -m experiments.speech_recognition --workdir=runs/mine \
    --manifest=speech/manifest.tsv --bands=40

By default it learns to read Morse code in noise, drawn anew at each step.
Results are the character and word error rate by jiwer.
docs/speech_recognition.md has the format of your own recordings.
"""

import dataclasses
import functools
import json
import logging
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import figures, fusion, network, runner
from recurrent import audio, data, length_mask, losses, rows
from recurrent.data import encoding, labelled, morse, speech, splits, tokenizers
from recurrent.decoding import ctc
from recurrent.errors import ConfigError
from recurrent.metrics import Mean
from recurrent.metrics.speech import check_jiwer, error_rates
from recurrent.models import Transcriber
from recurrent.training.step import loss_of
from recurrent.types import PRNGKey

LOG = logging.getLogger("recurrent")
NAME = "speech_recognition"
LESSONS = (0.25, 0.5, 0.75, 1.0)  # shares of the variety of Morse code
MASKS = {"samples": "sample_mask", "labels": "label_mask"}
RATE = "sounds.json"  # has the samples per second
BUCKETS = 4  # lengths to which sounds are padded
SHOWN = 5  # transcripts that are shown at an evaluation


@dataclasses.dataclass(frozen=True)
class Config(network.NetworkConfig):
  """Flags of speech recognition; the defaults are the recipe of Morse code.

  Args:
    dataset: morse, or a dataset of the TFDS catalogue that has been prepared,
      such as spoken_digit, speech_commands or librispeech.
    data_dir: directory in which the dataset was prepared; by default that of
      TFDS.
    manifest: path of a .tsv file that names WAV files and has their
      transcripts, instead of a dataset.
    splits: shares of train, valid and test in percent. The splits that the data
      lack are drawn from train, by a hash of each row.
    join: smallest and largest number of sounds of one speaker that are joined
      with pauses to one, such as 3,7; empty: sounds stay as they are.
    join_repeats: number of times that the sounds of train are joined, each time
      in another order.
    sample_rate: samples per second to which sounds are resampled; 0: those of
      the first one.
    max_seconds: longer sounds are left out of training.
    message_seconds: length of a message in Morse code.
    test_examples: number of messages of each signal-to-noise ratio in test; a
      fourth of that in valid.
    window_ms: length of a frame of the spectrum, in milliseconds.
    hop_ms: time from one frame to the next, in milliseconds.
    bands: number of mel bands of a frame.
    stacking: number of frames that make one time step of the network.
    delay: number of time steps that the network hears before it says what a
      time step was, if it is not bidirectional.
    bidirectional: run each layer in both directions; there is no streaming
      then.
    input_dropout: dropout rate of the inputs, with one mask for all time steps.
    output_dropout: dropout rate of what the symbols are computed from.
    gain: training sounds are made up to this much louder or quieter, in dB.
    speed: training sounds are played up to this share faster or slower.
    time_masks: number of stripes of time that are hidden in training.
    time_width: largest width of such a stripe, in frames.
    band_masks: number of stripes of mel bands that are hidden in training.
    band_width: largest width of such a stripe, in bands.
    beams: number of prefixes that the search follows; 1: the best symbol of
      each time step.
    language_model: workdir of a language_model with --tokenizer=char, which
      takes part in the search.
    lm_weight: factor of its log-probabilities.
    length_bonus: what each symbol adds to the score of the search.
  """

  dataset: str = "morse"
  data_dir: str = ""
  manifest: str = ""
  splits: str = "90,5,5"
  join: str = ""
  join_repeats: int = 10
  sample_rate: int = 0
  max_seconds: float = 20.0
  message_seconds: float = 4.0
  test_examples: int = 128
  window_ms: float = 32.0
  hop_ms: float = 10.0
  bands: int = 24
  stacking: int = 4
  delay: int = 12
  bidirectional: bool = True
  input_dropout: float = 0.0
  output_dropout: float = 0.0
  gain: float = 0.0
  speed: float = 0.0
  time_masks: int = 0
  time_width: int = 30
  band_masks: int = 0
  band_width: int = 6
  beams: int = 8
  language_model: str = ""
  lm_weight: float = 0.3
  length_bonus: float = 0.0
  # Defaults that differ from those of the base classes.
  cell: str = "lstm"
  layers: int = 2
  features: int = 128
  steps: int = 2500
  batch_size: int = 32
  learning_rate: float = 4e-3
  schedule: str = "cosine"
  warmup_steps: int = 100
  ema: float = 0.99

  POSITIVE: typing.ClassVar[frozenset[str]] = frozenset(
    "join_repeats max_seconds test_examples window_ms hop_ms bands stacking"
    " beams".split()
  )
  BELOW_ONE: typing.ClassVar[frozenset[str]] = frozenset(
    "input_dropout output_dropout speed".split()
  )
  SMOKE: typing.ClassVar[dict[str, Any]] = {
    "message_seconds": 3.0,
    "test_examples": 4,
  }
  NEEDS: typing.ClassVar[dict[str, tuple[str, Sequence[Any]]]] = {
    "dataset": ("manifest", ("",)),
    "data_dir": ("manifest", ("",)),
    "delay": ("bidirectional", (False,)),
    **dict.fromkeys(
      ("message_seconds", "test_examples"), ("dataset", ("morse",))
    ),
  }

  def check(self):
    """Raises ConfigError if a value is wrong."""
    super().check()
    splits.parse_shares(self.splits)
    _ = self.joined
    if self.lm_weight != Config.lm_weight and not self.language_model:
      raise ConfigError(
        "--lm_weight does nothing without --language_model",
        "add --language_model=WORKDIR, or leave it out",
      )
    if self.message_seconds < morse.SHORTEST:
      raise ConfigError(
        f"--message_seconds={self.message_seconds} is too short",
        f"use {morse.SHORTEST} or more",
      )

  @property
  def joined(self) -> tuple[int, int] | None:
    """The least and the largest number of sounds to join."""
    if not self.join:
      return None
    parts = self.join.split(",")
    if len(parts) == 2 and all(part.isdecimal() for part in parts):
      least, most = map(int, parts)
      if 1 <= least <= most:
        return least, most
    raise ConfigError(
      f"--join={self.join} does not give a smallest and a largest number",
      "use two whole numbers from 1, such as --join=3,7",
    )

  @property
  def drawn(self) -> bool:
    """Whether the sounds are Morse code."""
    return not self.manifest and self.dataset == "morse"


class Sounds(typing.NamedTuple):
  """What is to be learnt.

  Attributes:
    parts: the sounds of the splits; those that are drawn have no train.
    tokenizer: makes the labels of transcripts; id 0 is the blank.
    snrs: the signal-to-noise ratios of the sounds of test in dB; empty: they
      are not known.
    sha256: hash of the sounds of train.
  """

  parts: dict[str, labelled.Labelled]
  tokenizer: tokenizers.CharTokenizer
  snrs: Sequence[int] = ()
  sha256: str = ""

  @property
  def rate(self) -> int:
    """Samples per second."""
    return self.parts["test"].rate


def load(config: Config) -> Sounds:
  """Reads or draws the sounds that the flags name.

  Raises:
    DataError: if they are not as they should be.
  """
  if config.drawn:
    snrs = np.repeat(morse.TEST_SNRS, config.test_examples).tolist()
    draw = lambda seed, snrs: morse.draw_messages(
      np.random.default_rng((9, 9, seed)), config.message_seconds, snrs
    )
    parts = {"valid": draw(1, snrs[::4]), "test": draw(2, snrs)}
    return Sounds(parts, tokenizers.CharTokenizer(morse.ALPHABET), snrs)
  if config.manifest:
    found = speech.read_manifest(config.manifest, rate=config.sample_rate)
  else:
    found = speech.load_dataset(
      config.dataset, config.data_dir or None, rate=config.sample_rate
    )
  found = found.divided(splits.parse_shares(config.splits))
  most = config.max_seconds * found.rate
  short = np.array([len(x) <= most for x in found.inputs])
  fits = short | (found.splits != "train")
  LOG.info("%d sounds of train are longer than --max_seconds.", (~fits).sum())
  found = found.take(np.flatnonzero(fits))
  parts = {name: encoding.select(found, name) for name in labelled.SPLITS}
  joint = " " if config.joined else ""
  tokenizer = tokenizers.CharTokenizer.train(
    joint.join(["", *parts["train"].labels])
  )
  encoded = [encode(config, part, tokenizer) for part in parts.values()]
  if config.joined:
    for name, part in parts.items():
      repeats = config.join_repeats if name == "train" else 1
      parts[name] = speech.join(part, *config.joined, repeats=repeats)
  return Sounds(parts, tokenizer, sha256=encoding.digest(encoded[0]))


def encode(
  config: Config, part: labelled.Labelled, tokenizer: tokenizers.CharTokenizer
) -> Sequence[Mapping[str, np.ndarray]]:
  """Makes `samples` and `labels` of sounds; see `speech.encode`."""
  period = config.stacking * make_features(config, part.rate).hop
  return speech.encode(part, tokenizer, period)


def make_batches(config: Config, sounds: Sounds) -> Any:
  """The batches of training, a function of (seed, step)."""
  size, seconds = config.batch_size, config.message_seconds
  if not config.drawn:
    train = encode(config, sounds.parts["train"], sounds.tokenizer)
    return data.ExampleBatches(
      train, size, buckets=BUCKETS, masks=MASKS, seed=config.seed
    )
  shape = [(int(seconds * sounds.rate), morse.most_symbols(seconds))]

  def draw(rng, variety):
    found = morse.draw_messages(rng, seconds, [None] * size, variety)
    rows = encode(config, found, sounds.tokenizer)
    return data.EvalBatches(rows, size, buckets=shape, masks=MASKS)[0]

  lessons = [
    data.DrawnBatches(functools.partial(draw, variety=share), config.seed)
    for share in LESSONS
  ]
  ends = [config.steps * share // 100 for share in (8, 16, 24)]
  return data.StagedBatches(lessons, ends)


def make_features(config: Config, rate: int) -> audio.LogMel:
  """The spectrum that the flags describe, for samples of a rate.

  Raises:
    ConfigError: if there is none.
  """
  samples = lambda milliseconds: round(milliseconds * rate / 1000)
  try:
    return audio.LogMel(
      rate, samples(config.window_ms), samples(config.hop_ms), config.bands
    )
  except ValueError as error:
    raise ConfigError(
      f"--window_ms={config.window_ms}, --hop_ms={config.hop_ms},"
      f" --bands={config.bands} at {rate} samples per second: {error}",
      "change one of them",
    ) from error


def make_model(
  config: Config, rate: int, symbols: int, rngs: nnx.Rngs
) -> Transcriber:
  """Makes the model that the flags describe."""
  return Transcriber(
    make_features(config, rate),
    network.make_stack(
      config,
      config.stacking * config.bands,
      causal=not config.bidirectional,
      rngs=rngs,
    ),
    symbols,
    stacking=config.stacking,
    delay=0 if config.bidirectional else config.delay,
    input_dropout=config.input_dropout,
    output_dropout=config.output_dropout,
    dtype=jnp.dtype(config.dtype),
    rngs=rngs,
  )


def statistics(
  features: audio.LogMel, batches: Any, count: int = 8
) -> tuple[np.ndarray, np.ndarray]:
  """Mean of each band over some batches, and the inverse of its deviation."""
  found = []
  for step in range(count):
    mask = batches[step]["sample_mask"][:, features.window - 1 :: features.hop]
    found.append(np.asarray(features(batches[step]["samples"]))[mask])
  frames = np.concatenate(found)
  return frames.mean(axis=0), 1 / np.maximum(frames.std(axis=0), 1e-3)


def augment(config: Config, samples, mask, key: PRNGKey):
  """Changes the volume and the speed of training sounds; see `Config`."""
  loud, fast = jax.random.split(key)
  draw = lambda key, most: (
    most * (2 * rows.uniform(key, (len(samples),), samples) - 1)
  )
  if config.gain:
    samples *= 10 ** (draw(loud, config.gain)[:, None] / 20)
  if config.speed:
    speeds = 1 + draw(fast, config.speed)
    size = int(samples.shape[1] / (1 - config.speed)) + 1
    samples, lengths = audio.change_speed(
      samples, mask.sum(axis=1), speeds, size
    )
    mask = length_mask(lengths, size)
  return samples, mask


def measure(
  model: Transcriber,
  batch: dict[str, jax.Array],
  key: PRNGKey | None,
  *,
  config: Config,
) -> dict[str, Mean]:
  """The CTC loss in nats per symbol.

  A row whose sound became too short for its transcript does not count.
  """
  samples, mask = batch["samples"], batch["sample_mask"]
  keys: Any = (None,) * 3 if key is None else jax.random.split(key, 3)
  if key is not None:
    samples, mask = augment(config, samples, mask, keys[0])
  spectrum = model.spectrum(samples)
  if key is not None:
    spectrum = audio.spec_augment(
      keys[1],
      spectrum,
      model.every(model.features.hop, mask),
      time_masks=config.time_masks,
      time_width=config.time_width,
      band_masks=config.band_masks,
      band_width=config.band_width,
    )
  steps = model.every(model.period, mask)
  logits = model.logits(spectrum, mask=steps, key=keys[2])
  nats = losses.ctc(logits, steps, batch["labels"], batch["label_mask"])
  symbols = batch["label_mask"].sum(axis=1) * jnp.isfinite(nats)
  return {"nats": Mean.of(nats / jnp.maximum(symbols, 1), symbols)}


def make_search(
  config: Config, tokenizer: tokenizers.CharTokenizer
) -> Callable[[Transcriber, dict[str, jax.Array]], dict[str, jax.Array]]:
  """Makes the `predict` of the task: `search(model, batch)`.

  It returns the transcripts that the search found, best first.
  """
  speaks = None
  if config.language_model:
    speaks = fusion.load(config.language_model, tokenizer, config.lm_weight)

  def search(model, batch):
    logits, mask = model(batch["samples"], mask=batch["sample_mask"])
    if config.beams > 1 or speaks:
      found = ctc.beam_search(
        logits,
        mask,
        beams=config.beams,
        language_model=speaks and speaks(len(logits)),
        length_bonus=config.length_bonus,
      )
    else:
      found = ctc.greedy(logits, mask)
    return found._asdict()

  return search


def n_best(tokenizer, tokens, lengths, scores) -> list[dict[str, Any]]:
  """The transcripts of one sound, best first, each with its score."""
  return [
    {"text": tokenizer.decode(row[: int(length)]), "score": float(score)}
    for row, length, score in zip(tokens, lengths, scores, strict=True)
    if score > -1e8
  ]


def make_task(config: Config) -> runner.Task:
  """Makes the `Task` of the runner: data, model, loss and evaluation."""
  config.check_device()
  check_jiwer()  # It is needed after training only.
  sounds = load(config)
  batches = make_batches(config, sounds)
  mean, scale = statistics(make_features(config, sounds.rate), batches)

  def make(rngs):
    model = make_model(config, sounds.rate, sounds.tokenizer.vocab_size, rngs)
    model.mean[...], model.scale[...] = jnp.asarray(mean), jnp.asarray(scale)
    return model

  def transcripts(scores):
    names = "tokens", "lengths", "scores"
    rows = zip(*(scores.predictions[name] for name in names), strict=True)
    return [n_best(sounds.tokenizer, *row)[0]["text"] for row in rows]

  def describe(split, scores):
    found = {f"{split}_nats": scores.means["nats"]}
    if split == "train":
      return found
    wanted, texts = sounds.parts[split].labels, transcripts(scores)
    for pair in list(zip(wanted, texts, strict=True))[:SHOWN]:
      LOG.info("  %s -> %s", *pair)
    for name, value in error_rates(texts, wanted).items():
      found[f"{split}_{name}"] = value
    if split == "test" and sounds.snrs:
      found["test_cer_by_snr"] = {
        str(snr): error_rates(
          *(
            [x for x, y in zip(rows, sounds.snrs, strict=True) if y == snr]
            for rows in (texts, wanted)
          )
        )["cer"]
        for snr in dict.fromkeys(sounds.snrs)
      }
    return found

  def report(split, scores, folder, model):
    path = folder / f"transcript_{split}.png"
    part = sounds.parts[split]
    row = len(part) // 2  # of Morse code: at 5 dB
    samples = part.inputs[row][None]
    figures.transcript(
      path,
      np.asarray(model.spectrum(samples))[0],
      model.period / sounds.rate,
      model.stacking,
      [*" " + sounds.tokenizer.alphabet],
      np.asarray(jax.nn.softmax(model(samples)[0]))[0],
      (part.labels[row], transcripts(scores)[row]),
    )
    found = f"A transcript: {path}"
    if not config.bidirectional:
      found += f"\nLatency in streaming: {model.latency:.3f} s"
    return found

  def save(path):
    sounds.tokenizer.save(path / "tokenizer.json")
    (path / RATE).write_text(json.dumps({"sample_rate": sounds.rate}))

  return runner.Task(
    name=NAME,
    make_model=make,
    loss=loss_of(functools.partial(measure, config=config), "nats"),
    batches=batches,
    splits={
      name: data.EvalBatches(
        encode(config, sounds.parts[name], sounds.tokenizer),
        config.batch_size,
        buckets=BUCKETS,
        masks=MASKS,
      )
      for name in ("valid", "test")
    },
    objective="valid_nats",
    predict=make_search(config, sounds.tokenizer),
    describe=describe,
    report=report,
    units=(
      "seconds of sound",
      lambda batch: round(batch["sample_mask"].sum() / sounds.rate),
    ),
    data_sha256=sounds.sha256,
    save=save,
    next_command="experiments.predict --input=FILE.wav --output=text.jsonl",
  )


def make_answer(workdir: str) -> Callable[..., Iterator[dict[str, Any]]]:
  """Loads a trained network.

  Args:
    workdir: directory of the run.

  Returns:
    `answer(paths, place)`, which yields for each WAV file `source`, its path;
    `text`, the best transcript; and `n_best`, all that the search found, each
    with its `score`. `place(i)` says where path i was named, for messages; it
    may be left out.

  Raises:
    UserError: if the workdir has no such run.
  """
  config = runner.read_config(workdir, NAME, Config)
  tokenizer = tokenizers.load(Path(workdir) / "tokenizer.json")
  assert isinstance(tokenizer, tokenizers.CharTokenizer)
  rate = json.loads((Path(workdir) / RATE).read_text())["sample_rate"]
  make = functools.partial(make_model, config, rate, tokenizer.vocab_size)
  apply = runner.make_predictor(
    runner.load_params(config, make), make_search(config, tokenizer)
  )

  def answer(paths, place=lambda i: ""):
    sounds = speech.read_sounds(paths, rate, place).inputs
    found = apply(
      data.EvalBatches(
        [{"samples": row} for row in sounds],
        min(config.batch_size, len(sounds)),
        buckets=BUCKETS,
        masks={"samples": MASKS["samples"]},
      )
    )
    names = "tokens", "lengths", "scores"
    for path, *row in zip(paths, *(found[k] for k in names), strict=True):
      best = n_best(tokenizer, *row)
      yield {"source": str(path), "text": best[0]["text"], "n_best": best}

  return answer


def predict(workdir: str, file: str) -> Iterator[dict[str, Any]]:
  """Transcribes a WAV file, or those of a manifest; see `make_answer`."""
  answer = make_answer(workdir)
  if file.lower().endswith(".wav"):
    return answer([file])
  return answer(*speech.read_paths(file, flag="input"))


run = functools.partial(runner.train, make_task=make_task)

if __name__ == "__main__":
  runner.main(run, Config)
