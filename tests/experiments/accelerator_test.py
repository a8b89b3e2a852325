"""The suite for accelerators, on a CPU at toy sizes."""

import contextlib
import json
import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import benchmark
from experiments.benchmarks import (
  accelerator,
  comparison,
  problems,
  processes,
  roofline,
  timing,
)
from experiments.benchmarks.peers import linear
from experiments.benchmarks.problems import FORWARD, Problem
from recurrent.executors import EXECUTORS
from tests.experiments.scripts import call, refused, result, start

SMOKE = ("--suite=accelerator", "--smoke", "--repeats=1")


class Here:
  """A `Worker` whose functions run in this process."""

  def __init__(self, environment, *setup):
    del environment, setup

  def ask(self, function, *args, timeout=None):
    del timeout
    try:
      # Settings of a `with` belong to one thread, and this may be another one.
      with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
      ):
        return function(*args)
    except Exception as error:
      raise processes.WorkerError(str(error)) from error

  def close(self):
    pass


@pytest.fixture
def in_process(monkeypatch):
  for module in (accelerator, comparison):
    monkeypatch.setattr(module, "Worker", Here)


@pytest.fixture
def on_a_gpu(monkeypatch, in_process):
  """Facts about a device as a GPU would give them."""
  del in_process
  methods = {
    name: ["fused", "scan", "gpu_kernel"] for name in ("rnn", "lstm", "gru")
  }
  methods |= {"min_gru": ["linear_scan", "scan", "gpu_kernel"], "mgu": ["scan"]}
  facts = {"platform": "gpu", "device": "NVIDIA H200", "flops": {}}
  facts["methods"] = dict.fromkeys(comparison.TOLERANCES, methods)
  monkeypatch.setattr(accelerator, "describe", lambda *_: facts)


def suite(tmp_path, sizes=accelerator.FULL, **flags):
  config = benchmark.Config(workdir=str(tmp_path), **flags)
  return accelerator.Suite(config, timing.machine(), sizes)


def read(folder):
  return json.loads((folder / "accelerator.json").read_text())


@pytest.mark.usefixtures("in_process")
def test_a_wrong_kernel_is_named_and_not_timed(tmp_path, capsys, monkeypatch):
  right = EXECUTORS["fused"].run

  def wrong(*args, **options):
    carry, outputs = right(*args, **options)
    return carry, outputs * jnp.asarray(1 + 1e-5, outputs.dtype)

  wrong = EXECUTORS["fused"]._replace(run=wrong)
  monkeypatch.setitem(EXECUTORS, "fused", wrong)
  assert call(benchmark, *SMOKE, f"--workdir={tmp_path}") == 0
  printed = capsys.readouterr().out
  assert "FAILED: rnn by fused in float32: its values are off" in printed
  assert [x["method"] for x in result(printed)["accelerator"]["failed"]] == [
    "fused"
  ]
  found = read(tmp_path)
  (failed,) = (row for row in found["checks"] if not row["ok"])
  assert failed["method"] == "fused"
  assert failed["allowed"][0] < failed["forward"] < 1e-4
  timed = {row["implementation"]: row for row in found["rows"]}
  assert {"scan", "flax"} <= set(timed)
  assert "fused" not in {row.get("method") for row in timed.values()}
  assert timed["scan"]["us_per_time_step"] > 0
  assert timed["scan"]["roof_percent"] == "unknown"
  shown = (tmp_path / "accelerator.md").read_text()
  assert "FAILED: rnn by fused" in shown
  assert "| rnn-4x8x3x5 | float32 | forward | scan |" in shown


@pytest.mark.usefixtures("in_process")
def test_what_there_is_no_time_for_is_listed(tmp_path, capsys):
  flags = (*SMOKE, "--minutes=0", f"--workdir={tmp_path}")
  assert call(benchmark, *flags) == 0
  assert "Left out: correctness, rnn by fused, float32" in (
    capsys.readouterr().out
  )
  found = read(tmp_path)
  assert "layers, rnn-4x8x3x5, float32" in found["left_out"]
  assert found["checks"] == found["rows"] == []


@pytest.mark.processes
def test_a_killed_run_keeps_its_results_and_leaves_no_process(tmp_path):
  run = start("experiments.benchmark", *SMOKE, f"--workdir={tmp_path}")
  with contextlib.closing(run.stdout), contextlib.closing(run.stderr):
    file = tmp_path / "accelerator.json"
    until = time.monotonic() + 120
    while not (file.exists() and read(tmp_path)["checks"]):
      assert run.poll() is None and time.monotonic() < until
      time.sleep(0.05)
    tasks = f"/proc/{run.pid}/task/{run.pid}/children"
    with open(tasks) as text:
      children = [int(x) for x in text.read().split()]
    run.send_signal(signal.SIGKILL)
    run.wait()
  assert read(tmp_path)["checks"][0]["ok"]
  assert "rnn" in (tmp_path / "accelerator.md").read_text()
  while any(map(alive, children)):
    assert time.monotonic() < until
    time.sleep(0.05)


def alive(pid):
  """Whether a process runs, and is not one that nobody has waited for."""
  try:
    with open(f"/proc/{pid}/stat") as text:
      return text.read().rpartition(")")[2].split()[0] != "Z"
  except FileNotFoundError:
    return False


