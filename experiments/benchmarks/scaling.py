"""How time, memory and compilation grow with the size of the problem.

  python -m experiments.benchmark --suite=scaling

time: forward and backward of LSTM layers against time steps, rows, width,
  layers.
devices: a train step of the language model, with the same global batch split
  over the devices of one process, or over several processes.
weak: a train step over several processes with a core each, and the same number
  of rows each, and the bytes that a process gives to the all-reduces of a step.
memory: temporary memory of the compiled forward and backward against time
  steps, for several choices of what is kept for the backward pass.
recompute: time and memory with and without recomputation, at a few sizes.
compile: compilation time and instructions of a gradient against time steps.

An exponent is the slope of a least-squares line through the logarithms, over
all points and over the last three.
"""

import contextlib
import functools
import itertools
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmarks import plots, programs, report, timing, training
from experiments.benchmarks.problems import BACKWARD
from recurrent.cells import CELLS, LSTM

MIB = 1 << 20
LAST = 3  # number of last points, whose exponent is fitted separately

Row = dict[str, Any]


class Layers(NamedTuple):
  """The size of a stack of layers, whose inputs are as wide as the layers."""

  batch: int = 16
  time_steps: int = 128
  features: int = 128
  layers: int = 1


class Sizes(NamedTuple):
  """The sizes to measure."""

  # Part `times`: the size that is varied along one axis at a time, the points
  # of each axis, and the methods.
  base: Layers = Layers()
  axes: Mapping[str, tuple[int, ...]] = {
    "time_steps": (32, 64, 128, 256, 512, 1024),
    "batch": (1, 4, 16, 64, 256),
    "features": (32, 64, 128, 256, 512),
    "layers": (1, 2, 4, 8),
  }
  methods: tuple[str, ...] = ("auto", "fused", "scan")
  # Part `devices`: numbers of devices of one process, numbers of processes,
  # flags of the language model, and train steps to time.
  devices: tuple[int, ...] = (1, 2, 4, 8)
  processes: tuple[int, ...] = (1, 2, 4)
  train: tuple[str, ...] = ("--batch_size=32", "--features=256")
  steps: int = 2
  # Part `weak`: numbers of processes, and the rows of each.
  weak: tuple[int, ...] = (1, 2)
  rows: int = 16
  # Part `memory`: rows and width of the layer, and numbers of time steps.
  memory: tuple[int, int] = (8, 128)
  memory_times: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096)
  recompute: tuple[Layers, ...] = (
    Layers(64, 100, 128),
    Layers(20, 35, 650),
    Layers(16, 512, 512),
  )
  # Part `compile`: cells and methods to compile, and numbers of time steps.
  compiled: tuple[tuple[str, str], ...] = (
    ("lstm", "scan"),
    ("lstm", "fused"),
    ("lstm", "auto"),
    ("lru", "linear_scan"),
    ("lru", "associative"),
    ("mlstm", "chunkwise"),
  )
  compile_times: tuple[int, ...] = (64, 512, 4096, 32768)
  # Time limit for the repeats of a part. There are at least 3 repeats, and 1 of
  # the part `compile`.
  seconds: float = 15.0


SIZES = Sizes()


def measure(config: Any, machine: dict[str, Any]) -> dict[str, Any]:
  """Measures all parts, prints and draws them; returns rows and exponents."""
  rows: list[Row] = []
  for part in (times, devices, weak, memory, recompute, compilation):
    found = part(SIZES, config.repeats)
    print(f"\n{show(found)}", flush=True)
    rows += found
  exponents = fits(rows)
  print(f"\n{show(exponents)}")
  about = (
    f"{machine['processors']} processors, {jax.default_backend()},"
    f" load {machine['load']:.1f}"
  )
  path = Path(config.workdir) / "scaling.png"
  plots.scaling(rows, exponents, plots.title(machine, about), path)
  return {"rows": rows, "exponents": exponents}


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float:
  """Fits y ~ x^p by least squares of the logarithms, and returns p."""
  return float(np.polyfit(np.log(xs), np.log(ys), 1)[0])


