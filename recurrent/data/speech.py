"""Sounds with their transcripts: from a manifest of WAV files, or from TFDS."""

import collections
import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from recurrent.data.labelled import Labelled
from recurrent.data.records import read_records
from recurrent.data.splits import NAMES, check_split
from recurrent.data.tokenizers import CharTokenizer
from recurrent.data.wav import Sound, read_wav, resample
from recurrent.errors import DataError

_LOG = logging.getLogger("recurrent")
# Sounds are kept in memory, 4 bytes a sample: 37 hours at 16 kHz.
LIMIT = 2**33
# How the splits of TFDS are read that are not called train, valid or test. The
# harder recordings of LibriSpeech ("other") are for training only.
_SPLITS = {
  "validation": "valid",
  "dev_clean": "valid",
  "test_clean": "test",
  "train_clean100": "train",
  "train_clean360": "train",
  "train_other500": "train",
}


def read_manifest(
  path: str | os.PathLike,
  *,
  rate: int = 0,
  flag: str = "manifest",
) -> Labelled:
  """Reads a .tsv file of paths and transcripts, and the WAV files it names.

  It has columns `path`, relative to the folder of the manifest, and `text`, and
  optionally `split` and `speaker`. A text is read without white space at its
  ends, and with one space between words.

  Args:
    path: path of the manifest.
    rate: samples per second to which sounds are resampled; 0: those of the
      first sound.
    flag: name of the flag that gave the path, for messages.

  Raises:
    DataError: if the manifest or a sound does not have this format, a path
      leaves the manifest's folder, or the sounds take more than `LIMIT` bytes.
  """
  records, paths, place = _read_rows(path, ("path", "text"), flag)
  texts, splits = [], []
  for i, values in enumerate(records):
    texts.append(" ".join(values["text"].split()))
    if not texts[-1]:
      raise DataError(
        f"{place(i)}, column text: the transcript is empty",
        "give each row a transcript, or leave the row out",
      )
    if "split" in values:
      splits.append(check_split(values["split"], f"{place(i)}, column split"))
  speakers = [x["speaker"] for x in records if "speaker" in x]
  return dataclasses.replace(
    read_sounds(paths, rate, place),
    labels=texts,
    splits=np.array(splits) if splits else None,
    speakers=np.array(speakers) if speakers else None,
  )


def read_paths(
  path: str | os.PathLike, *, flag: str = "manifest"
) -> tuple[list[pathlib.Path], Callable[[int], str]]:
  """Reads the paths of a manifest, which needs no transcripts.

  Returns:
    The paths of the sounds, and `place(i)`, which says where path i was named.

  Raises:
    DataError: as `read_manifest` does.
  """
  return _read_rows(path, ("path",), flag)[1:]


def _read_rows(path, columns, flag):
  """The cells of each row, its path, and where it is."""
  records = read_records(path, columns, flag=flag, suffixes=(".tsv",))
  place = lambda i: f"{path}, line {records[i].line}"
  folder = pathlib.Path(path).expanduser().parent
  rows = [x.values for x in records]
  paths = [_inside(folder, x["path"], place(i)) for i, x in enumerate(rows)]
  return rows, paths, place


def _inside(folder: pathlib.Path, path: str, place: str) -> pathlib.Path:
  """The path of a sound; raises DataError if it leaves the folder."""
  found = (folder / path).resolve()
  if pathlib.Path(path).is_absolute() or not found.is_relative_to(
    folder.resolve()
  ):
    raise DataError(
      f"{place}, column path: {path} leads out of the manifest's folder",
      "give paths relative to the manifest, of files (no links) beside or below"
      " it",
    )
  return found


def read_sounds(
  paths: Iterable[str | os.PathLike],
  rate: int = 0,
  place: Callable[[int], str] = lambda i: "",
) -> Labelled:
  """Reads WAV files as sounds without transcripts.

  Args:
    paths: paths of the files.
    rate: samples per second to which sounds are resampled; 0: those of the
      first sound.
    place: `place(i)` says where path i was named.

  Raises:
    DataError: if a file is no such sound, or they take more than `LIMIT` bytes.
  """
  read = (read_wav(path, place(i)) for i, path in enumerate(paths))
  return _gather(read, rate, place)


def _gather(sounds: Iterable[Sound], rate, place) -> Labelled:
  """Resamples sounds to one rate, and counts those that had another one."""
  inputs, size = [], 0
  others: collections.Counter[int] = collections.Counter()
  for i, sound in enumerate(sounds):
    rate = rate or sound.rate
    others[sound.rate] += sound.rate != rate
    inputs.append(resample(sound.samples, sound.rate, rate))
    size += inputs[-1].nbytes
    if size > LIMIT:
      raise DataError(
        f"{place(i)}: the sounds so far take more than {LIMIT >> 30} GiB",
        "give fewer of them, or a lower `sample_rate`",
      )
  for other, count in sorted((+others).items()):
    _LOG.info(
      "%d of %d sounds were resampled from %d to %d samples per second.",
      *(count, len(inputs), other, rate),
    )
  return Labelled(
    kind="sound", inputs=inputs, labels=None, rate=rate, place=place
  )


