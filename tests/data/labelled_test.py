"""Sequences with labels, their files and their splits."""

import collections
import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from recurrent.data import labelled, labelled_sets
from recurrent.data.splits import Shares
from recurrent.errors import DataError


def texts(tmp_path, content, name="a.csv", **options):
  path = tmp_path / name
  path.write_text(content)
  return labelled.read(path, **options)


def arrays(tmp_path, **named):
  path = tmp_path / "a.npz"
  np.savez(path, **named)
  return labelled.read(path)


def test_texts_with_a_label_each(tmp_path):
  found = texts(tmp_path, "label,text,split\npos,so good,train\nneg,bad,test\n")
  assert found.kind == "text"
  assert found.inputs == ["so good", "bad"]
  assert found.labels.tolist() == ["pos", "neg"]
  assert found.splits.tolist() == ["train", "test"]
  assert found.place(1).endswith("a.csv, line 3")


@pytest.mark.parametrize("labels", ['"O B-x"', '["O", "B-x"]'])
def test_texts_with_a_label_a_word(tmp_path, labels):
  line = f'{{"text": "to  Rome", "labels": {labels}}}\n'
  found = texts(tmp_path, line, "a.jsonl")
  assert found.per_step
  assert [row.tolist() for row in found.labels] == [["O", "B-x"]]


def test_without_labels_the_same_files_are_read(tmp_path):
  found = texts(tmp_path, "text\na\n", labelled=False)
  assert found.labels is None
  np.savez(tmp_path / "b.npz", inputs=np.zeros((2, 3, 1)))
  assert labelled.read(tmp_path / "b.npz", labelled=False).labels is None


def test_arrays_are_cut_to_their_lengths(tmp_path):
  inputs = np.arange(24.0).reshape(2, 4, 3)
  inputs[0, 1, 2] = np.nan
  found = arrays(
    tmp_path,
    inputs=inputs,
    labels=np.array([[1, 2, 0, -1], [3, 1, 1, 1]]),
    lengths=np.array([3, 4]),
    times=np.tile([0, 1, 1, 5], (2, 1)),
    split=np.array(["train", "valid"]),
  )
  assert found.kind == "values"
  assert found.per_step
  np.testing.assert_array_equal(found.inputs[0], inputs[0, :3])
  np.testing.assert_array_equal(found.labels[0], [1, 2, 0])
  np.testing.assert_array_equal(found.times[1], [0, 1, 1, 5])
  assert (
    arrays(
      tmp_path, inputs=np.zeros((2, 3), int), labels=np.array(["a", "b"])
    ).kind
    == "tokens"
  )


OK = {"inputs": np.zeros((2, 3, 1)), "labels": np.array([0, 1])}
TOKENS = np.zeros((2, 3), int)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"inputs": None}, "inputs: not there"),
    ({"labels": None}, "labels: not there"),
    ({"inputs": np.array([{}, {}])}, "pickled objects"),
    ({"inputs": np.zeros((2,))}, "inputs: float64 (2,)"),
    ({"inputs": np.zeros((2, 3))}, "tokens [N, T] of float64"),
    ({"inputs": np.full((2, 3), np.nan)}, "of float64 with NaN"),
    ({"inputs": TOKENS - 1}, "row 0, time step 0: token -1"),
    ({"inputs": np.full((2, 3, 1), np.inf)}, "time step 0: infinite"),
    ({"labels": np.array([0, 1, 2])}, "shape (3,) for inputs (2, 3)"),
    ({"labels": np.array([0, -1])}, "labels: row 1: out of range"),
    ({"labels": np.array([0, np.nan])}, "float64 with NaN"),
    ({"lengths": np.array([3, 4])}, "row 1: 4, and inputs have 3 time steps"),
    ({"lengths": np.array([3.0, 4.0])}, "lengths: float64"),
    ({"times": np.array([[0, 2, 1], [0, 1, 2]])}, "row 0, time step 2: before"),
    ({"times": np.zeros((2, 2))}, "times: float64 (2, 2)"),
    ({"times": np.full((2, 3), np.nan)}, "time step 0: no number"),
    ({"split": np.array(["train", "tset"])}, "row 1: 'tset' is no split"),
  ],
  ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_arrays_are_refused(tmp_path, change, words):
  named = {k: v for k, v in (OK | change).items() if v is not None}
  with pytest.raises(DataError) as error:
    arrays(tmp_path, **named)
  assert words in error.value.cause
  assert "a.npz" in error.value.cause


