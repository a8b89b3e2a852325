"""The process of one contestant: JSON lines in, JSON lines out.

  {"do": "start", "module": ..., "threads": 2}
  {"do": "build", "problem": {...}, "dtype": ..., "option": ..., "values": PATH}
  {"do": "run", "work": "forward", "seconds": 0.05}
  {"do": "peak", "dtype": ...}

It is alone in its process, so that neither threads nor memory of one library
touch another's. Nothing that starts threads is imported before they are pinned.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

MIB = 1 << 20
CALLS = 50  # a turn, at most


class Worker:
  """What the requests act on."""

  def __init__(self):
    self._entry = None
    self._module = None
    self._baseline = 0

  def start(self, module: str, threads: int) -> dict[str, Any]:
    """Pins the threads, then imports the library."""
    # XLA takes as many threads as there are processors to run on.
    if hasattr(os, "sched_setaffinity"):
      allowed = sorted(os.sched_getaffinity(0))
      os.sched_setaffinity(0, allowed[:threads])
    self._module = importlib.import_module(module)
    # For all contestants alike: torch gains as much by it as XLA.
    from recurrent import memory  # noqa: PLC0415

    memory.keep_freed()
    if "torch" in sys.modules:
      sys.modules["torch"].set_num_threads(threads)
    return {}

  def build(
    self, problem: dict, dtype: str, option: str, works: list, values: str
  ) -> dict[str, Any]:
    """Builds a problem, calls each work once, and writes down its values.

    Returns:
      Seconds of each first call, which compiles.
    """
    self._entry = None
    if "jax" in sys.modules:
      sys.modules["jax"].clear_caches()
    _tidy()
    self._entry, first = self._first_calls(
      problem, dtype, option, works, values
    )
    _tidy()
    self._baseline = _resident("VmRSS")
    return {"first": first, "about": self._entry.about}

  def _first_calls(self, problem, dtype, option, works, values):
    import numpy as np  # noqa: PLC0415

    from experiments.benchmarks import problems  # noqa: PLC0415

    problem = problems.Problem(**problem)
    drawn = problems.draw(problem)
    entry = self._module.make(problem, drawn, dtype, option)
    first = {work: _timed(entry.works[work]) for work in works}
    np.savez(values, **entry.values())
    return entry, first

  def run(self, work: str, seconds: float) -> dict[str, Any]:
    """Calls a work for so long, and at least once.

    Returns:
      Seconds of each call, and memory at its highest: of a device that has its
      own, else of the process, above what it holds between the calls.
    """
    call = self._entry.works[work]
    with contextlib.suppress(OSError):
      # From here on, VmHWM is the highest since now.
      Path("/proc/self/clear_refs").write_text("5")
    taken = [_timed(call)]
    if taken[0] < seconds:
      # That one was to warm up, which a slow call does by itself.
      taken = []
      begun = time.perf_counter()
      while len(taken) < CALLS and time.perf_counter() - begun < seconds:
        taken.append(_timed(call))
    return {"seconds": taken, "peak_bytes": self._peak_bytes()}

  def peak(self, dtype: str) -> dict[str, Any]:
    """The fastest of several large products by XLA, FLOP/s."""
    import jax  # noqa: PLC0415

    device = jax.devices()[0]
    best = 0.0
    sizes = (1024, 2048) if device.platform == "cpu" else (4096, 8192)
    product = jax.jit(lambda a, b: a @ b)
    for size in sizes:
      a, b = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
      call = lambda a=a, b=b: product(a, b).block_until_ready()
      call()
      best = max(best, 2 * size**3 / min(_timed(call) for _ in range(10)))
    return {
      "flops": best,
      "platform": device.platform,
      "device": device.device_kind,
    }

  def _peak_bytes(self):
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
      return sys.modules["torch"].cuda.max_memory_allocated()
    import jax  # noqa: PLC0415

    statistics = jax.devices()[0].memory_stats()
    if statistics:
      return statistics["peak_bytes_in_use"]
    return max(0, _resident("VmHWM") - self._baseline)


def _tidy():
  """Gives memory back that nothing uses."""
  gc.collect()
  with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def _timed(call):
  begun = time.perf_counter()
  call()
  return time.perf_counter() - begun


def _resident(field):
  """Bytes of this process in memory, now (VmRSS) or at most (VmHWM)."""
  with contextlib.suppress(OSError):
    for line in Path("/proc/self/status").read_text().splitlines():
      if line.startswith(f"{field}:"):
        return int(line.split()[1]) * 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
  """Answers requests until there are no more."""
  # What libraries print must not get between the replies.
  replies = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  worker = Worker()
  for line in sys.stdin:
    request = json.loads(line)
    try:
      reply = getattr(worker, request.pop("do"))(**request)
    except Exception as error:  # the referee is to know of any
      reason = str(error).strip().splitlines() or [""]
      reply = {"error": f"{type(error).__name__}: {reason[0]}"}
    print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
  main()
