"""Checks and times this machine's accelerator, the most important first.

  python -m experiments.benchmark --suite=accelerator --minutes=8

It needs JAX, Flax, Optax and NumPy only, and times torch where torch has a GPU.
The parts, in this order as far as the time goes:

correctness: every cell by every method that runs here against the plain loop in
  float64 on the CPU (`correctness`). A method that fails is named, and is not
  timed with that cell and dtype.
layers: LSTM, GRU and RNN by every method, a plain `lax.scan`, Flax and torch.
linear: linear recurrences of up to 65,536 time steps.
decode: tokens per call from a language model, for 1 row and for 32.
train: the whole train step of a language model.
loops: the loop of "fused" with each of XLA's options for loops.

Everything that uses the device runs in worker processes, so that a crash, a
hang or a spoilt device costs one measurement. The results are written to
accelerator.json and accelerator.md after each measurement, and what the time
did not allow is listed there. From the times follows which method "auto" should
choose.

Timed float32 products have the factors that JAX and torch use by default: TF32
on an NVIDIA GPU, with as many bits as float16, and bfloat16 on a TPU. In the
checks they have all bits.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import operator
import os
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.benchmarks import (
  comparison,
  correctness,
  problems,
  report,
  roofline,
  timing,
  worker,
)
from experiments.benchmarks.implementations import IMPLEMENTATIONS
from experiments.benchmarks.methods import WELL_KNOWN
from experiments.benchmarks.problems import BACKWARD, Problem
from experiments.benchmarks.processes import Worker, WorkerError
from recurrent import files
from recurrent.cells import CELLS
from recurrent.errors import UserError

Row = dict[str, Any]

# Seconds that a measurement of each part is expected to take before one of that
# part was made.
EXPECTED = {
  "correctness": 15,
  "layers": 30,
  "linear": 30,
  "decode": 40,
  "train": 40,
  "loops": 40,
}
PATIENCE = 90.0  # seconds that a single request may take
KERNELS = ("gpu_kernel", "tpu_kernel", "cudnn")
PEERS = ("scan", "flax", "associative", "torch")
# What rounds like the factors of float32 products, by platform.
FACTORS = {"gpu": "float16", "tpu": "bfloat16", "cpu": "float32"}
SECONDS = 2.0  # for the repeats of one shape and one kind of work
DRIVER = "--query-gpu=name,driver_version,memory.total,clocks.max.sm"
COLUMNS = {
  "shape": "shape",
  "dtype": "dtype",
  "work": "work",
  "implementation": "implementation",
  "method": "method",
  "median_ms": "median ms",
  "quartiles_ms": "quartiles",
  "us_per_time_step": "us/time step",
  "gflops": "GFLOP/s",
  "roof_us_per_time_step": "least us/time step",
  "roof_percent": "% of roof",
  "roof_by": "roof by",
}


class Check(NamedTuple):
  """A method to check with one cell, in one dtype."""

  cell: str
  method: str
  dtype: str
  part: str = "correctness"

  @property
  def name(self) -> str:
    """Its name in the list of what was left out."""
    return f"{self.cell} by {self.method}"


class Timing(NamedTuple):
  """A problem to time in one dtype."""

  part: str
  problem: Problem
  dtype: str

  @property
  def name(self) -> str:
    """Its name in the list of what was left out."""
    return self.problem.name


class Sizes(NamedTuple):
  """What to measure.

  Attributes:
    first: cells that are checked before anything is timed.
    rest: whether all other cells are checked at the end.
    timings: what is timed, in this order.
    dtypes: dtypes to check, and to time matrix products in.
    only: the methods to check and to time; empty: all.
  """

  first: Sequence[str]
  rest: bool
  timings: Sequence[Timing]
  dtypes: Sequence[str] = tuple(correctness.UNITS)
  only: Sequence[str] = ()


def _timings() -> Iterator[Timing]:
  shapes = (
    (16, 1024, 768, 768),
    (64, 100, 128, 128),
    (20, 35, 650, 650),
    (80, 70, 400, 1150),
    (128, 512, 512, 512),
    (1, 1000, 1024, 1024),
    (32, 10, 1, 64),
  )
  cells = functools.partial(Problem, "cells")

  def layers(kind, shapes, *dtypes):
    for shape, dtype in itertools.product(shapes, dtypes):
      yield Timing("layers", cells(kind, *shape), dtype)

  yield from layers("lstm", shapes, "bfloat16", "float32")
  yield from layers("gru", shapes[:2], "bfloat16", "float32")
  yield from layers("rnn", shapes[:2], "bfloat16", "float32")
  for linear in ((8, 4096, 1536, 1536), (1, 65536, 256, 256)):
    problem = Problem("linear", "linear", *linear)
    yield Timing("linear", problem, "float32")
  for rows in (1, 32):
    decode = Problem("decode", "lstm", rows, 256, 128, 1024)
    yield Timing("decode", decode, "float32")
  for dtype in ("bfloat16", "float32"):
    train = Problem("train", "lstm", 64, 128, 512, 1024, 2)
    yield Timing("train", train, dtype)
  for shape in shapes[:2]:
    yield Timing("loops", cells("lstm", *shape), "bfloat16")
  yield from layers("lstm", shapes[:4], "float16")
  for more in ({"layers": 2}, {"bidirectional": True}):
    yield Timing("layers", cells("lstm", *shapes[2], **more), "bfloat16")
  for kind in ("gru", "rnn"):
    yield from layers(kind, shapes[2:], "bfloat16", "float32")


FULL = Sizes(WELL_KNOWN, True, tuple(_timings()))
# For a CPU and seconds.
SMOKE = Sizes(
  ("rnn",),
  False,
  (Timing("layers", Problem("cells", "rnn", 4, 8, 3, 5), "float32"),),
  ("float32",),
  ("cpu_kernel", "fused"),
)


def measure(config: Any, machine: dict[str, Any]) -> dict[str, Any]:
  """Runs the suite; returns how much was measured, and what "auto" should be.

  With `--compile_for` it compiles for TPUs instead (`ahead`).
  """
  if config.compile_for:
    from experiments.benchmarks import ahead

    return ahead.measure(config)
  suite = Suite(config, machine, SMOKE if config.smoke else FULL)
  for part, items in itertools.groupby(suite.plan(), lambda item: item.part):
    suite.run(part, list(items))
  found = suite.results
  for item in found["left_out"]:
    print("Left out:", item)
  return {
    "checks": len(found["checks"]),
    "failed": found["failed"],
    "rows": len(found["rows"]),
    "refused": found["refused"],
    "left_out": len(found["left_out"]),
    "auto": found["auto"],
  }


class Suite:
  """One run: its deadline, its results, and the files that hold them.

  Args:
    config: the flags of the benchmark.
    machine: a description of the machine.
    sizes: what to measure.
  """

  def __init__(self, config: Any, machine: dict[str, Any], sizes: Sizes):
    self._until = time.monotonic() + 60 * config.minutes
    seconds = min(config.seconds, SECONDS)
    self._config = dataclasses.replace(config, seconds=seconds)
    self._sizes = sizes
    self._timings = list(sizes.timings)
    if config.shapes != "default":
      self._timings = [
        Timing("layers", problem, dtype)
        for problem in problems.choose(config.shapes, ["cells"])
        for dtype in sizes.dtypes
      ]
    self._taken: dict[str, float] = {}
    self._lock = threading.Lock()
    timed = {_cell(item.problem) for item in self._timings}
    cells = CELLS if sizes.rest else dict.fromkeys([*sizes.first, *timed])
    dtypes = {item.dtype for item in self._timings} | set(sizes.dtypes)
    self._worker = _worker()
    try:
      self._device = self._worker.ask(describe, list(cells), sorted(dtypes))
    except WorkerError as error:
      raise UserError(
        f"the device cannot be used: {error}",
        "see whether `jax.devices()` works here, and no other process uses it",
      ) from error
    if self._device["platform"] == "cpu" and not config.smoke:
      self._worker.close()
      raise UserError(
        "JAX sees no GPU or TPU here",
        "install JAX for the device, or add --smoke to try the suite on a CPU",
      )
    # Only one process can use a TPU; on a CPU they would disturb each other.
    self._apart = self._device["platform"] == "gpu"
    self.results: dict[str, Any] = {
      "machine": {**machine, **self._device, "driver": _driver()},
      "minutes": config.minutes,
      **{key: [] for key in ("failed", "auto", "left_out", "refused")},
      **{key: [] for key in ("checks", "rows")},
    }
    self._tolerances = dict(comparison.TOLERANCES)
    factors = FACTORS[self._device["platform"]]
    self._tolerances["float32"] = self._tolerances[factors]
    self._write()

  def plan(self) -> list[Check | Timing]:
    """Everything to measure, the most important first."""
    early: Callable[[Check], bool] = lambda check: (
      check.cell in self._sizes.first
    )
    first = filter(early, self._checks())
    rest = itertools.filterfalse(early, self._checks())
    timings = [x for x in self._timings if self._apart or x.part != "loops"]
    return [*first, *timings, *(rest if self._sizes.rest else ())]

  def _checks(self) -> list[Check]:
    """All checks, those of the choices of "auto" and of the kernels first."""
    found = []
    for dtype in self._sizes.dtypes:
      for cell, able in self._device["methods"][dtype].items():
        for method in able:
          if method in (self._sizes.only or able):
            later = method not in (able[0], *KERNELS)
            found.append((later, Check(cell, method, dtype)))
    return [check for _, check in sorted(found, key=operator.itemgetter(0))]

  def run(self, part: str, items: Sequence[Any]) -> None:
    """Measures items of one part, and prints their rows.

    Args:
      part: "correctness", or a part in which times are measured.
      items: what to check, or the programs to time.
    """
    before = len(self.results["rows"])
    (self._check if part == "correctness" else self._time)(items)
    rows = self.results["rows"][before:]
    checked = part == "correctness"
    print(f"\n{show_checks(self.results) if checked else show_rows(rows)}")
    print(f"\n{show_auto(self.results['auto'])}", flush=True)

  def _check(self, items):
    # Most of the time goes into compiling, on the CPU.
    number = max(1, min(4, timing.processors() // 4)) if self._apart else 1
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()

    def check(item):
      process, row = idle.get(), item._asdict()
      try:
        left = self._timeout()
        row |= process.ask(correctness.check, *item[:3], timeout=left)
      except WorkerError as error:
        row |= {"ok": False, "reason": str(error)}
      idle.put(process)
      return {"checks": [row], "failed": [] if row["ok"] else [row]}

    with contextlib.ExitStack() as stack:
      for process in (self._worker, *(_worker() for _ in range(number - 1))):
        idle.put(stack.enter_context(contextlib.closing(process)))
      with ThreadPoolExecutor(number) as threads:
        list(threads.map(functools.partial(self._measure, check), items))

  def _time(self, items):
    suite = items[0].problem.suite
    workers = comparison.Workers(
      suite,
      self._config,
      timing.processors(),
      works=problems.WORKS[suite][:2],
      together=self._apart,
      shared=not self._apart,
      tolerances=self._tolerances,
      timeout=self._timeout,
    )

    def compare(item):
      found = workers.compare(item.problem, self._names(item), item.dtype)
      about = {"part": item.part, "dtype": item.dtype}
      rows = report.rows(found, self._device["flops"][item.dtype])
      about["shape"] = item.problem.name
      roof = functools.partial(
        roofline.roof,
        item.problem,
        dtype=item.dtype,
        device=self._device["device"],
      )
      return {
        "rows": [
          {**about, **row, **roof(row["work"], milliseconds=row["median_ms"])}
          for row in rows
          # torch without CUDA
          if row.get("device") != "cpu" or self._device["platform"] == "cpu"
        ],
        "refused": [
          {**about, "implementation": name, "reason": reason}
          for name, reason in found.refused.items()
        ],
      }

    with workers:
      for item in items:
        self._measure(compare, item)

  def _timeout(self):
    """Seconds that a request may take: a kernel may never end."""
    return max(1.0, min(PATIENCE, self._until - time.monotonic()))

  def _measure(self, function, item):
    """Adds what `function(item)` returns, if there is time."""
    begun = time.monotonic()
    expected = self._taken.get(item.part, EXPECTED[item.part])
    if begun + expected > self._until:
      found = {"left_out": [f"{item.part}, {item.name}, {item.dtype}"]}
    else:
      found = function(item)
      self._taken[item.part] = time.monotonic() - begun
    with self._lock:
      for key, rows in found.items():
        self.results[key] += rows
      self.results["auto"] = auto(self.results["rows"])
      self._write()

  def _names(self, item):
    """Names of the implementations to time: those that failed no check."""
    suite, dtype = item.problem.suite, item.dtype
    kind = _cell(item.problem)
    able = self._device["methods"][dtype][kind]
    failed = [
      (row["cell"], row["method"], row["dtype"])
      for row in self.results["failed"]
    ]
    good = [
      method
      for method in able
      if method in (self._sizes.only or able)
      and (kind, method, dtype) not in failed
    ]

    def wanted(name, made):
      if item.part == "loops":
        return name.startswith("ours:fused")
      if made.missing() or "+" in name:
        return False
      if name == "ours":
        return able[0] in good
      if made.side == "ours" and suite != "decode":
        return made.option in good and made.option != able[0]
      if name == "torch" and self._device["platform"] == "tpu":
        return False
      return name in PEERS or made.side == "ours"

    return [n for n, made in IMPLEMENTATIONS[suite].items() if wanted(n, made)]

  def _write(self):
    """Writes all results; a killed run leaves the files of the time before."""
    shown = self.results
    driver = map(str, shown["machine"]["driver"])
    texts = {
      "json": json.dumps(shown, indent=1) + "\n",
      "md": "\n\n".join(
        [
          f"# {', '.join([shown['machine']['device'], *driver])}",
          f"```\n{json.dumps(shown['machine']['versions'])}\n```",
          show_checks(shown),
          show_auto(shown["auto"]),
          show_rows(shown["rows"]),
          "\n".join(f"- refused: {row}" for row in shown["refused"]),
          "\n".join(f"- left out: {item}" for item in shown["left_out"]),
        ]
      ),
    }
    for ending, text in texts.items():
      folder = Path(self._config.workdir)
      files.write_text(folder / f"accelerator.{ending}", text)


def describe(cells: Sequence[str], dtypes: Sequence[str]) -> dict[str, Any]:
  """Describes the device of a worker process.

  Args:
    cells: cells whose methods are listed.
    dtypes: dtypes of the methods to list and of the products to time.
  """
  client = jax.devices()[0].client
  peaks = {dtype: worker.peak(dtype) for dtype in dtypes}
  return {
    **peaks[dtypes[0]],
    "flops": {dtype: peak["flops"] for dtype, peak in peaks.items()},
    "devices": jax.device_count(),
    "platform_version": client.platform_version,
    "methods": correctness.methods(cells, dtypes),
  }


def auto(rows: Sequence[Row]) -> list[Row]:
  """What "auto" should choose for each shape, by the times in `rows`.

  Returns:
    A row for each shape, dtype and kind of work: what "auto" chooses now, the
    fastest method, and how many times longer the former takes.
  """
  found: dict[tuple[str, str, str], dict[str, float]] = {}
  chosen = {}
  for row in rows:
    if row["part"] in ("layers", "linear") and "method" in row:
      key = row["shape"], row["dtype"], row["work"]
      found.setdefault(key, {})[row["method"]] = row["us_per_time_step"]
      if row["implementation"] == "ours":
        chosen[key] = row["method"]
  return [
    {
      **dict(zip(("shape", "dtype", "work"), key, strict=True)),
      "auto": chosen.get(key),
      "fastest": (best := min(times, key=times.__getitem__)),
      "over_fastest": times[chosen[key]] / times[best]
      if key in chosen
      else None,
      "us_per_time_step": times,
    }
    for key, times in found.items()
  ]


def show_rows(rows: Sequence[Row]) -> str:
  """Formats times as a table."""
  lines = ([row.get(key) for key in COLUMNS] for row in rows)
  return report.table(COLUMNS.values(), lines)


def show_auto(rows: Sequence[Row]) -> str:
  """Formats the rows of `auto` as a table, and counts them by cell."""
  columns = ("shape", "dtype", "work", "auto", "fastest", "over_fastest")
  lines = [[row[key] for key in columns] for row in rows]
  title = ("shape", "dtype", "work", "auto now", "fastest", "auto/fastest")
  wins: dict[tuple[str, str], collections.Counter[str]] = {}
  for row in rows:
    if row["work"] == BACKWARD:
      cell = row["shape"].partition("-")[0], row["dtype"]
      wins.setdefault(cell, collections.Counter())[row["fastest"]] += 1
  most = [[*cell, *of.most_common(1)[0]] for cell, of in wins.items()]
  return "\n\n".join(
    [
      report.table(title, lines),
      report.table(("cell", "dtype", "fastest in training", "shapes"), most),
    ]
  )


def show_checks(results: dict[str, Any]) -> str:
  """Formats the checks: the failed ones, and the errors by method."""
  columns = ("cell", "method", "dtype", "forward", "gradients", "allowed")
  lines = [[row.get(key) for key in columns] for row in results["checks"]]
  failed = [
    f"- FAILED: {row['cell']} by {row['method']} in {row['dtype']}:"
    f" {row.get('reason', 'its values are off')}"
    for row in results["failed"]
  ]
  return "\n".join([*failed, "", report.table(columns, lines)])


def _cell(problem: Problem) -> str:
  """The cell whose methods compute a problem: any linear one for `linear`."""
  return {"linear": "min_gru"}.get(problem.kind, problem.kind)


def _worker() -> Worker:
  """A process with the device, and with a CPU for the reference."""
  environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  platforms = os.environ.get("JAX_PLATFORMS", "")
  if platforms and "cpu" not in platforms:
    environment["JAX_PLATFORMS"] = f"{platforms},cpu"
  return Worker(environment)


def _driver() -> list[str]:
  """What NVIDIA's driver says of its GPUs; empty if there is none."""
  if shutil.which("nvidia-smi") is None:
    return []
  asked = ["nvidia-smi", DRIVER, "--format=csv,noheader"]
  said = subprocess.run(asked, capture_output=True, text=True, check=False)
  return said.stdout.strip().splitlines()