@pytest.mark.processes
def test_a_worker_that_crashes_or_hangs_is_replaced():
  worker = processes.Worker({})
  first = worker.ask(os.getpid)
  with pytest.raises(processes.WorkerError, match="its process ended"):
    worker.ask(os._exit, 3)
  second = worker.ask(os.getpid)
  assert first != second
  with pytest.raises(processes.WorkerError, match="more than 0 s"):
    worker.ask(time.sleep, 600, timeout=0.1)
  assert not alive(second)
  with pytest.raises(processes.WorkerError, match="ValueError"):
    worker.ask(int, "one")
  worker.close()


@pytest.mark.usefixtures("on_a_gpu")
def test_the_most_important_comes_first(tmp_path):
  plan = suite(tmp_path).plan()
  parts = [item.part for item in plan]
  timed = parts.index("layers")
  first = plan[:timed]
  # What "auto" chooses, and the kernels, before all other methods.
  early = ["scan" in (item.method,) for item in first]
  assert early == sorted(early) and {False, True} == set(early)
  assert {item.cell for item in first} == {"rnn", "lstm", "gru"}
  assert plan[timed].problem.name == "lstm-16x1024x768x768"
  assert {"linear", "decode", "train", "loops"} <= set(parts)
  assert parts[-1] == "correctness" and plan[-1].cell in ("mgu", "min_gru")
  named = suite(tmp_path, shapes="gru:4,8,3,5").plan()
  timings = [item for item in named if item.part != "correctness"]
  assert {item.problem.name for item in timings} == {"gru-4x8x3x5"}


@pytest.mark.usefixtures("on_a_gpu")
def test_a_method_that_failed_is_left_out_for_its_cell_and_dtype(tmp_path):
  found = suite(tmp_path)
  row = {"cell": "lstm", "method": "gpu_kernel", "dtype": "bfloat16"}
  found.results["failed"].append(row)
  names = lambda kind, dtype: found._names(
    accelerator.Timing("layers", Problem("cells", kind, 4, 8, 3, 5), dtype)
  )
  lstm = names("lstm", "bfloat16")
  assert lstm[:3] == ["ours", "ours:scan", "scan"]
  assert "ours:gpu_kernel" in names("lstm", "float32")
  assert "ours:gpu_kernel" in names("gru", "bfloat16")
  found.results["failed"].append(row | {"method": "fused"})
  assert names("lstm", "bfloat16")[:2] == ["ours:scan", "scan"]


def test_auto_is_compared_with_the_fastest_method():
  row = {"part": "layers", "dtype": "float32", "work": problems.BACKWARD}
  row["shape"] = "gru-4x8x3x5"
  times = {"ours": ("fused", 6.0), "ours:gpu_kernel": ("gpu_kernel", 2.0)}
  rows = [
    {**row, "implementation": n, "method": m, "us_per_time_step": us}
    for n, (m, us) in times.items()
  ]
  # Implementations of others have no method.
  rows.append({**row, "implementation": "scan", "us_per_time_step": 1.0})
  (found,) = accelerator.auto(rows)
  assert (found["auto"], found["fastest"]) == ("fused", "gpu_kernel")
  assert found["over_fastest"] == 3
  assert "| gru | float32 | gpu_kernel | 1 |" in accelerator.show_auto([found])


def test_the_roof_is_that_of_the_products_or_of_the_bytes():
  # 155 GFLOP: 156 us at 989 TFLOP/s, of 1,024 time steps.
  problem = Problem("cells", "lstm", 16, 1024, 768, 768)
  row = roofline.roof(problem, FORWARD, "bfloat16", "NVIDIA H200", 2.0)
  assert row["roof_by"] == "FLOPs"
  assert row["roof_us_per_time_step"] == pytest.approx(156 / 1024, rel=0.01)
  assert row["roof_percent"] == pytest.approx(7.8, rel=0.01)
  # 3 arrays of 8 x 4096 x 1536 float32 numbers at 3.35 TB/s.
  problem = Problem("linear", "linear", 8, 4096, 1536, 1536)
  row = roofline.roof(problem, FORWARD, "float32", "NVIDIA H100 80GB HBM3", 1.0)
  assert row["roof_by"] == "bytes"
  assert row["roof_percent"] == pytest.approx(18.0, rel=0.01)
  for dtype, device in (("bfloat16", "Tesla T4"), ("float32", "cpu")):
    row = roofline.roof(problem, FORWARD, dtype, device, 1.0)
    assert set(row.values()) == {"unknown"}


def test_the_implementations_of_the_linear_recurrence_agree():
  problem = Problem("linear", "linear", 2, 9, 4, 4)
  drawn = problems.draw(problem)
  options = [
    made.option
    for made in comparison.IMPLEMENTATIONS["linear"].values()
    if not made.if_named
  ]
  values = [
    linear.make(problem, drawn, "float32", option).values()
    for option in options
  ]
  assert options[0] == "linear_scan" and len(options) == 3
  for other in values[1:]:
    for name, want in values[0].items():
      np.testing.assert_allclose(other[name], want, rtol=1e-5, atol=1e-7)


def test_without_libtpu_it_says_how_to_get_it(tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, "libtpu", None)
  flags = (*SMOKE, "--compile_for=v5e:2x2", f"--workdir={tmp_path}")
  assert "make tpu-costs" in refused(capsys, 1, benchmark, *flags)


@pytest.mark.usefixtures("in_process")
def test_a_cpu_is_no_accelerator(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(accelerator, "describe", lambda *_: {"platform": "cpu"})
  flags = ("--suite=accelerator", f"--workdir={tmp_path}")
  assert "sees no GPU or TPU" in refused(capsys, 1, benchmark, *flags)
