"""How time, memory and compilation grow with the size of the problem.

  python -m experiments.benchmark --suite=scaling

time: forward and backward of LSTM layers against ticks, rows, width, layers.
devices: a train step of the language model, the same batch shared out among
  the devices of a process, and among processes.
memory: temporaries of the compiled forward and backward against ticks, by what
  is kept for the reverse pass.
recompute: time and memory of keeping and recomputing, at a few sizes.
compile: seconds and instructions of a compiled gradient against ticks.

An exponent is the slope of a least-squares line through the logarithms, over
all points and over the last three.
"""

import contextlib
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import scaling_picture
from experiments.benchmarks import training as crew
from recurrent import unroll
from recurrent.cells import CELLS, LSTM
from recurrent.types import Remat

MIB = 1 << 20
LAST = 3  # points of an asymptote
LEAST = 3  # rounds, however long they take

Row = dict[str, Any]


class Layers(NamedTuple):
  """Layers upon each other, as wide as their inputs."""

  batch: int = 16
  ticks: int = 128
  features: int = 128
  layers: int = 1


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What is measured.

  Args:
    base: what is held while one axis moves.
    axes: points of each axis, a field of `Layers`.
    methods: contestants of the axes.
    devices: of one process, among which a train step is shared out.
    processes: how many processes, likewise.
    train: flags of the language model whose step that is.
    steps: training steps in a turn.
    memory_ticks: ticks at which memory is read off.
    memory: rows and width of that layer, whose inputs are one number.
    recompute: layers whose time and memory are measured.
    compile_ticks: ticks at which programs are compiled.
    compiled: (cell, method) of those programs.
    seconds: that the turns of one part may take; there are 3 even so, but 1 of
      compilation.
  """

  base: Layers = Layers()
  axes: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("ticks", (32, 64, 128, 256, 512, 1024)),
    ("batch", (1, 4, 16, 64, 256)),
    ("features", (32, 64, 128, 256, 512)),
    ("layers", (1, 2, 4, 8)),
  )
  methods: tuple[str, ...] = ("auto", "fused", "scan")
  devices: tuple[int, ...] = (1, 2, 4, 8)
  processes: tuple[int, ...] = (1, 2, 4)
  train: tuple[str, ...] = ("--batch_size=32", "--features=256")
  steps: int = 2
  memory_ticks: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096)
  memory: tuple[int, int] = (8, 128)
  recompute: tuple[Layers, ...] = (
    Layers(64, 100, 128),
    Layers(20, 35, 650),
    Layers(16, 512, 512),
  )
  compile_ticks: tuple[int, ...] = (64, 512, 4096, 32768)
  compiled: tuple[tuple[str, str], ...] = (
    ("lstm", "scan"),
    ("lstm", "fused"),
    ("lstm", "auto"),
    ("lru", "kernel"),
    ("lru", "associative"),
    ("mlstm", "chunkwise"),
  )
  seconds: float = 15.0


SIZES = Sizes()


def measure(
  workdir: Path, rounds: int, machine: dict[str, Any], sizes: Sizes
) -> dict[str, Any]:
  """Measures all parts, prints them, and draws scaling.png.

  Args:
    workdir: of the picture.
    rounds: turns of each contestant, at most.
    machine: processor and versions, for the title.
    sizes: what to measure.

  Returns:
    All rows, and the exponents of each line of the picture.
  """
  rows: list[Row] = []
  for part in (times, devices, memory, recompute, compilation):
    found = part(sizes, rounds)
    print(f"\n{show(found)}", flush=True)
    rows += found
  exponents = fits(rows)
  print(f"\n{show(exponents)}")
  versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
  scaling_picture.draw(
    rows,
    exponents,
    f"{machine['processor']}, {machine['processors']} processors,"
    f" {jax.default_backend()}, load {machine['load']:.1f}; {versions}",
    workdir / "scaling.png",
  )
  return {"rows": rows, "exponents": exponents}


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float:
  """The power that y grows with, by least squares of the logarithms."""
  return float(np.polyfit(np.log(xs), np.log(ys), 1)[0])


def fits(rows: Sequence[Row]) -> list[Row]:
  """The exponents of every line that grows along an axis.

  Args:
    rows: with part, axis, contestant, x, and y as `value`.

  Returns:
    A row a line: over all points, and over the last three.
  """
  lines: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
  for row in rows:
    if row["axis"]:
      key = row["part"], row["axis"], row["contestant"]
      lines.setdefault(key, []).append((row["x"], row["value"]))
  found = []
  for (part, axis, contestant), points in lines.items():
    xs, ys = zip(*sorted(points), strict=True)
    found.append(
      {
        "part": part,
        "axis": axis,
        "contestant": contestant,
        "all": exponent(xs, ys),
        "last": exponent(xs[-LAST:], ys[-LAST:]),
      }
    )
  return found


# Parts.


def times(sizes: Sizes, rounds: int) -> list[Row]:
  """Forward and backward along each axis."""
  rows = []
  for axis, points in sizes.axes:
    calls = {
      (x, method): layers_call(sizes.base._replace(**{axis: x}), method)[0]
      for x in points
      for method in sizes.methods
    }
    taken = take_turns(calls, rounds, sizes.seconds)
    rows += [
      row("time", axis, method, x, milliseconds, "ms")
      for (x, method), milliseconds in taken.items()
    ]
  return rows


def layers_call(
  size: Layers, method: str, remat: Remat = None
) -> tuple[Callable[[], Any], float]:
  """A compiled forward and backward of some LSTM layers.

  Args:
    size: of the layers.
    method: see `recurrent.unroll`.
    remat: likewise.

  Returns:
    What calls it and waits, and MiB of its temporaries.
  """
  cell = LSTM(size.features)
  keys = jax.random.split(jax.random.key(0), size.layers + 1)
  params = [cell.init(key, size.features) for key in keys[1:]]
  inputs = jax.random.normal(keys[0], (size.batch, size.ticks, size.features))

  def total(params, inputs):
    outputs = inputs
    for layer in params:
      _, outputs = unroll(
        cell, layer, None, outputs, method=method, remat=remat
      )
    return jnp.mean(outputs**2)

  both = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
  compiled = both.lower(params, inputs).compile()
  return lambda: jax.block_until_ready(compiled(params, inputs)), _mib(compiled)


def devices(sizes: Sizes, rounds: int) -> list[Row]:
  """A train step, the same global batch over more and more devices."""
  with contextlib.ExitStack() as stack:
    start = lambda processes, each: stack.enter_context(
      crew.Crew(processes, each, sizes.train)
    )
    alone = start(1, max(sizes.devices))
    crews = {n: alone if n == 1 else start(n, 1) for n in sizes.processes}
    ask = lambda crew, n: lambda: crew.seconds(n, sizes.steps) / sizes.steps
    # Both kinds of one device are the same process.
    asks = {
      **{("processes", n): ask(crews[n], n) for n in sizes.processes},
      **{("devices", n): ask(alone, n) for n in sizes.devices},
    }
    taken: dict[Any, list[float]] = {key: [] for key in asks}
    for _ in _rounds(rounds, sizes.seconds):
      for key, seconds in asks.items():
        taken[key].append(1e3 * seconds())
  return [
    {
      **row("devices", kind, f"{kind}, the same batch", n, found, "ms"),
      "over_one": statistics.median(
        a / b for a, b in zip(found, taken[kind, 1], strict=True)
      ),
    }
    for (kind, n), found in taken.items()
  ]


def memory(sizes: Sizes, rounds: int) -> list[Row]:
  """Temporaries of a gradient by the last carry, by what is kept for it."""
  del rounds
  batch, features = sizes.memory
  cell = LSTM(features)
  params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 1))
  ways: dict[str, Callable[[int], dict[str, Any]]] = {
    "scan": lambda ticks: {"method": "scan"},
    "fused": lambda ticks: {"method": "fused"},
    "auto": lambda ticks: {},
    "fused, gates again": lambda ticks: {"method": "fused", "remat": "gates"},
    "fused, chunks of 64": lambda ticks: {"method": "fused", "remat": 64},
    "fused, chunks of the root": lambda ticks: {
      "method": "fused",
      "remat": math.isqrt(ticks),
    },
    "fused, checkpoint around": lambda ticks: {"method": "fused"},
  }
  rows = []
  for ticks in sizes.memory_ticks:
    inputs = jax.ShapeDtypeStruct((batch, ticks, 1), jnp.float32)
    for name, way in ways.items():
      run: Callable[..., Any] = functools.partial(unroll, cell, **way(ticks))
      run = jax.checkpoint(run) if "around" in name else run
      # Of the outputs nothing is wanted: they would be O(ticks) themselves.
      total = lambda p, x, run=run: jnp.sum(run(p, None, x)[0].hidden ** 2)
      # How well the machine code is made is nothing to the buffers.
      quick: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
      lowered = jax.jit(jax.grad(total)).lower(params, inputs)
      compiled = lowered.compile(compiler_options=quick)
      rows.append(row("memory", "ticks", name, ticks, [_mib(compiled)], "MiB"))
  return rows


def recompute(sizes: Sizes, rounds: int) -> list[Row]:
  """Time and memory of what there is to keep, outputs and all."""
  rows = []
  for size in sizes.recompute:
    shape = f"{size.batch}x{size.ticks}x{size.features}"
    ways: dict[str, Remat] = {
      "kept": None,
      "gates again": "gates",
      f"chunks of {math.isqrt(size.ticks)}": math.isqrt(size.ticks),
    }
    made = {
      f"{method}, {name}": layers_call(size, method, remat)
      for method in ("auto", "fused")
      for name, remat in ways.items()
    }
    calls = {name: call for name, (call, _) in made.items()}
    for name, found in take_turns(calls, rounds, sizes.seconds).items():
      of = row("recompute", "", name, shape, found, "ms")
      rows.append({**of, "mib": made[name][1]})
  return rows


def compilation(sizes: Sizes, rounds: int) -> list[Row]:
  """Seconds to trace, lower and compile a gradient; its instructions."""
  taken: dict[Any, list[float]] = {}
  counts = {}
  with _no_cache():
    gradient(*sizes.compiled[0], 2)  # the first of all loads the compiler
    for _ in _rounds(rounds, sizes.seconds, least=1):
      for name, method in sizes.compiled:
        for ticks in sizes.compile_ticks:
          begun = time.perf_counter()
          compiled = gradient(name, method, ticks)
          key = f"{name}, {method}", ticks
          taken.setdefault(key, []).append(time.perf_counter() - begun)
          counts[key] = instructions(compiled)
  return [
    {
      **row("compile", "ticks", name, ticks, found, "s"),
      "instructions": counts[name, ticks],
    }
    for (name, ticks), found in taken.items()
  ]


def gradient(name: str, method: str, ticks: int) -> jax.stages.Compiled:
  """A compiled gradient of a cell by its parameters and its inputs.

  Args:
    name: key of `recurrent.cells.CELLS`.
    method: see `recurrent.unroll`.
    ticks: T, for 4 rows and 32 units.
  """
  cell = CELLS[name](32)
  params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 32))
  inputs = jax.ShapeDtypeStruct((4, ticks, 32), jnp.float32)

  def total(params, inputs):
    return jnp.sum(unroll(cell, params, None, inputs, method=method)[1] ** 2)

  return (
    jax.jit(jax.grad(total, argnums=(0, 1))).lower(params, inputs).compile()
  )


def instructions(compiled: jax.stages.Compiled) -> int:
  """How many instructions XLA's program has, fused ones too."""
  return sum(" = " in line for line in (compiled.as_text() or "").splitlines())


