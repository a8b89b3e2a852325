"""Times the loops in C++ beside other processes that use the processors.

Threads that share the time steps of a layer wait for each other. If another
process takes a processor from one thread, all of them wait. This measures what
that costs, against the same work by XLA:

  python -m experiments.benchmarks.busy --processes=0,1,2

A busy process is an endless loop in Python. The implementations take turns. The
table has medians in milliseconds and their ratio; the last line is a JSON
object.
"""

import argparse
import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp

from experiments.benchmarks import timing
from recurrent import unroll
from recurrent.cells import GRU, LSTM
from recurrent.kernels.packed import pack, runs_in_cpp

# Ends by itself if this process is killed.
BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
  for _ in range(100_000):
    pass
"""


@contextlib.contextmanager
def busy(count):
  """Runs `count` processes, each of which keeps one processor busy."""
  started = []
  try:
    for _ in range(count):
      started.append(subprocess.Popen([sys.executable, "-c", BUSY]))
    time.sleep(0.5)
    yield started
  finally:
    for process in started:
      process.kill()
      process.wait()


def layer(cell, batch, steps, in_features):
  """The forward and backward pass of a layer in C++ and by XLA."""
  params = cell.init(jax.random.key(0), in_features)
  inputs = jax.random.normal(jax.random.key(1), (batch, steps, in_features))

  def gradient(method):
    loss = lambda params, inputs: jnp.sum(
      unroll(cell, params, None, inputs, method=method)[1]
    )
    run = jax.jit(jax.grad(loss, (0, 1)))
    return lambda: run(params, inputs)

  return {"C++": gradient("cpu_kernel"), "XLA": gradient("fused")}


def tokens(features, dtype, count=200):
  """Products of one row with a matrix, one after another, as in decoding."""
  matrix = jax.random.normal(jax.random.key(0), (features, 4 * features))
  row = jax.random.normal(jax.random.key(1), (1, features))

  def decode(in_cpp):
    packed = pack(matrix, dtype, in_cpp=in_cpp)

    @jax.jit
    def run(packed, row):
      token = lambda row, _: (jnp.tanh((row @ packed)[:, :features]), None)
      return jax.lax.scan(token, row, length=count)[0]

    return lambda: run(packed, row)

  return {"C++": decode(runs_in_cpp()), "XLA": decode(False)}


WORK = {
  "LSTM 1 x 256, 512 to 512": lambda: layer(LSTM(512), 1, 256, 512),
  "GRU 4 x 128, 256 to 256": lambda: layer(GRU(256), 4, 128, 256),
  "LSTM 20 x 35, 650 to 650": lambda: layer(LSTM(650), 20, 35, 650),
  "200 products [1, 512] [512, 2048], float32": lambda: tokens(512, "float32"),
  "200 products [1, 1024] [1024, 4096], int8": lambda: tokens(1024, "int8"),
}


def medians(implementations, repeats):
  """Returns the median milliseconds of each implementation, run in turn."""

  def timed(run):
    return timing.timed(lambda: jax.block_until_ready(run()))

  calls = {n: functools.partial(timed, f) for n, f in implementations.items()}
  taken = timing.in_turn(calls, repeats)
  return {name: 1e3 * statistics.median(times) for name, times in taken.items()}


def main():
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--processes", default="0,1,2")
  parser.add_argument("--repeats", type=int, default=15)
  options = parser.parse_args()
  counts = [int(x) for x in options.processes.split(",")]
  rows = []
  print(f"{'work':44} {'busy':>4} {'C++ ms':>9} {'XLA ms':>9} {'ratio':>6}")
  for name, make in WORK.items():
    implementations = make()
    for count in counts:
      with busy(count):
        taken = medians(implementations, options.repeats)
        load = os.getloadavg()[0]
      ratio = taken["C++"] / taken["XLA"]
      print(
        f"{name:44} {count:4} {taken['C++']:9.2f} {taken['XLA']:9.2f}"
        f" {ratio:6.2f}",
        flush=True,
      )
      rows.append({"work": name, "busy": count, **taken, "load": load})
  print(json.dumps({"processors": os.cpu_count(), "rows": rows}))


if __name__ == "__main__":
  main()
