"""Tests that some rows of a batch are those of the whole batch."""

import numpy as np
import pytest

from recurrent import data


def text():
  return data.ContiguousBatches(np.arange(500), 6, seq_len=5, seed=3)


def examples():
  rows = [{"inputs": np.arange(n % 7 + 1), "label": n} for n in range(25)]
  return data.ExampleBatches(rows, batch_size=6, buckets=3, seed=1)


def drawn():
  return data.DrawnBatches(lambda rng: {"x": rng.normal(size=(6, 2))}, seed=0)


def staged():
  return data.StagedBatches([text(), drawn()], [2])


def changed():
  noise = lambda rng, batch: {**batch, "noise": rng.normal(size=6)}
  return data.AugmentedBatches(text(), noise, seed=4)


@pytest.mark.parametrize("make", [text, examples, drawn, staged, changed])
def test_some_rows_are_those_of_the_whole_batch(make):
  batches = make()
  for step in range(4):
    for which in (slice(0, 3), slice(3, 6), slice(2, 4)):
      found = data.OwnRows(batches, which)[step]
      assert found.keys() == batches[step].keys()
      for key, array in batches[step].items():
        np.testing.assert_array_equal(found[key], array[which])


def test_a_process_reads_its_own_examples_only():
  read = []

  class Examples(list):
    def __getitem__(self, index):
      read.append(index)
      return super().__getitem__(index)

  rows = Examples({"inputs": np.zeros(2)} for _ in range(40))
  lengths = {"mask": np.full(40, 2)}
  batches = data.ExampleBatches(rows, batch_size=8, lengths=lengths)
  _ = batches[0]  # The layout is that of example 0.
  read.clear()
  found = data.rows_of(batches, 0, slice(4, 8))
  assert sorted(read) == sorted(found["index"].tolist())


def test_a_process_reads_its_own_tokens_only():
  asked = []

  class Tokens:
    ndim, dtype = 1, np.dtype(np.int32)

    def __len__(self):
      return 1000

    def __getitem__(self, index):
      asked.append(index)
      return index

  batches = data.ContiguousBatches(Tokens(), 8, seq_len=5)
  batches.rows(0, slice(6, 8))
  assert asked[0].shape == (2, 6)
