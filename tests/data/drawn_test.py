"""Batches that are drawn, or changed, at random."""

import numpy as np
import pytest

from recurrent.data import AugmentedBatches


def test_a_batch_is_changed_alike_at_each_reading_and_else_differently():
  batches = [{"inputs": np.zeros(3)} for _ in range(4)]
  noise = lambda rng, batch: {"inputs": batch["inputs"] + rng.normal(size=3)}
  changed = AugmentedBatches(batches, noise, seed=1)
  first = changed[2]["inputs"]
  np.testing.assert_array_equal(first, changed[2]["inputs"])
  assert (first != changed[3]["inputs"]).all()
  assert (first != AugmentedBatches(batches, noise, seed=2)[2]["inputs"]).all()
  with pytest.raises(ValueError, match="seed"):
    AugmentedBatches(batches, noise, seed=-1)
