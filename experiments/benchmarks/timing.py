"""How everything is timed: in turn within one run, by medians and ratios.

A machine is not equally fast all the time. What is compared therefore takes
turns, and a ratio is the median of the ratios within each repeat.
"""

import functools
import importlib.metadata
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

K = TypeVar("K")
T = TypeVar("T")

LEAST = 3  # repeats, however long they take
TURN = 0.02  # seconds
PACKAGES = ("jax", "flax", "torch", "keras", "dm-haiku", "equinox")


def timed(call: Callable[[], Any]) -> float:
  """Seconds of a call."""
  begun = time.perf_counter()
  call()
  return time.perf_counter() - begun


def turn(call: Callable[[], Any], seconds: float) -> list[float]:
  """Seconds of each call in a turn that lasts at least so long.

  The first call is to warm up. It counts only if it fills the turn by itself.
  """
  first = timed(call)
  if first >= seconds:
    return [first]
  taken, begun = [], time.perf_counter()
  while time.perf_counter() - begun < seconds:
    taken.append(timed(call))
  return taken


def in_turn(
  calls: Mapping[K, Callable[[], T]],
  repeats: int,
  seconds: float = math.inf,
  *,
  least: int = LEAST,
  warm_up: bool = True,
  rotate: bool = False,
) -> dict[K, list[T]]:
  """Makes all calls, one after the other, again and again.

  Args:
    calls: by name, each measures something.
    repeats: how often each is made, at most.
    seconds: by which the last repeat is to end, as far as the one before it
      tells.
    least: repeats that are made even so.
    warm_up: whether each is made once before, and its value dropped.
    rotate: whether each repeat begins with another call.

  Returns:
    What each call returned, in order.
  """
  names = list(calls)
  found: dict[K, list[T]] = {name: [] for name in names}
  for name in names if warm_up else ():
    calls[name]()
  begun = start = time.perf_counter()
  for number in range(repeats):
    now = time.perf_counter()
    # As if the next repeat takes as long as the one before it.
    if number >= least and (now - begun) + (now - start) > seconds:
      break
    start = now
    for name in names:
      found[name].append(calls[name]())
    names = names[1:] + names[:1] if rotate else names
  return found


def medians(
  calls: Mapping[K, Callable[[], Any]], repeats: int, seconds: float
) -> dict[K, list[float]]:
  """Milliseconds of calls of this process, the median of each one's turns."""
  median = lambda call: 1e3 * statistics.median(turn(call, TURN))
  turns = {n: functools.partial(median, call) for n, call in calls.items()}
  return in_turn(turns, repeats, seconds)


def ratio(times: Sequence[float], base: Sequence[float]) -> float:
  """Median over the repeats of how many times longer one took than another."""
  return statistics.median(a / b for a, b in zip(times, base, strict=True))


def machine() -> dict[str, Any]:
  """What measured times depend on besides the code."""
  versions = {"python": platform.python_version()}
  for name in PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  processor = platform.processor() or platform.machine()
  about = Path("/proc/cpuinfo")
  for line in about.read_text().splitlines() if about.exists() else ():
    if line.startswith("model name"):
      processor = line.partition(":")[2].strip()
      break
  return {
    "processor": processor,
    "processors": os.cpu_count(),
    "load": os.getloadavg()[0],
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
    "versions": versions,
  }


def processors() -> int:
  """How many processors this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
