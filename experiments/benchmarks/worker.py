"""What runs in the process of one implementation.

It is alone there, so that neither threads nor memory of one library touch
another's. Its module is imported after the threads are pinned.
"""

import contextlib
import ctypes
import gc
import importlib
import os
import resource
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import problems, timing
from recurrent import memory

TURN = 0.05  # seconds
_here: dict[str, Any] = {}


def start(module: str, threads: int) -> None:
  """Pins the threads, then imports the library."""
  # XLA takes as many threads as there are processors to run on.
  if hasattr(os, "sched_setaffinity"):
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[:threads])
  _here["module"] = importlib.import_module(module)
  # For all implementations alike: torch gains as much by it as XLA.
  memory.keep_freed()
  if "torch" in sys.modules:
    sys.modules["torch"].set_num_threads(threads)


def build(
  problem: problems.Problem, dtype: str, option: str
) -> tuple[dict[str, float], dict[str, Any], dict[str, Any]]:
  """Builds a problem and calls each work once.

  Returns:
    Seconds of each first call, which compiles; values by name; what else is
    known.
  """
  _here["calls"] = None
  jax.clear_caches()
  _tidy()
  drawn = problems.draw(problem)
  calls = _here["module"].make(problem, drawn, dtype, option)
  works = problems.WORKS[problem.suite]
  first = {work: timing.timed(calls.works[work]) for work in works}
  values = {name: np.asarray(x) for name, x in calls.values().items()}
  _here.update(calls=calls, baseline=None)
  return first, values, calls.about


def run(work: str) -> tuple[list[float], int]:
  """Takes a turn.

  Returns:
    Seconds of each call, and bytes of memory at its highest: of a device that
    has its own, else of the process, above what it holds between the calls.
  """
  if _here["baseline"] is None:  # what was built has been handed over
    _tidy()
    _here["baseline"] = _resident("VmRSS")
  with contextlib.suppress(OSError):
    # From here on, VmHWM is the highest since now.
    Path("/proc/self/clear_refs").write_text("5")
  taken = timing.turn(_here["calls"].works[work], TURN)
  torch = sys.modules.get("torch")
  if torch and torch.cuda.is_available():
    return taken, torch.cuda.max_memory_allocated()
  of_device = jax.devices()[0].memory_stats()
  if of_device:
    return taken, of_device["peak_bytes_in_use"]
  return taken, max(0, _resident("VmHWM") - _here["baseline"])


def peak(dtype: str) -> dict[str, Any]:
  """The fastest of several large products by XLA, FLOP/s; and the device."""
  device = jax.devices()[0]
  best = 0.0
  product = jax.jit(lambda a, b: a @ b)
  for size in (1024, 2048) if device.platform == "cpu" else (4096, 8192):
    a, b = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
    call = lambda a=a, b=b: product(a, b).block_until_ready()
    call()
    fastest = min(timing.timed(call) for _ in range(10))
    best = max(best, 2 * size**3 / fastest)
  kind = device.device_kind
  return {"flops": best, "platform": device.platform, "device": kind}


def _tidy():
  """Gives memory back that nothing uses."""
  gc.collect()
  with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def _resident(field):
  """Bytes of this process in memory, now (VmRSS) or at most (VmHWM)."""
  with contextlib.suppress(OSError):
    for line in Path("/proc/self/status").read_text().splitlines():
      if line.startswith(f"{field}:"):
        return int(line.split()[1]) * 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
