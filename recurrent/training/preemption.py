"""Turns SIGTERM and SIGINT into a flag that the training loops poll.

Orbax's own preemption save needs `jax.distributed`; without it a SIGTERM kills
the process at once. Here the signal sets a flag, which every loop (training
steps, evaluation) polls.

Until the first training step there is nothing to save, and no loop polls: data
are read, programs compiled, checkpoints restored. There a signal ends the
process at once, even one that waits in compiled code, such as XLA's compiler,
where Python handles no signals.

Several processes must leave a loop at the same iteration, or those that remain
wait in a collective for the others for ever. At each poll all processes
therefore start to reduce their flags to one, and they read the result some
polls later, when it is ready and they need not wait for it.
"""

import collections
import functools
import logging
import os
import signal
import sys
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from recurrent import sharding
from recurrent.errors import Preempted
from recurrent.training.watchdog import Watchdog

LOG = logging.getLogger("recurrent")

# Polls between contributing a flag and reading the reduced result. With 2, the
# host can prepare one step while the device runs another, and no more.
LAG = 2


# Seconds after a signal in which a process without anything to save may end by
# itself.
GRACE = 3.0

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


class Preemption:
  """Context manager that catches SIGTERM and SIGINT.

  A second signal of the same kind has its usual effect. In Python only the
  main thread can catch signals: entered in another thread, this catches none,
  and the first signal has its usual effect too.

  Args:
    watchdog: gets a sign of life at each poll.

  Raises:
    Preempted: on leaving the context, if a signal came before `hold`.
  """

  def __init__(self, watchdog: Watchdog | None = None):
    self._watchdog = watchdog
    self._caught = False
    self._held = False
    self._stop = False
    self._votes: collections.deque[jax.Array] = collections.deque()
    self._previous: dict[int, Any] = {}
    self._wake: tuple[int, int] | None = None  # the pipe, and the one before

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      self._listen()
      for number in _NUMBERS:
        self._previous[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, kind, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    if self._wake is not None:
      write, previous = self._wake
      self._wake = None
      signal.set_wakeup_fd(previous)
      os.close(write)  # ends the listener, which closes the other end
    if kind is not None and issubclass(kind, _StopNow):
      raise _nothing_to_save() from None

  def hold(self) -> None:
    """From now on a signal sets a flag, since there is something to save.

    The loop calls it after its first step; runs of several processes as soon as
    they are connected, since they have to end together.
    """
    self._held = True

  @property
  def caught(self) -> bool:
    """Whether this process has caught a signal and may end by itself.

    That is so in a run of one process only: several have to agree.
    """
    return self._caught and jax.process_count() == 1

  def agreed(self) -> bool:
    """Whether to stop at this iteration; once True, it remains True.

    All processes must call it equally often, once each iteration of a loop, and
    all get the same answers.
    """
    if self._watchdog is not None:
      self._watchdog.beat()
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
    name = signal.Signals(number).name
    if self._held:
      LOG.warning("%s: saving, then stopping.", name)
    else:
      LOG.warning("%s: stopping.", name)
      raise _StopNow

  def _listen(self):
    """Starts a thread that ends a process which cannot end by itself.

    The handler of a signal runs in the main thread, and only between two
    instructions of Python. The number of the signal, however, is written to a
    pipe at once.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    self._wake = (
      write,
      signal.set_wakeup_fd(write, warn_on_full_buffer=False),
    )

    def listen():
      with os.fdopen(read, "rb", buffering=0) as pipe:
        while number := pipe.read(1):
          if number[0] in _NUMBERS and not self._held:
            timer = threading.Timer(GRACE, self._give_up)
            timer.daemon = True
            timer.start()

    threading.Thread(target=listen, name="signals", daemon=True).start()

  def _give_up(self):
    """Ends the process, if it is still where there is nothing to save."""
    if not self._held and self._wake is not None:
      print(_nothing_to_save(), file=sys.stderr, flush=True)
      os._exit(Preempted.exit_code)


class _StopNow(BaseException):
  """Raised by the handler of a signal; no Exception, which might be caught."""


def _nothing_to_save() -> Preempted:
  return Preempted(
    "told to stop before the first step of this session: nothing to save",
    "run the same command again to go on",
  )


@functools.cache
def _vote(flag: bool) -> jax.Array:
  """An array over all devices that holds `flag` on those of this process."""
  mesh = sharding.make_mesh()
  return sharding.put(np.full(mesh.size, flag), sharding.split_batch(mesh))


_any = jax.jit(jnp.any)