def fits(rows: Sequence[Row]) -> list[Row]:
  """Fits the exponents of every line, over all and over the last points."""
  keys = ("part", "axis", "implementation")
  lines: dict[tuple[str, ...], list[tuple[float, float]]] = {}
  for row in rows:
    if row["axis"]:
      line = lines.setdefault(tuple(row[key] for key in keys), [])
      line.append((row["x"], row["value"]))
  found = []
  for names, points in lines.items():
    xs, ys = zip(*sorted(points), strict=True)
    fit = {"all": exponent(xs, ys), "last": exponent(xs[-LAST:], ys[-LAST:])}
    found.append({**dict(zip(keys, names, strict=True)), **fit})
  return found


def times(sizes: Sizes, repeats: int) -> list[Row]:
  """Times forward and backward along each axis."""
  rows = []
  for axis, points in sizes.axes.items():
    calls = {}
    for x, method in itertools.product(points, sizes.methods):
      size = sizes.base._replace(**{axis: x})
      calls[x, method], _ = layers_call(size, method=method)
    taken = timing.medians(calls, repeats, sizes.seconds)
    rows += [row("time", axis, m, x, ms, "ms") for (x, m), ms in taken.items()]
  return rows


def layers_call(size: Layers, **how: Any) -> tuple[Callable[[], Any], float]:
  """Compiles forward and backward of a stack of LSTM layers.

  Args:
    size: size of the layers.
    **how: method and remat, see `recurrent.unroll`.

  Returns:
    A function that runs the program and waits for it, and the MiB of its
    temporary memory.
  """
  cell = LSTM(size.features)
  key, *keys = jax.random.split(jax.random.key(0), size.layers + 1)
  layers = [cell.init(k, size.features) for k in keys]
  inputs = jax.random.normal(key, (size.batch, size.time_steps, size.features))
  compiled = programs.lower(
    BACKWARD, cell, layers, inputs, gradient=jax.value_and_grad, **how
  ).compile()
  return lambda: jax.block_until_ready(compiled(layers, inputs)), _mib(compiled)


def devices(sizes: Sizes, repeats: int) -> list[Row]:
  """Times a train step of the same global batch over more and more devices."""
  with contextlib.ExitStack() as stack:
    start = lambda processes, each: stack.enter_context(
      training.Workers(processes, each, sizes.train)
    )
    alone = start(1, max(sizes.devices))
    # One device and one process are the same measurement.
    workers = {
      ("processes", n): alone if n == 1 else start(n, 1)
      for n in sizes.processes
    }
    workers |= {("devices", n): alone for n in sizes.devices}
    calls = {
      (kind, n): functools.partial(some.seconds, n, sizes.steps)
      for (kind, n), some in workers.items()
    }
    taken = timing.in_turn(calls, repeats, sizes.seconds, warm_up=False)
  rows = []
  for (kind, n), found in taken.items():
    ms = [1e3 * seconds / sizes.steps for seconds in found]
    point = row("devices", kind, f"{kind}, the same batch", n, ms, "ms")
    rows.append({**point, "over_one": timing.ratio(found, taken[kind, 1])})
  return rows


def weak(sizes: Sizes, repeats: int) -> list[Row]:
  """Times a train step of more and more processes, with the same rows each."""
  numbers = [n for n in sizes.weak if n <= len(os.sched_getaffinity(0))]
  with contextlib.ExitStack() as stack:
    workers = {
      n: stack.enter_context(
        training.Workers(
          n, 1, (*sizes.train, f"--batch_size={n * sizes.rows}"), one_core=True
        )
      )
      for n in numbers
    }
    calls = {
      n: functools.partial(some.seconds, n, sizes.steps)
      for n, some in workers.items()
    }
    taken = timing.in_turn(calls, repeats, sizes.seconds, warm_up=False)
    reduced = {n: some.bytes_reduced(n) for n, some in workers.items()}
  rows = []
  for n, found in taken.items():
    ms = [1e3 * seconds / sizes.steps for seconds in found]
    rows.append(
      {
        **row("weak", "", "the same rows each", n, ms, "ms"),
        "over_one": timing.ratio(found, taken[1]),
        "efficiency": 1 / timing.ratio(found, taken[1]),
        "bytes_reduced": reduced[n],
      }
    )
  return rows


