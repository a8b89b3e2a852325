"""Records a trace of some training steps, for XProf and TensorBoard."""

import contextlib
import pathlib
from typing import Any

import jax

from recurrent.errors import ConfigError


def parse(text: str) -> range:
  """The steps to record, from "START,STEPS"; none for an empty text.

  Raises:
    ConfigError: if it is anything else.
  """
  if not text:
    return range(0)
  try:
    start, steps = map(int, text.split(","))
    if start < 0 or steps < 1:
      raise ValueError
  except ValueError as error:
    raise ConfigError(
      f"`profile={text}` does not say which steps to record",
      "use the first one and their number, such as `profile=100,5`",
    ) from error
  return range(start, start + steps)


class Profiler:
  """Context manager that records some steps into a folder.

  Args:
    folder: where to write the trace; TensorBoard's plugin xprof shows it.
    steps: the steps to record.
  """

  def __init__(self, folder: pathlib.Path, steps: range = range(0)):
    self._folder, self._steps = folder, steps
    self._running = False

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._stop(None)

  def step(self, step: int, state: Any) -> contextlib.AbstractContextManager:
    """Is entered around the dispatch of a step.

    Args:
      step: number of the step.
      state: what the steps before it have computed; it is waited for before the
        trace begins and before it ends.
    """
    if step in self._steps and not self._running:
      jax.block_until_ready(state)
      jax.profiler.start_trace(self._folder)
      self._running = True
    elif step not in self._steps:
      self._stop(state)
    if not self._running:
      return contextlib.nullcontext()
    return jax.profiler.StepTraceAnnotation("train", step_num=step)

  def _stop(self, state):
    if self._running:
      jax.block_until_ready(state)
      jax.profiler.stop_trace()
      self._running = False