def test_files_that_are_no_npz_are_refused(tmp_path):
  (tmp_path / "a.npz").write_text("text")
  for path in (tmp_path / "a.npz", tmp_path / "no.npz"):
    with pytest.raises(DataError):
      labelled.read(path)


@pytest.mark.parametrize(
  ("name", "content", "words"),
  [
    ("a.csv", "text\na\n", "line 1: there is no column 'label'"),
    ("a.csv", "text,label,labels\na,b,c\n", "the columns label and labels"),
    ("a.csv", "text,label\na,x\n ,y\n", "line 3, column text: the text is"),
    ("a.csv", "text,label\na,\n", "line 2, column label: '' is no label"),
    ("a.csv", "text,label,split\na,b,dev\n", "column split: 'dev' is no split"),
    ("a.csv", "text,labels\na b,O\n", "1 labels for 2 words"),
    ("a.jsonl", '{"text": 3, "label": 1}', "column text: no text"),
    ("a.jsonl", '{"text": "a", "label": NaN}', "nan is no label"),
    ("a.jsonl", '{"text": "a", "label": null}', "None is no label"),
    ("a.jsonl", '{"text": "a", "labels": 3}', "3 is no list of labels"),
  ],
)
def test_bad_texts_are_refused_with_line_and_column(
  tmp_path, name, content, words
):
  with pytest.raises(DataError) as error:
    texts(tmp_path, content, name)
  assert words in error.value.cause


def numbered(count, **fields):
  inputs = [f"text {i}" for i in range(count)]
  return labelled.Labelled("text", inputs, np.arange(count), **fields)


def test_splits_are_drawn_from_the_rows_themselves():
  shares = Shares(0.6, 0.2, 0.2)
  splits = numbered(500).divided(shares).splits
  counts = collections.Counter(splits.tolist())
  assert abs(counts["test"] - 100) < 40
  assert abs(counts["valid"] - 100) < 40
  more = numbered(600).divided(shares).splits
  np.testing.assert_array_equal(more[:500], splits)


def test_only_the_missing_split_is_drawn_and_from_train():
  given = np.array(["train"] * 300 + ["test"] * 5)
  found = numbered(305, splits=given).divided().splits
  np.testing.assert_array_equal(found[300:], ["test"] * 5)
  assert 0 < (found == "valid").sum() < 50


def test_an_empty_split_is_refused():
  with pytest.raises(DataError, match="no row is left for the valid split"):
    numbered(2).divided()


def test_a_class_that_train_lacks_is_refused():
  data = numbered(3)
  with pytest.raises(DataError, match="sequence 2: the train split has no"):
    labelled.encode_labels(data, np.array([0, 1]))
  with pytest.raises(DataError, match="one class only, '7'"):
    labelled.classes_of(np.array([7, 7]))


def test_the_digits_are_divided_evenly_and_always_alike():
  found = labelled_sets.digits()
  assert found.inputs.shape == (1797, 64, 1)
  counts = collections.Counter(found.splits.tolist())
  assert counts == {"train": 1293, "valid": 144, "test": 360}
  tests = np.bincount(found.labels[found.splits == "test"])
  assert set(tests) == {35, 36, 37}


def upright(inputs, data):
  order = np.arange(64) if data.order is None else data.order
  flat = np.empty((len(inputs), 64))
  flat[:, order] = inputs.reshape(len(inputs), -1)
  return flat.reshape(-1, 8, 8)


