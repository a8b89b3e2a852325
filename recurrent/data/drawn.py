"""Batches that are drawn or changed at random, and some rows of batches."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from recurrent.data.bptt import check_least


def rows_of(batches: Any, step: int, which: slice) -> Any:
  """Returns some rows of the batch of a step.

  Batches with a method `rows`, such as those of a text, read no others. Of
  batches that are drawn or changed as a whole, the rows are cut out.

  Args:
    batches: `batches[step]` is a batch, a dict of arrays [batch, ...].
    step: number of the step.
    which: the rows.
  """
  if hasattr(batches, "rows"):
    return batches.rows(step, which)
  return {key: array[which] for key, array in batches[step].items()}


@dataclasses.dataclass(frozen=True)
class OwnRows:
  """The same rows of each batch, such as those of one of several processes.

  Args:
    batches: the global batches, by step.
    which: the rows.
  """

  batches: Any
  which: slice

  def __getitem__(self, step: int) -> Any:
    """Returns the rows of the batch of a step."""
    return rows_of(self.batches, step, self.which)


@dataclasses.dataclass(frozen=True)
class DrawnBatches:
  """An endless sequence of batches, each drawn from (seed, step).

  Example:
    >>> from recurrent.data import DrawnBatches
    >>> draw = lambda rng: {"bits": rng.integers(0, 2, (4, 16))}
    >>> train = DrawnBatches(draw, seed=0)
    >>> train[7]["bits"].shape, (train[7]["bits"] == train[7]["bits"]).all()
    ((4, 16), np.True_)
    >>> valid = DrawnBatches(draw, seed=10**6).take(3)  # other batches
    >>> len(valid)
    3

  Args:
    draw: `draw(generator) -> batch`, a dict of NumPy arrays [batch, ...].
    seed: seed of all batches, 0 or more.
  """

  draw: Callable[[np.random.Generator], dict[str, np.ndarray]]
  seed: int

  def __post_init__(self):
    check_least("seed", self.seed, 0)

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    """Returns the batch of a step, which is numbered from 0 without a limit."""
    check_least("step", step, 0)
    return self.draw(np.random.default_rng((self.seed, step)))

  def take(self, number: int) -> list[dict[str, np.ndarray]]:
    """Returns the first batches as a list, for scoring."""
    return [self[step] for step in range(number)]


@dataclasses.dataclass(frozen=True)
class AugmentedBatches:
  """Batches of another sequence, each changed at random from (seed, step).

  Example:
    >>> import numpy as np
    >>> from recurrent.data import AugmentedBatches
    >>> batches = [{"inputs": np.zeros(2)}] * 3
    >>> noise = lambda rng, batch: {"inputs": rng.normal(size=2)}
    >>> AugmentedBatches(batches, noise, seed=0)[1]["inputs"].shape
    (2,)

  Args:
    batches: `batches[step]` is a batch, such as `ExampleBatches`.
    change: `change(generator, batch) -> batch`.
    seed: seed of all changes, 0 or more.
  """

  batches: Any
  change: Callable[
    [np.random.Generator, dict[str, np.ndarray]], dict[str, np.ndarray]
  ]
  seed: int

  def __post_init__(self):
    check_least("seed", self.seed, 0)

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    """Returns the changed batch of a step."""
    generator = np.random.default_rng((self.seed, step))
    return self.change(generator, self.batches[step])
