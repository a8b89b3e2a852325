"""Compiles layers for TPUs without having one, and prints XLA's cost analysis.

  python -m experiments.benchmark --suite=accelerator --compile_for=v5e:2x2

libtpu contains the compiler (`make tpu-costs` fetches it). XLA's analysis is
an estimate from the program, not a measurement, and has gaps: it counts the
body of a loop once, however often it runs, and a Pallas kernel not at all. A
program of "fused" is thus what is outside of the loop and one time step, and
one of "tpu_kernel" what is outside of the kernel. The analysis of a single time
step of the loop is the difference of two programs without loops, of 16 and of 8
time steps, divided by 8.
"""

import functools
import importlib.util
import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from experiments.benchmarks import processes, programs, report
from experiments.benchmarks.problems import BACKWARD, FORWARD
from recurrent import compile_for, files
from recurrent.cells import CELLS
from recurrent.errors import UserError

# libtpu would otherwise ask the metadata server of a TPU VM for the type of
# the machine, and refuse to load while another process uses it.
ENVIRONMENT = {
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}
LAYERS = (
  ("lstm", 16, 1024, 768, 768),
  ("lstm", 64, 100, 128, 128),
  ("gru", 16, 1024, 768, 768),
)
SHORT, LONG = 8, 16  # time steps of the programs without loops
MIB = 1 << 20


def measure(config: Any) -> dict[str, Any]:
  """Compiles all layers for all topologies, and prints and writes a table.

  Raises:
    UserError: if libtpu is not installed.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise UserError(
      "--compile_for needs libtpu, which is not installed",
      "use `make tpu-costs`, which fetches it, or put it on PYTHONPATH",
    )
  worker = processes.Worker({**ENVIRONMENT, "JAX_PLATFORMS": "cpu"})
  rows = []
  for topology in config.compile_for.split(","):
    for layer in LAYERS:
      for work in (FORWARD, BACKWARD):
        ask = functools.partial(worker.ask, costs, topology, *layer, work)
        found = {name: ask(name) for name in ("fused", "tpu_kernel")}
        long, short = (ask("fused", length) for length in (LONG, SHORT))
        found["fused, one time step"] = {
          key: (long[key] - short[key]) / (LONG - SHORT) for key in long
        }
        about = {"tpu": topology, "layer": f"{layer[0]} {layer[1:]}"}
        for name, cost in found.items():
          rows.append({**about, "work": work, "program": name, **cost})
          print(rows[-1], flush=True)
      text = json.dumps(rows, indent=1) + "\n"
      files.write_text(Path(config.workdir) / "ahead.json", text)
  worker.close()
  print(report.table(rows[0], (row.values() for row in rows)))
  return {"compiled": len(rows)}


def costs(
  topology: str,
  kind: str,
  batch: int,
  time: int,
  in_features: int,
  features: int,
  work: str,
  method: str,
  without_loop: int = 0,
) -> dict[str, float]:
  """Compiles a layer in bfloat16 and returns XLA's estimates.

  Args:
    topology: the TPU and its slice, such as v5e:2x2.
    kind: name of the cell.
    batch: rows.
    time: time steps.
    in_features: width of the inputs.
    features: width of the layer.
    work: `FORWARD` or `BACKWARD`.
    method: method of `unroll`.
    without_loop: if not 0, a number of time steps that replaces `time`, and the
      program then has no loop.

  Returns:
    GFLOP, MiB that are read or written in any memory, the least microseconds by
    XLA's model of the TPU, MiB of temporaries.
  """
  cell = CELLS[kind](features)
  layers, inputs = programs.shapes(
    cell, batch, without_loop or time, in_features, jnp.bfloat16
  )
  scan = functools.partial(jax.lax.scan, unroll=bool(without_loop) or 1)
  with mock.patch.object(jax.lax, "scan", scan), compile_for("tpu"):
    lowered = programs.lower(
      work, cell, *on_tpu(topology, (layers, inputs)), method=method
    )
  compiled = lowered.compile()
  found: Any = compiled.cost_analysis()
  memory: Any = compiled.memory_analysis()
  return {
    "GFLOP": found["flops"] / 1e9,
    "MiB accessed": found["bytes accessed"] / MIB,
    # XLA adds -1 s for each operation that its model does not have.
    "least us": 1e6 * (found["optimal_seconds"] % 1),
    "temporary MiB": memory.temp_size_in_bytes / MIB,
  }


def devices(topology: str) -> Any:
  """The devices of a topology of TPUs that need not be there."""
  for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  found = topologies.get_topology_desc(topology, platform="tpu")
  return found.devices


def on_tpu(topology: str, tree: Any) -> Any:
  """Shapes of arrays on the first device of a topology."""
  sharding = SingleDeviceSharding(devices(topology)[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
  )
