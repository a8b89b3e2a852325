"""Batches in stages, such as the growing lengths of a curriculum."""

import bisect
import dataclasses
from collections.abc import Sequence
from typing import Any

from recurrent.data.drawn import rows_of


@dataclasses.dataclass(frozen=True)
class StagedBatches:
  """Batches of several stages, one after another, for a curriculum.

  Example:
    >>> from recurrent.data import StagedBatches
    >>> batches = StagedBatches([["a", "b", "c"], ["A", "B", "C"]], [2])
    >>> [batches[step] for step in range(3)]
    ['a', 'b', 'C']

  Args:
    stages: the batches of each stage, by step.
    ends: the step at which each stage but the last one ends, ascending.

  Raises:
    ValueError: if there is not one end fewer than stages, or the ends descend.
  """

  stages: Sequence[Any]
  ends: Sequence[int]

  def __post_init__(self):
    if len(self.ends) != len(self.stages) - 1:
      raise ValueError(
        f"ends must be {len(self.stages) - 1}, one fewer than the stages, got"
        f" {len(self.ends)}"
      )
    if list(self.ends) != sorted(self.ends):
      raise ValueError(f"ends must ascend, got {self.ends}")

  def __getitem__(self, step: int) -> Any:
    """Returns the batch of a step, from the stage that the step belongs to."""
    return self._stage(step)[step]

  def rows(self, step: int, which: slice) -> Any:
    """Returns some rows of the batch of a step."""
    return rows_of(self._stage(step), step, which)

  def _stage(self, step):
    return self.stages[bisect.bisect_right(self.ends, step)]
