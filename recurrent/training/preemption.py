"""SIGTERM and SIGINT as a flag that the loops poll.

Orbax's own preemption save needs `jax.distributed`; without it a SIGTERM just
kills the process. So the signal sets a flag here, whatever is going on, and
every loop (steps, evaluation) looks at it.
"""

import logging
import signal

import jax
from jax.experimental import multihost_utils

LOG = logging.getLogger("recurrent")


class Preemption:
  """Context manager that catches SIGTERM and SIGINT.

  A second signal of the same kind has its usual effect.
  """

  def __init__(self):
    self.requested = False
    self._previous = {}

  def __enter__(self):
    numbers = [signal.SIGTERM, signal.SIGINT]
    if jax.process_count() > 1:
      # There JAX's coordination service holds SIGTERM, see `at_step`.
      numbers.remove(signal.SIGTERM)
    for number in numbers:
      self._previous[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def at_step(self, step: int) -> bool:
    """Whether to stop at this step; all processes give the same answer."""
    if jax.process_count() > 1:
      # The coordination service agrees on a step that nobody has passed yet.
      return multihost_utils.reached_preemption_sync_point(step)
    return self.requested

  def _handle(self, number, frame):
    del frame
    self.requested = True
    signal.signal(number, self._previous[number])
    LOG.warning("%s: saving, then stopping.", signal.Signals(number).name)
