"""Tests of batches that worker processes read."""

import numpy as np
import pytest

from recurrent import data
from recurrent.data.workers import WorkerBatches
from recurrent.errors import DataError

pytestmark = [
  pytest.mark.processes,
  pytest.mark.filterwarnings("ignore::DeprecationWarning"),
  pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


class Failing:
  def __getitem__(self, step):
    if step == 3:
      raise OSError("unreadable")
    return {"x": np.full(2, step)}


def test_workers_read_the_same_batches_in_order():
  batches = data.ContiguousBatches(np.arange(9000), 4, seq_len=7, seed=2)
  read = WorkerBatches(batches, 5, 12, workers=2)
  for step in range(5, 12):
    found = read[step]
    for key, want in batches[step].items():
      np.testing.assert_array_equal(found[key], want)
  read.close()


def test_the_error_of_a_worker_is_told_with_its_step():
  read = WorkerBatches(Failing(), 2, 9, workers=1)
  np.testing.assert_array_equal(read[2]["x"], [2, 2])
  with pytest.raises(DataError, match="at step 3.*unreadable"):
    read[3]
  read.close()
