"""Functions that run in the process of an implementation.

Each implementation has a process of its own, so that libraries do not share
threads or memory, unless the device can be used by one process only. Its module
is imported after the threads are pinned.
"""

import contextlib
import ctypes
import gc
import importlib
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import problems, timing
from recurrent import memory

TURN = 0.05  # least seconds of a turn
_calls: dict[str, Any] = {}  # what was built, by the implementation's name
_resting: dict[str, int] = {}  # bytes of memory between the calls


def start(module: str, threads: int) -> None:
  """Pins the threads, then imports the library."""
  # XLA starts as many threads as there are processors that it may run on.
  if hasattr(os, "sched_setaffinity"):
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[:threads])
  importlib.import_module(module)
  # The same for all implementations: torch gains as much by it as XLA.
  memory.keep_freed()
  if "torch" in sys.modules:
    sys.modules["torch"].set_num_threads(threads)


def clear() -> None:
  """Drops what was built before."""
  _calls.clear()
  _resting.clear()
  jax.clear_caches()
  _tidy()


def build(
  name: str,
  problem: problems.Problem,
  dtype: str,
  module: str,
  option: str,
  works: Sequence[str],
) -> tuple[dict[str, float], dict[str, Any], dict[str, Any]]:
  """Builds a problem and makes the first call of each kind of work.

  Args:
    name: name of the implementation, by which `run` finds it.
    problem: the problem.
    dtype: dtype of the computation.
    module: name of the implementation's module.
    option: argument of the module's function `make`.
    works: the kinds of work.

  Returns:
    The seconds of each first call, which includes compilation; the computed
    values by name; further facts to report.
  """
  drawn = problems.draw(problem)
  made = importlib.import_module(module).make(problem, drawn, dtype, option)
  first = {work: timing.timed(made.works[work]) for work in works}
  values = {name: np.asarray(x) for name, x in made.values().items()}
  _calls[name] = made
  return first, values, made.about


def run(name: str, work: str) -> tuple[list[float], int]:
  """Times the calls of one turn of what `build` has built.

  Returns:
    The seconds of each call, and the peak of memory in bytes: that of the
    device if it has memory of its own, else that of the process above its
    memory between the calls.
  """
  if not _resting:  # the first turn after `build`
    _tidy()
    _resting["bytes"] = _resident("VmRSS")
  with contextlib.suppress(OSError):
    # Resets VmHWM, the peak of resident memory.
    Path("/proc/self/clear_refs").write_text("5")
  taken = timing.turn(_calls[name].works[work], TURN)
  torch = sys.modules.get("torch")
  if torch and torch.cuda.is_available():
    return taken, torch.cuda.max_memory_allocated()
  of_device = jax.devices()[0].memory_stats()
  if of_device:
    return taken, of_device["peak_bytes_in_use"]
  return taken, max(0, _resident("VmHWM") - _resting["bytes"])


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
