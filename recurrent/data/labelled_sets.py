"""Labelled sequences from scikit-learn and TFDS: images, texts and sounds."""

from collections.abc import Callable
from typing import Any

import numpy as np

from recurrent.data.labelled import SPLITS, Labelled
from recurrent.data.text import VALID_NAMES
from recurrent.errors import DataError

LAYOUTS = ("pixels", "permuted", "rows")
_PERMUTATION = 0  # seed of the order of the pixels in the layout "permuted"


def digits(layout: str = "pixels") -> Labelled:
  """The 1,797 handwritten digits of scikit-learn, 8 by 8 pixels from 0 to 16.

  Test is a stratified fifth (360), drawn by `train_test_split` with seed 0;
  valid is a stratified tenth of the rest (144), drawn in the same way.

  Args:
    layout: one of `LAYOUTS`; see `images`.
  """
  from sklearn import datasets, model_selection

  found = datasets.load_digits()
  labels = found.target
  divide = lambda rows, share: model_selection.train_test_split(
    rows, test_size=share, stratify=labels[rows], random_state=0
  )
  train, test = divide(np.arange(len(labels)), 0.2)
  train, valid = divide(train, 0.1)
  splits = np.full(len(labels), "train", "<U5")
  splits[test], splits[valid] = "test", "valid"
  return images(found.images, labels, splits, layout, "digit {}".format)


def images(
  pixels: np.ndarray,
  labels: np.ndarray,
  splits: np.ndarray | None,
  layout: str,
  place: Callable[[int], str] = "image {}".format,
) -> Labelled:
  """Makes sequences of images.

  Args:
    pixels: [N, height, width].
    labels: [N].
    splits: [N], or None.
    layout: "pixels": a time step is a pixel, row by row; "permuted": the same
      in a random order, which is one for all images; "rows": a time step is a
      row of pixels.
    place: as in `Labelled`.

  Raises:
    ValueError: if the layout is unknown.
  """
  if layout not in LAYOUTS:
    raise ValueError(f"layout must be one of {LAYOUTS}, got {layout!r}")
  count, *shape = pixels.shape
  order = None
  inputs = pixels
  if layout != "rows":
    inputs = pixels.reshape(count, -1, 1)
  if layout == "permuted":
    order = np.random.default_rng(_PERMUTATION).permutation(inputs.shape[1])
    inputs = inputs[:, order]
  return Labelled(
    kind="values",
    inputs=inputs,
    labels=labels,
    splits=splits,
    place=place,
    image=(shape[0], shape[1]),
    order=order,
  )


def warp(
  inputs: np.ndarray,
  image: tuple[int, int],
  order: np.ndarray | None,
  maps: np.ndarray,
  background: float,
) -> np.ndarray:
  """Moves, turns and scales the images of sequences, by linear interpolation.

  Args:
    inputs: [N, time, D], from `images`.
    image: height and width.
    order: as in `Labelled`.
    maps: [N, 2, 3]; the pixel at y, x of a result is that of the image at
      maps @ (y, x, 1), where y and x are counted from the centre.
    background: value outside the images.

  Returns:
    The sequences [N, time, D] of the new images, in the dtype of the inputs.
  """
  height, width = image
  count = len(inputs)
  order = np.arange(height * width) if order is None else order
  y, x = order // width, order % width
  centre = np.array([[height - 1], [width - 1]]) / 2
  places = np.stack([y - centre[0], x - centre[1], np.ones(len(order))])
  source = maps @ places + centre  # [N, 2, pixels]
  corner = np.floor(source).astype(int)
  part = source - corner
  # A frame of background around the images.
  flat = np.empty((count, height * width), inputs.dtype)
  flat[:, order] = inputs.reshape(count, -1)
  framed = np.pad(
    flat.reshape(count, height, width),
    [(0, 0), (1, 1), (1, 1)],
    constant_values=background,
  ).reshape(count, -1)
  result = np.zeros((count, len(order)), np.float64)
  for down in (0, 1):
    for right in (0, 1):
      row = np.clip(corner[:, 0] + down, -1, height) + 1
      column = np.clip(corner[:, 1] + right, -1, width) + 1
      pixels = np.take_along_axis(framed, row * (width + 2) + column, axis=1)
      by_row = part[:, 0] if down else 1 - part[:, 0]
      by_column = part[:, 1] if right else 1 - part[:, 1]
      result += by_row * by_column * pixels
  return result.astype(inputs.dtype).reshape(inputs.shape)