@pytest.mark.parametrize("layout", labelled_sets.LAYOUTS)
def test_images_are_moved_in_every_layout(layout):
  data = labelled_sets.digits(layout)
  inputs = data.inputs[:9]
  images = upright(inputs, data)
  rows = labelled_sets.digits("rows").inputs[:9]
  np.testing.assert_array_equal(images, rows)
  moved = np.tile([[1.0, 0, 1], [0, 1, -2]], (9, 1, 1))
  got = upright(
    labelled_sets.warp(inputs, data.image, data.order, moved, 7.0), data
  )
  np.testing.assert_array_equal(got[:, :7, 2:], images[:, 1:, :6])
  assert (got[:, 7] == 7).all()
  assert (got[:, :, :2] == 7).all()


def test_images_are_turned_about_their_centre():
  data = labelled_sets.digits("rows")
  quarter = np.tile([[0.0, 1, 0], [-1, 0, 0]], (5, 1, 1))
  got = labelled_sets.warp(data.inputs[:5], data.image, None, quarter, 0.0)
  want = np.rot90(data.inputs[:5], axes=(1, 2))
  assert any(np.allclose(got, np.rot90(want, k, axes=(1, 2))) for k in (0, 2))


def test_drawn_maps_change_nothing_without_a_range():
  rng = np.random.default_rng(0)
  maps = labelled_sets.draw_maps(rng, 3, shift=0, rotation=0, zoom=0)
  np.testing.assert_array_equal(maps, np.tile(np.eye(2, 3), (3, 1, 1)))
  maps = labelled_sets.draw_maps(rng, 500, shift=2, rotation=10, zoom=0.1)
  assert 1.9 < np.abs(maps[:, :, 2]).max() <= 2
  areas = np.linalg.det(maps[:, :, :2])
  assert 0.81 <= areas.min() < 0.9
  assert 1.1 < areas.max() <= 1.21


def test_a_tone_is_in_the_band_of_its_frequency():
  rate = np.arange(4000) / 8000
  tone = 10_000 * np.sin(2 * np.pi * 1500 * rate)
  found = labelled_sets.spectrum(tone)
  assert found.shape == (30, 32)
  band = int(1500 / 4000 * 32)
  assert set(found.argmax(axis=1)) <= {band - 1, band}
  assert labelled_sets.spectrum(np.zeros(3)).shape == (1, 32)


class Samples(  # type: ignore[call-arg]
  tfds.core.GeneratorBasedBuilder, skip_registration=True
):
  """Texts or images with classes, in splits under the names of TFDS."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    feature = (
      tfds.features.Image(shape=(4, 5, 1))
      if self.name == "images"
      else tfds.features.Text()
    )
    label = tfds.features.ClassLabel(names=["no", "yes"])
    features = {self.name[:-1]: feature, "label": label}
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    names = ("train", "validation", "test", "unsupervised")
    return {name: self._generate_examples(name) for name in names}

  def _generate_examples(self, split):
    for i in range(3):
      value = f"{split} {i}"
      if self.name == "images":  # As PNG, since TFDS encodes by TensorFlow.
        value = io.BytesIO()
        pixels = np.full((4, 5), i, np.uint8)
        Image.fromarray(pixels).save(value, "PNG")
        value.seek(0)
      yield i, {self.name[:-1]: value, "label": i % 2}


class Texts(Samples, skip_registration=True):  # type: ignore[call-arg]
  """Texts."""


class Images(Samples, skip_registration=True):  # type: ignore[call-arg]
  """Images."""


@pytest.mark.parametrize("cls", [Texts, Images])
def test_a_dataset_of_tfds_is_read_by_name(tmp_path, cls):
  builder = cls(data_dir=tmp_path, file_format="array_record")
  builder.download_and_prepare()
  found = labelled_sets.load_dataset(builder.name, str(tmp_path), "rows")
  counts = collections.Counter(found.splits.tolist())
  assert counts == {"train": 3, "valid": 3, "test": 3}
  labels = found.labels.tolist()
  if cls is Images:
    assert found.inputs.shape == (9, 4, 5)
    for pixels, label in zip(found.inputs, labels, strict=True):
      assert label == ["no", "yes"][pixels.max() % 2]
  else:
    rows = dict(zip(found.inputs, labels, strict=True))
    assert rows["train 0"] == "no"
    assert rows["validation 1"] == "yes"