# Rows.


def row(
  part: str,
  axis: str,
  contestant: str,
  x: int | str,
  values: Sequence[float],
  unit: str,
) -> Row:
  """A point of a line: the median of some values, and their range."""
  return {
    "part": part,
    "axis": axis,
    "contestant": contestant,
    "x": x,
    "value": statistics.median(values),
    "least": min(values),
    "most": max(values),
    "rounds": len(values),
    "unit": unit,
  }


def show(rows: Sequence[Row]) -> str:
  """A table in Markdown, with the columns of the first row."""
  cell = lambda x: f"{x:.4g}" if isinstance(x, float) else str(x)
  lines = [list(rows[0]), ["---"] * len(rows[0])]
  lines += [[cell(x) for x in row.values()] for row in rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def take_turns(
  calls: dict[Any, Callable[[], Any]], rounds: int, seconds: float
) -> dict[Any, list[float]]:
  """Milliseconds of a call in each round, all in turn within a round.

  Args:
    calls: by name, each does its work and waits for it.
    rounds: at most.
    seconds: after which no round begins, but for the first three.

  Returns:
    For each its rounds; of what is quick, means of several calls.
  """
  many = {
    name: max(1, int(0.02 / _timed(call, 2))) for name, call in calls.items()
  }
  taken: dict[Any, list[float]] = {name: [] for name in calls}
  for _ in _rounds(rounds, seconds):
    for name, call in calls.items():
      taken[name].append(1e3 * _timed(call, many[name]))
  return taken


def _timed(call, times):
  begun = time.perf_counter()
  for _ in range(times):
    call()
  return (time.perf_counter() - begun) / times


def _rounds(rounds: int, seconds: float, least: int = LEAST) -> Iterator[int]:
  begun = time.perf_counter()
  for number in range(rounds):
    if number < least or time.perf_counter() - begun < seconds:
      yield number


def _mib(compiled) -> float:
  return compiled.memory_analysis().temp_size_in_bytes / MIB


@contextlib.contextmanager
def _no_cache():
  """Compiles anew what is in JAX's cache on disk."""
  before = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  try:
    yield
  finally:
    jax.config.update("jax_enable_compilation_cache", before)


__all__ = ["SIZES", "Layers", "Sizes", "exponent", "fits", "measure"]