def draw_maps(
  rng: np.random.Generator,
  count: int,
  *,
  shift: float,
  rotation: float,
  zoom: float,
) -> np.ndarray:
  """Draws maps for `warp`, uniformly.

  Args:
    rng: source of random numbers.
    count: number N of maps.
    shift: largest move in each direction, in pixels.
    rotation: largest angle, in degrees.
    zoom: largest relative change of height and of width, each by itself.

  Returns:
    [N, 2, 3].
  """
  draw = lambda most, *shape: rng.uniform(-most, most, (count, *shape))
  angle = np.deg2rad(draw(rotation))
  sides = 1 + draw(zoom, 2)
  cos, sin = np.cos(angle), np.sin(angle)
  turn = np.stack([cos, -sin, sin, cos], axis=-1).reshape(count, 2, 2)
  moves = draw(shift, 2)
  return np.concatenate([turn * sides[:, None], moves[..., None]], axis=-1)


def load_dataset(
  name: str, data_dir: str | None = None, layout: str = "pixels"
) -> Labelled:
  """Reads a labelled dataset that TFDS has prepared.

  Images become sequences of pixels, texts stay texts, and audio becomes time
  steps of `spectrum`. A dataset with several labels is read with the one called
  `label`, or else the one whose name ends in `intent_name` or `intent`.

  Args:
    name: its name in TFDS, such as mnist or imdb_reviews.
    data_dir: the folder in which it was prepared; by default that of TFDS.
    layout: layout of images, one of `LAYOUTS`.

  Raises:
    DataError: if it is not there, or has no labels.
  """
  from recurrent.data import store  # Imports TFDS.

  builder = store.catalogue(
    name, data_dir, others=("digits",), flag="data_file"
  )
  kind, feature, label, names = _features(builder)
  found: list[Any] = []
  labels: list[Any] = []
  splits: list[str] = []
  for split in builder.info.splits:
    ours = "valid" if split in VALID_NAMES else split
    if ours not in SPLITS:
      continue  # Such as "unsupervised", or "test_oos".
    for record in store.records(builder, split):
      found.append(_decoded(record[feature], kind))
      value = record[label]
      labels.append(value.decode() if isinstance(value, bytes) else int(value))
      splits.append(ours)
  # The names of classes, where the dataset knows them.
  if names:
    labels = [names[x] if isinstance(x, int) else x for x in labels]
  place = lambda i: f"dataset {name}, row {i}"
  where = np.array(splits)
  if kind == "image":
    pixels = np.stack(found)
    if pixels.ndim != 4 or pixels.shape[-1] != 1:
      raise DataError(
        f"dataset {name!r} has images {pixels.shape[1:]}",
        "choose one of grey images, such as mnist",
      )
    return images(pixels[..., 0], np.array(labels), where, layout, place)
  return Labelled(
    kind="text" if kind == "text" else "values",
    inputs=found,
    labels=np.array(labels),
    splits=where,
    place=place,
  )


def _features(builder) -> tuple[str, str, str, list[str] | None]:
  """Kind and name of the input, name of the label, and names of its classes."""
  import tensorflow_datasets as tfds

  features = builder.info.features
  kinds = {
    "text": tfds.features.Text,
    "image": tfds.features.Image,
    "audio": tfds.features.Audio,
  }
  candidates = ("label", "intent_name", "intent")
  label = next((name for name in candidates if name in features), None)
  for kind, cls in kinds.items():
    for name, feature in features.items():
      if isinstance(feature, cls) and label and name in (kind, "sentence"):
        known = isinstance(features[label], tfds.features.ClassLabel)
        return kind, name, label, features[label].names if known else None
  raise DataError(
    f"dataset {builder.info.full_name!r} has no label of a text, an image or a"
    f" sound, only {', '.join(features)}",
    "choose another `dataset`, or give a `data_file`",
  )


def _decoded(value, kind):
  if kind == "text":
    return value.decode("utf-8")
  return spectrum(np.asarray(value)) if kind == "audio" else np.asarray(value)


def spectrum(
  samples: np.ndarray, *, window: int = 256, hop: int = 128, bands: int = 32
) -> np.ndarray:
  """Log power in frequency bands, from a sound.

  Args:
    samples: [samples], from -32768 to 32767.
    window: samples of a time step, under a Hann window.
    hop: samples from one time step to the next.
    bands: number of bands of equal width.

  Returns:
    [time, bands] float32; at least one time step.
  """
  samples = np.asarray(samples, np.float32) / 32768
  samples = np.pad(samples, (0, max(0, window - len(samples))))
  frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
  power = np.abs(np.fft.rfft(frames * np.hanning(window))[:, 1:]) ** 2
  grouped = power.reshape(len(power), bands, -1).mean(axis=-1)
  return np.log(grouped + 1e-6).astype(np.float32)
