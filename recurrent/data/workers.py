"""Batches that other processes read ahead, by grain."""

from collections.abc import Iterator
from typing import Any

import grain
from absl import flags

from recurrent.errors import DataError


class WorkerBatches:
  """Batches of consecutive steps, read by worker processes.

  The batches are sent to the workers once, by cloudpickle, so they must not
  depend on open files; `FileTokens` and `RecordTokens` open theirs again.

  Args:
    batches: `batches[step]` is a batch of NumPy arrays.
    step: the first step to read.
    steps: the step at which to stop.
    workers: number of processes, 1 or more.
    ahead: batches that each of them holds ready.
  """

  def __init__(
    self, batches: Any, step: int, steps: int, workers: int, ahead: int = 4
  ):
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()  # grain reads flags of its own.
    self._step = step
    source = grain.MapDataset.range(step, steps).map(batches.__getitem__)
    options = grain.MultiprocessingOptions(
      num_workers=workers, per_worker_buffer_size=ahead
    )
    self._iterator: Iterator[Any] = iter(
      source.to_iter_dataset().mp_prefetch(options)
    )

  def __getitem__(self, step: int) -> Any:
    """Returns the batch of the next step; steps can only be read in order.

    Raises:
      DataError: if a worker has failed or ended.
    """
    assert step == self._step, (step, self._step)
    self._step += 1
    try:
      return next(self._iterator)
    except StopIteration:
      raise
    except Exception as error:
      raise DataError(
        f"a worker that reads batches failed at step {step}:"
        f" {type(error).__name__}: {str(error).splitlines()[0][:200]}",
        "with `data_workers=0` this process reads them, and shows the error",
      ) from error

  def close(self) -> None:
    """Ends the workers."""
    if hasattr(self._iterator, "close"):
      self._iterator.close()
