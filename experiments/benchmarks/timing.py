"""Times calls in turn within one run, and computes medians and ratios.

The speed of a machine varies over time. Calls that are compared therefore take
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

LEAST = 3  # least number of repeats, however long they take
TURN = 0.02  # least seconds of a turn
PACKAGES = ("jax", "flax", "torch", "keras", "dm-haiku", "equinox")


def timed(call: Callable[[], Any]) -> float:
  """Makes a call and returns its seconds."""
  begun = time.perf_counter()
  call()
  return time.perf_counter() - begun


def turn(call: Callable[[], Any], seconds: float) -> list[float]:
  """Repeats a call for at least `seconds`; returns the seconds of each call.

  The first call is for warm-up. It counts only if it takes `seconds` by itself,
  and is then the only one.
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
    calls: functions by name, each of which measures something.
    repeats: largest number of repeats; each makes every call once.
    seconds: time limit of all repeats. A repeat is not begun if it would exceed
      the limit, as judged by the time of the previous one.
    least: number of repeats that are made even so.
    warm_up: whether to make each call once before, and drop its value.
    rotate: whether each repeat begins with another call.

  Returns:
    The values that each call returned, by its name, in order.
  """
  names = list(calls)
  found: dict[K, list[T]] = {name: [] for name in names}
  for name in names if warm_up else ():
    calls[name]()
  begun = start = time.perf_counter()
  for number in range(repeats):
    now = time.perf_counter()
    # The next repeat is assumed to take as long as the previous one.
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
  """Times calls in turn; returns the median milliseconds of each turn."""
  median = lambda call: 1e3 * statistics.median(turn(call, TURN))
  turns = {n: functools.partial(median, call) for n, call in calls.items()}
  return in_turn(turns, repeats, seconds)


def ratio(times: Sequence[float], base: Sequence[float]) -> float:
  """The median over the repeats of `times` over `base`."""
  return statistics.median(a / b for a, b in zip(times, base, strict=True))


def machine() -> dict[str, Any]:
  """Describes the machine: processor, load, flags of XLA, versions."""
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
  """The number of processors that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
