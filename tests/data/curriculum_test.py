"""Batches in stages."""

import pytest

from recurrent.data import StagedBatches


def test_each_step_has_the_batch_of_its_stage():
  stages = [[f"{name}{step}" for step in range(6)] for name in "abc"]
  batches = StagedBatches(stages, [2, 5])
  assert [batches[step] for step in range(6)] == "a0 a1 b2 b3 b4 c5".split()


@pytest.mark.parametrize("ends", [[], [1, 2], [3, 1, 2]])
def test_ends_that_do_not_fit_are_refused(ends):
  with pytest.raises(ValueError, match="ends must be 3, one fewer|ascend"):
    StagedBatches(["a", "b", "c", "d"], ends)
