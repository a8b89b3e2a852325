"""Tests of the suite scaling: exponents, measurements and files."""

import json

import numpy as np
import pytest

from experiments import benchmark
from experiments.benchmarks import scaling, timing, training
from experiments.benchmarks.scaling import Layers, Sizes
from recurrent.errors import UserError
from tests.experiments.scripts import call, result

TINY = Sizes(
  base=Layers(2, 4, 8),
  axes={"time_steps": (4, 8, 16), "layers": (1, 2)},
  methods=("fused", "scan"),
  devices=(1, 2),
  processes=(1, 2),
  train=(
    *("--features=16", "--embedding_features=8"),
    *("--seq_len=8", "--batch_size=8"),
  ),
  steps=1,
  weak=(1, 2),
  rows=4,
  memory_times=(256, 1024, 4096),
  memory=(2, 16),
  recompute=(Layers(2, 9, 8),),
  compile_times=(64, 512),
  compiled=(("lru", "linear_scan"),),
  seconds=0.0,
)


@pytest.mark.parametrize("power", [-1.0, 0.0, 0.5, 1.0, 2.7])
def test_a_power_law_has_its_exponent(power):
  xs = [2, 4, 8, 64, 100]
  ys = [3 * x**power for x in xs]
  assert scaling.exponent(xs, ys) == pytest.approx(power, abs=1e-12)


def test_the_last_three_points_tell_the_asymptote():
  # 1 up to 8, then x / 8; given in any order.
  rows = [
    scaling.row("time", "time_steps", "ours", x, [0, max(1.0, x / 8), 99], "ms")
    for x in (32, 1, 8, 2, 16, 4)
  ]
  apart = scaling.row("recompute", "", "ours", "8x8", [1.0], "ms")
  [fit] = scaling.fits([*rows, apart])
  assert (fit["part"], fit["axis"], fit["implementation"]) == (
    *("time", "time_steps", "ours"),
  )
  assert fit["last"] == pytest.approx(1)
  assert 0.2 < fit["all"] < 0.8


def test_implementations_take_turns_and_no_repeat_begins_late():
  calls = []
  found = timing.medians(
    {name: lambda name=name: calls.append(name) for name in "ab"}, 5, 0.0
  )
  assert {name: len(times) for name, times in found.items()} == {"a": 3, "b": 3}
  order = [x for x, y in zip(calls, [*calls[1:], ""], strict=True) if x != y]
  assert "".join(order) == "ab" * 4


def test_each_layer_and_each_time_step_is_computed():
  for method in ("fused", "scan"):
    values = {}
    for size in (Layers(2, 4, 8), Layers(2, 4, 8, 2), Layers(2, 5, 8)):
      run, mib = scaling.layers_call(size, method=method)
      value, (params, inputs) = run()
      assert len(params) == size.layers and mib > 0
      assert inputs.shape == (size.batch, size.time_steps, size.features)
      assert all(np.any(layer.kernel) for layer in params)
      values[size] = float(value)
    assert len(set(values.values())) == 3


@pytest.mark.processes
def test_the_suite_ends_in_rows_exponents_and_a_plot(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(scaling, "SIZES", TINY)
  flags = ("--suite=scaling", f"--workdir={tmp_path}")
  assert call(benchmark, *flags) == 0
  found = json.loads((tmp_path / "benchmark.json").read_text())["scaling"]
  last = result(capsys.readouterr().out)["scaling"]
  assert last == found["exponents"]
  plot = (tmp_path / "scaling.png").read_bytes()
  assert plot[:4] == b"\x89PNG"
  rows = {}
  for row in found["rows"]:
    assert 0 < row["least"] <= row["value"] <= row["most"]
    key = row["part"], row["axis"], row["implementation"]
    rows.setdefault(key, {})[row["x"]] = row
  for axis, points in TINY.axes.items():
    for method in TINY.methods:
      assert tuple(rows["time", axis, method]) == points
  for kind in ("processes", "devices"):
    shared = rows["devices", kind, f"{kind}, the same batch"]
    assert list(shared) == [1, 2] and shared[1]["over_one"] == 1
  weak = rows["weak", "", "the same rows each"]
  assert [x["bytes_reduced"] > 0 for x in weak.values()] == [False, True][
    : len(weak)
  ]
  program = rows["compile", "time_steps", "lru, linear_scan"]
  assert all(row["instructions"] > 100 for row in program.values())
  fits = {(f["part"], f["axis"], f["implementation"]): f for f in last}
  growth = lambda name: fits["memory", "time_steps", name]["last"]
  for name in ("scan", "fused", "fused, checkpoint around"):
    assert growth(name) == pytest.approx(1, abs=0.05)
  # A root, and what is O(T) of one number an input.
  assert 0.4 < growth("fused, chunks of the root") < 0.75
  kept, again = (
    rows["memory", "time_steps", f"fused{name}"][4096]["value"]
    for name in ("", ", gates again")
  )
  assert again < kept / 2
  sizes = {row["x"] for row in found["rows"] if row["part"] == "recompute"}
  assert sizes == {"2x9x8"}


@pytest.mark.processes
def test_a_process_that_ends_is_named_with_its_last_words():
  with (
    pytest.raises(UserError, match="cell=lstn"),
    training.Workers(1, 1, ["--cell=lstn"]) as workers,
  ):
    workers.seconds(1, 1)
