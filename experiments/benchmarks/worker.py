"""Functions that run in the process of one implementation.

Each implementation has a process of its own, so that libraries do not share
threads or memory. Its module is imported after the threads are pinned.
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

TURN = 0.05  # least seconds of a turn
_here: dict[str, Any] = {}


def start(module: str, threads: int) -> None:
  """Pins the threads, then imports the library."""
  # XLA starts as many threads as there are processors that it may run on.
  if hasattr(os, "sched_setaffinity"):
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[:threads])
  _here["module"] = importlib.import_module(module)
  # The same for all implementations: torch gains as much by it as XLA.
  memory.keep_freed()
  if "torch" in sys.modules:
    sys.modules["torch"].set_num_threads(threads)


def build(
  problem: problems.Problem, dtype: str, option: str
) -> tuple[dict[str, float], dict[str, Any], dict[str, Any]]:
  """Builds a problem and makes the first call of each kind of work.

  Returns:
    The seconds of each first call, which includes compilation; the computed
    values by name; further facts to report.
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
  """Times the calls of one turn.

  Returns:
    The seconds of each call, and the peak of memory in bytes: that of the
    device if it has memory of its own, else that of the process above its
    memory between the calls.
  """
  if _here["baseline"] is None:  # the first turn after `build`
    _tidy()
    _here["baseline"] = _resident("VmRSS")
  with contextlib.suppress(OSError):
    # Resets VmHWM, the peak of resident memory.
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
  """Measures the FLOP/s of large matrix products by XLA; names the device."""
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
  """Returns unused memory to the operating system."""
  gc.collect()
  with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def _resident(field):
  """Resident memory of this process in bytes, now (VmRSS) or peak (VmHWM)."""
  with contextlib.suppress(OSError):
    for line in Path("/proc/self/status").read_text().splitlines():
      if line.startswith(f"{field}:"):
        return int(line.split()[1]) * 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