def load_dataset(
  name: str, data_dir: str | None = None, *, rate: int = 0
) -> Labelled:
  """Reads a dataset of sounds that TFDS has prepared.

  Its transcripts are its texts, or else the names of its labels.

  Args:
    name: its name in TFDS: spoken_digit, speech_commands, librispeech, or
      another one with a feature `audio` or `speech`.
    data_dir: the folder in which it was prepared; by default that of TFDS.
    rate: samples per second to which sounds are resampled; 0: those of the
      dataset.

  Raises:
    DataError: if it is not there, has no such features, or takes more than
      `LIMIT` bytes.
  """
  import tensorflow_datasets as tfds

  from recurrent.data import store  # Imports TFDS.

  builder = store.catalogue(name, data_dir, others=("morse",), flag="manifest")
  features = builder.info.features
  first = lambda *names: next((n for n in names if n in features), None)
  sound = first("audio", "speech")
  label = first("text", "label")
  if sound is None or label is None:
    raise DataError(
      f"dataset {name!r} has no sounds with transcripts, only"
      f" {', '.join(features)}",
      "choose another `dataset`, or give a `manifest`",
    )
  named = isinstance(features[label], tfds.features.ClassLabel)
  own = int(getattr(features[sound], "sample_rate", None) or 16_000)
  texts: list[str] = []
  splits: list[str] = []
  speakers: list[str] = []

  def read() -> Iterable[Sound]:
    for split in builder.info.splits:
      ours = _SPLITS.get(split, split)
      if ours not in NAMES:
        continue  # Such as "test_other" of LibriSpeech.
      for record in store.records(builder, split):
        value = record[label]
        texts.append(
          features[label].int2str(int(value)) if named else value.decode()
        )
        splits.append(ours)
        if "speaker_id" in features:
          speakers.append(str(record["speaker_id"]))
        samples = np.asarray(record[sound])
        yield Sound((samples / 32768).astype(np.float32), own)

  found = _gather(read(), rate, lambda i: f"dataset {name}, row {i}")
  return dataclasses.replace(
    found,
    labels=texts,
    splits=np.array(splits),
    speakers=np.array(speakers) if speakers else None,
  )


class _Examples(Sequence):
  """Dicts of `samples` and `labels`, made when they are asked for."""

  def __init__(self, sounds, labels):
    self.sounds, self.labels = sounds, labels

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, index):
    return {"samples": self.sounds[index], "labels": self.labels[index]}


def encode(
  sounds: Labelled, tokenizer: CharTokenizer, period: int
) -> Sequence[Mapping[str, np.ndarray]]:
  """Makes examples of sounds, with labels for CTC.

  Args:
    sounds: sounds with transcripts.
    tokenizer: its ids are the labels; 0 is left for the blank.
    period: samples of a time step of the network.

  Returns:
    Dicts of `samples`, float32 [samples], and `labels`, int32 [symbols].

  Raises:
    DataError: if a transcript has symbols that the tokenizer lacks, or needs
      more time steps than its sound has.
  """
  labels = []
  for i, text in enumerate(() if sounds.labels is None else sounds.labels):
    where = f"{sounds.place(i)}, column text"
    if unknown := tokenizer.unknown(text):
      raise DataError(
        f"{where}: no transcript of train has {', '.join(map(repr, unknown))}",
        "leave that out, or put such a transcript into train",
      )
    ids = tokenizer.encode(text).astype(np.int32)
    needed = len(ids) + int((ids[1:] == ids[:-1]).sum())
    steps = -(-len(sounds.inputs[i]) // period)
    if needed > steps:
      raise DataError(
        f"{where}: {len(ids)} symbols need {needed} time steps for CTC, and the"
        f" sound has {steps}",
        "mend the transcript, or make time steps shorter (`stacking`,"
        " `hop_ms`)",
      )
    labels.append(ids)
  return _Examples(sounds.inputs, labels)


class _Joined(Sequence):
  """Sounds with pauses between them, joined when they are asked for."""

  def __init__(self, sounds, strings, pauses):
    self.sounds, self.strings, self.pauses = sounds, strings, pauses

  def __len__(self):
    return len(self.strings)

  def __getitem__(self, index):
    parts = []
    for row, pause in zip(self.strings[index], self.pauses[index], strict=True):
      parts += [np.zeros(pause, np.float32), self.sounds[row]]
    return np.concatenate(parts)


def join(
  sounds: Labelled,
  least: int,
  most: int,
  *,
  repeats: int = 1,
  pause: tuple[float, float] = (0.05, 0.3),
  seed: int = 0,
) -> Labelled:
  """Joins sounds of one speaker, in a random order, to strings of sounds.

  The transcripts are joined with spaces. Before each sound is a pause of
  silence. Every sound is in one string of each repeat; the last string of a
  speaker is filled up with random ones.

  Args:
    sounds: sounds of one split.
    least: smallest number of sounds of a string.
    most: largest number.
    repeats: number of times that all sounds are joined, each time anew.
    pause: shortest and longest pause in seconds.
    seed: seed of order, numbers and pauses.

  Returns:
    The strings. Their samples are put together only when they are asked for.
  """
  rng = np.random.default_rng(seed)
  speakers = sounds.speakers
  if speakers is None:
    speakers = np.zeros(len(sounds), int)
  strings: list[np.ndarray] = []
  for _ in range(repeats):
    for speaker in np.unique(speakers):
      own = np.flatnonzero(speakers == speaker)
      left = rng.permutation(own)
      while len(left):
        count = int(rng.integers(least, most + 1))
        string, left = left[:count], left[count:]
        more = rng.choice(own, max(0, least - len(string)))
        strings.append(np.concatenate([string, more]))
  low, high = (int(part * sounds.rate) for part in pause)
  pauses = [rng.integers(low, high + 1, len(string)) for string in strings]
  labels = sounds.labels
  firsts = np.array([string[0] for string in strings], int)
  return dataclasses.replace(
    sounds,
    inputs=_Joined(sounds.inputs, strings, pauses),
    labels=None
    if labels is None
    else [" ".join(str(labels[i]) for i in string) for string in strings],
    splits=None if sounds.splits is None else sounds.splits[firsts],
    speakers=speakers[firsts],
    place=lambda i: f"{sounds.place(int(firsts[i]))} and others",
  )