def memory(sizes: Sizes, repeats: int) -> list[Row]:
  """Temporary memory of a gradient, by method and by what is recomputed."""
  del repeats
  batch, features = sizes.memory
  cell = LSTM(features)
  fused = functools.partial(dict[str, Any], method="fused")
  # The loss is of the last hidden state, since all outputs would themselves
  # need O(time steps). The level of LLVM's optimisation does not change the
  # buffers.
  quick: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
  rows = []
  for number in sizes.memory_times:
    ways: dict[str, dict[str, Any]] = {
      "scan": {"method": "scan"},
      "fused": fused(),
      "auto": {},
      "fused, gates again": fused(remat="gates"),
      "fused, chunks of 64": fused(remat=64),
      "fused, chunks of the root": fused(remat=math.isqrt(number)),
      "fused, checkpoint around": fused(checkpoint=True),
    }
    shapes = programs.shapes(cell, batch, number, 1)
    for name, way in ways.items():
      lowered = programs.lower(
        BACKWARD, cell, *shapes, last=True, by=(0,), **way
      )
      mib = _mib(lowered.compile(compiler_options=quick))
      rows.append(row("memory", "time_steps", name, number, [mib], "MiB"))
  return rows


def recompute(sizes: Sizes, repeats: int) -> list[Row]:
  """Times each choice of `remat`, and reads its temporary memory."""
  rows = []
  for size in sizes.recompute:
    shape = f"{size.batch}x{size.time_steps}x{size.features}"
    root = math.isqrt(size.time_steps)
    kept = {"kept": None, "gates again": "gates", f"chunks of {root}": root}
    made = {
      f"{method}, {name}": layers_call(size, method=method, remat=remat)
      for method in ("auto", "fused")
      for name, remat in kept.items()
    }
    calls = {name: call for name, (call, _) in made.items()}
    for name, found in timing.medians(calls, repeats, sizes.seconds).items():
      point = row("recompute", "", name, shape, found, "ms")
      rows.append({**point, "mib": made[name][1]})
  return rows


def compilation(sizes: Sizes, repeats: int) -> list[Row]:
  """Times tracing, lowering and compiling a gradient; counts instructions."""
  counts = {}

  def compile_timed(name, method, number):
    made = []
    seconds = timing.timed(lambda: made.append(gradient(name, method, number)))
    counts[name, method, number] = instructions(made[0])
    return seconds

  calls = {
    (*which, number): functools.partial(compile_timed, *which, number)
    for which, number in itertools.product(sizes.compiled, sizes.compile_times)
  }
  # JAX's compilation cache on disk is switched off.
  cache = "jax_enable_compilation_cache"
  with contextlib.ExitStack() as stack:
    stack.callback(jax.config.update, cache, getattr(jax.config, cache))
    jax.config.update(cache, False)
    gradient(*sizes.compiled[0], 2)  # the first of all loads the compiler
    taken = timing.in_turn(
      calls, repeats, sizes.seconds, least=1, warm_up=False
    )
  rows = []
  for (name, method, number), found in taken.items():
    line = f"{name}, {method}"
    point = row("compile", "time_steps", line, number, found, "s")
    rows.append({**point, "instructions": counts[name, method, number]})
  return rows


def gradient(name: str, method: str, number: int) -> jax.stages.Compiled:
  """Compiles a cell's gradient over `number` time steps, 4 rows, 32 units."""
  cell = CELLS[name](32)
  shapes = programs.shapes(cell, 4, number, 32)
  return programs.lower(BACKWARD, cell, *shapes, method=method).compile()


def instructions(compiled: jax.stages.Compiled) -> int:
  """Number of instructions of a program, those inside fusions included."""
  return sum(" = " in line for line in (compiled.as_text() or "").splitlines())


# Rows.


def row(
  part: str,
  axis: str,
  implementation: str,
  x: int | str,
  values: Sequence[float],
  unit: str,
) -> Row:
  """Makes the row of a point: the median of some values and their range."""
  return {
    "part": part,
    "axis": axis,
    "implementation": implementation,
    "x": x,
    "value": statistics.median(values),
    "least": min(values),
    "most": max(values),
    "repeats": len(values),
    "unit": unit,
  }


def show(rows: Sequence[Row]) -> str:
  """Formats rows as a table with the columns of the first row."""
  return report.table(rows[0], (row.values() for row in rows))


def _mib(compiled) -> float:
  return compiled.memory_analysis().temp_size_in_bytes / MIB
