"""Turns SIGTERM and SIGINT into a flag that the training loops poll.

Orbax's own preemption save needs `jax.distributed`; without it a SIGTERM kills
the process at once. Here the signal sets a flag, which every loop (training
steps, evaluation) polls.

Several processes must leave a loop at the same iteration, or those that remain
wait in a collective for the others for ever. At each poll all processes
therefore start to reduce their flags to one, and they read the result some
polls later, when it is ready and they need not wait for it.
"""

import collections
import functools
import logging
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np

from recurrent import sharding

LOG = logging.getLogger("recurrent")

# Polls between contributing a flag and reading the reduced result. With 2, the
# host can prepare one step while the device runs another, and no more.
LAG = 2


class Preemption:
  """Context manager that catches SIGTERM and SIGINT.

  A second signal of the same kind has its usual effect. In Python only the
  main thread can catch signals: entered in another thread, this catches none,
  and the first signal has its usual effect too.
  """

  def __init__(self):
    self._caught = False
    self._stop = False
    self._votes: collections.deque[jax.Array] = collections.deque()
    self._previous = {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def agreed(self) -> bool:
    """Whether to stop at this iteration; once True, it remains True.

    All processes must call it equally often, once each iteration of a loop, and
    all get the same answers.
    """
    if jax.process_count() == 1:
      self._stop = self._caught
    elif not self._stop:
      self._votes.append(_any(_vote(self._caught)))
      if len(self._votes) > LAG:
        self._stop = bool(self._votes.popleft().addressable_data(0))
    return self._stop

  def _handle(self, number, frame):
    del frame
    self._caught = True
    signal.signal(number, self._previous[number])
    LOG.warning("%s: saving, then stopping.", signal.Signals(number).name)


@functools.cache
def _vote(flag: bool) -> jax.Array:
  """An array over all devices that holds `flag` on those of this process."""
  mesh = sharding.make_mesh()
  return sharding.put(np.full(mesh.size, flag), sharding.split_batch(mesh))


_any = jax.jit(jnp.any)
