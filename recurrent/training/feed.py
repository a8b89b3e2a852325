"""Reads batches ahead of the training loop, and puts them onto the devices.

A thread reads the batch of the next step and starts its transfer while the
devices run the steps before it. The loop waits only where reading a batch takes
longer than a step; how long it waits is measured.
"""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

# Batches that are on the devices, or on their way, before their step.
AHEAD = 2
# Seconds between two looks at whether to go on waiting.
PATIENCE = 0.1
# Seconds in which the thread is to end.
ENDING = 5.0


class Fed(NamedTuple):
  """A batch on the devices.

  Attributes:
    batch: what the step takes.
    units: the units in it, such as tokens.
    waited: seconds that the loop waited for it.
  """

  batch: Any
  units: int
  waited: float


class Feed:
  """Context manager that gives the batches of consecutive steps.

  Batches are pure functions of the step, so what was read ahead and is not used
  leaves no trace in a resumed run.

  Args:
    batches: `batches[step]` is a batch of NumPy arrays.
    put: moves a batch to the devices.
    units: counts the units in a batch of NumPy arrays.
    step: the first step to read.
    steps: the step at which to stop reading.
    ahead: batches to hold ready; 0: read in the thread of the caller.
  """

  def __init__(
    self,
    batches: Any,
    put: Callable[[Any], Any],
    units: Callable[[Any], int],
    step: int,
    steps: int,
    ahead: int = AHEAD,
  ):
    self._read = lambda step: _put(batches[step], put, units)
    self._steps = range(step, steps)
    self._ended = threading.Event()
    self._queue: queue.Queue = queue.Queue(ahead)
    self._thread = None
    if ahead:
      self._thread = threading.Thread(target=self._fill, daemon=True)

  def __enter__(self):
    if self._thread is not None:
      self._thread.start()
    return self

  def __exit__(self, *_):
    self._ended.set()
    if self._thread is not None:
      # Python must not end while the thread is within JAX; but reading a batch
      # may never end.
      self._thread.join(ENDING)

  def get(self, step: int, stop: Callable[[], bool]) -> Fed | None:
    """Waits for the batch of the next step.

    Args:
      step: number of the step; each call is for the one after the last.
      stop: says whether to wait no longer.

    Returns:
      The batch; None if there was none yet and `stop()` is True.

    Raises:
      Exception: what reading the batch raised.
    """
    begun = time.monotonic()
    if self._thread is None:
      fed = self._read(step)
      return fed._replace(waited=time.monotonic() - begun)
    while True:
      try:
        number, fed = self._queue.get(timeout=PATIENCE)
        break
      except queue.Empty:
        if stop():
          return None
    if isinstance(fed, BaseException):
      raise fed
    assert number == step, (number, step)
    return fed._replace(waited=time.monotonic() - begun)

  def _fill(self):
    for step in self._steps:
      try:
        fed = self._read(step)
      except BaseException as error:  # The loop raises it.
        fed = error
      while not self._ended.is_set():
        try:
          self._queue.put((step, fed), timeout=PATIENCE)
          break
        except queue.Full:
          continue
      if self._ended.is_set() or isinstance(fed, BaseException):
        return


def _put(batch, put, units) -> Fed:
  return Fed(put(batch), units(batch), 0.0)
