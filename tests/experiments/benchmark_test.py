"""Tests of the benchmark: its comparisons, its results, what it refuses."""

import json
import subprocess
import sys

import numpy as np
import pytest

from experiments import benchmark
from experiments.benchmarks import implementations, problems, report
from experiments.benchmarks.comparison import agree, difference
from experiments.benchmarks.implementations import (
  IMPLEMENTATIONS,
  Implementation,
)
from experiments.benchmarks.problems import BACKWARD, FORWARD
from experiments.benchmarks.report import Comparison, Turns
from tests.experiments.scripts import call, refused, result

QUICK = ("--suite=cells", "--shapes=4,8,3,5", "--repeats=2", "--threads=1")
TORCH = Implementation("nowhere", "torch", needs=("no_such_library",))


@pytest.mark.processes
def test_implementations_of_one_shape_end_in_a_file_a_plot_and_targets(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.setitem(IMPLEMENTATIONS["cells"], "torch", TORCH)
  flags = ("--peers=ours,scan,flax,torch", f"--workdir={tmp_path}")
  assert call(benchmark, *QUICK, *flags) == 0
  printed = capsys.readouterr().out
  assert "torch is skipped: no_such_library not installed: pip inst" in printed
  found = json.loads((tmp_path / "benchmark.json").read_text())
  assert set(found) == {
    *("command", "machine", "skipped", "refused", "targets", "rows")
  }
  assert found["machine"]["threads"] == 1 and found["machine"]["flops"] > 1e8
  rows = {(row["work"], row["implementation"]): row for row in found["rows"]}
  assert set(rows) == {
    (work, name)
    for work in problems.WORKS["cells"]
    for name in ("ours", "scan", "flax")
  }
  for row in rows.values():
    assert row["repeats"] == 2 and row["calls"] >= 2
    assert 0 < row["min_ms"] <= row["median_ms"] < 1e3 * row["first_call_s"]
    assert row["us_per_time_step"] == pytest.approx(1e3 * row["median_ms"] / 8)
  assert rows[FORWARD, "ours"]["method"] in ("fused", "cpu_kernel")
  assert rows[FORWARD, "ours"]["ratio"] == 1
  first, *_ = result(printed)["targets"]
  peers = [rows[BACKWARD, name] for name in ("scan", "flax")]
  fastest = min(peers, key=lambda row: row["median_ms"])
  assert first["measured"] == pytest.approx(fastest["ratio"])
  assert first["met"] == (first["measured"] >= 1.3)
  assert (tmp_path / "benchmark.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.processes
def test_an_implementation_with_other_values_is_refused_and_not_timed(
  tmp_path, capsys, monkeypatch
):
  broken = Implementation("tests.experiments.broken_implementation", "jax")
  monkeypatch.setitem(IMPLEMENTATIONS["cells"], "broken", broken)
  absent = Implementation("tests.experiments.no_such_module", "jax")
  monkeypatch.setitem(IMPLEMENTATIONS["cells"], "absent", absent)
  ended = broken._replace(option="end")
  monkeypatch.setitem(IMPLEMENTATIONS["cells"], "ended", ended)
  flags = ("--peers=scan,broken,absent,ended", f"--workdir={tmp_path}")
  assert call(benchmark, *QUICK, *flags) == 1
  assert "was refused on lstm-4x8x3x5" in capsys.readouterr().err
  found = json.loads((tmp_path / "benchmark.json").read_text())
  reasons = found["refused"]["lstm-4x8x3x5"]
  assert "outputs is off by" in reasons["broken"]
  assert "ModuleNotFoundError" in reasons["absent"]
  assert "its process ended" in reasons["ended"]
  assert {row["implementation"] for row in found["rows"]} == {"scan"}
  # Without ours nothing is won or lost.
  assert all(target["met"] is None for target in found["targets"])


@pytest.mark.processes
def test_what_only_some_suites_need_is_not_imported_before_they_run():
  heavy = {"matplotlib", "orbax", "tensorboardX", "tensorflow_datasets"}
  heavy |= {"torch", "keras", "haiku", "equinox"}
  code = (
    "import sys; from experiments import benchmark;"
    f" print({heavy} & set(sys.modules))"
  )
  command = [sys.executable, "-c", code]
  ran = subprocess.run(command, capture_output=True, text=True, check=True)
  assert ran.stdout.strip() == "set()"


@pytest.mark.parametrize(
  ("got", "words"),
  [
    ({"outputs": [1.0, 2.0001]}, ""),
    ({"outputs": [1.0, 2.01]}, "outputs is off"),
    ({"outputs": [1.0, np.nan]}, "outputs is off"),
    ({"outputs": [1.0]}, "shape"),
    ({"gradient of bias": [1.0, 2.01]}, "gradient of bias is off"),
    ({"gradient of bias": [1.0, 2.001]}, ""),
    ({"tokens": [1, 3]}, "tokens"),
    ({}, "gradient of bias"),
  ],
)
def test_values_are_equal_within_their_tolerance_or_named(got, words):
  want = {"outputs": [1.0, 2.0], "gradient of bias": [1.0, 2.0]}
  want |= {"tokens": [1, 2]}
  arrays = lambda tree: {name: np.array(x) for name, x in tree.items()}
  given = arrays({**want, **got}) if got else arrays({"outputs": [1.0, 2.0]})
  assert bool(said := difference(arrays(want), given, (1e-4, 1e-3))) == bool(
    words
  )
  assert words in said


def test_texts_are_compared_up_to_where_they_depart():
  want = {
    "tokens": np.array([[1, 2, 3, 4], [5, 6, 7, 8]]),
    "scores": np.array([[-1.0, -2, -3, -4], [-1, -1, -1, -1]]),
  }
  got = {
    "tokens": np.array([[1, 2, 9, 4], [5, 6, 7, 8]]),
    "scores": np.array([[-1.0, -2, -9, -9], [-1, -1, -1, -1.01]]),
  }
  assert agree(want, got) == 6 / 8
  # What comes after is another text: equal tokens there say nothing.
  np.testing.assert_array_equal(got["tokens"][0], [1, 2, 0, 0])
  assert "scores" in difference(want, got, (1e-4, 1e-3))
  assert not difference(want, got, (5e-2, 2e-1))


def test_only_narrow_weights_need_not_draw_the_same_tokens():
  loose = {
    name
    for suite in IMPLEMENTATIONS.values()
    for name, implementation in suite.items()
    if implementation.agreement < 1
  }
  assert loose == {"ours:bfloat16", "ours:int8"}


def measured(problem, **seconds):
  """Makes rows of a problem from given times of each implementation."""
  turns = {name: Turns([[s] for s in x], 9, 0) for name, x in seconds.items()}
  works = problems.WORKS[problem.suite]
  about = {name: {} for name in seconds}
  found = Comparison(problem, {w: turns for w in works}, {}, {}, about)
  return report.rows(found, peak_flops=1e12)


def test_a_row_has_medians_over_all_repeats_and_ratios_within_them():
  problem = problems.Problem("cells", "lstm", 64, 100, 128, 128)
  # The machine is ten times slower in the last repeat: the ratio stays.
  rows = measured(problem, ours=[1, 1, 10], torch=[2, 2.2, 20])
  row = next(r for r in rows if r["implementation"] == "torch")
  assert row["median_ms"] == 2200 and row["min_ms"] == 2000
  assert row["ratio"] == 2
  # 8 B T H (D + H), as a table of the shape has it.
  assert row["gflops"] == pytest.approx(1.678 / 2.2, rel=1e-3)
  assert row["percent_of_peak"] == pytest.approx(0.1678 / 2.2, rel=1e-3)
  trained = rows[-1]
  assert trained["work"] == problems.STEP
  assert trained["gflops"] == pytest.approx(3 * row["gflops"])


def test_flops_count_layers_and_directions():
  one = problems.Problem("cells", "gru", 2, 3, 5, 7)
  assert one.flops(FORWARD) == 2 * 2 * 3 * 3 * 7 * (5 + 7)
  assert one.name == "gru-2x3x5x7"
  two = problems.Problem("cells", "gru", 2, 3, 5, 7, 2, True)
  above = 2 * 2 * 3 * 3 * 7 * (14 + 7)
  assert two.flops(FORWARD) == 2 * (one.flops(FORWARD) + above)
  assert two.name == "gru-2x3x5x7-2layers-bidirectional"


def test_targets_are_computed_from_the_fastest_peer_of_each_shape():
  problem = lambda b: problems.Problem("cells", "lstm", b, 10, 8, 8)
  rows = [
    *measured(problem(1), ours=[1.0], scan=[4.0], flax=[2.0], torch=[1.6]),
    *measured(problem(9), ours=[1.0], scan=[0.5], flax=[3.0], torch=[0.9]),
  ]
  found = {t.name: t for t in report.targets(rows)}
  jax, torch = (
    "forward+backward, over the best JAX peer",
    ("forward+backward, over torch"),
  )
  mean, least = found[f"{jax}, mean"], found[f"{jax}, least"]
  assert mean.measured == pytest.approx((2.0 * 0.5) ** 0.5)
  assert mean.met is False
  assert least.measured == 0.5 and least.where == "lstm-9x10x8x8"
  assert least.met is False
  assert found[f"{torch}, mean"].measured == pytest.approx(1.2)
  assert found[f"{torch}, least"].met is True
  assert found[f"{torch}, batch 1, mean"].measured == pytest.approx(1.6)
  others = [t for n, t in found.items() if "linear" in n or "generation" in n]
  assert len(others) == 3 and all(t.met is None for t in others)
  shown = report.show_targets(found.values())
  assert "| 1.3 | 1.00 (2 shapes) | no |" in shown
  assert "| not measured |" in shown
  assert "lstm-9x10x8x8 | forward | 0.50 | 0.90 | SLOWER" in (
    report.show_ratios(rows)
  )


def test_shapes_are_chosen_by_name_or_by_size():
  default = problems.choose("default", ["cells"])
  everything = problems.choose("all", ["cells"])
  assert default and set(default) < set(everything)
  assert {p.large for p in default} == {False}
  assert len({p.name for p in problems.PROBLEMS}) == len(problems.PROBLEMS)
  for problem in everything:
    assert problems.choose(problem.name, ["cells"]) == [problem]
  lstm, gru = problems.choose("1,2,3,4; gru:5,6,7,8", ["cells"])
  assert (lstm.kind, lstm.features, gru.kind, gru.batch) == (
    "lstm",
    4,
    "gru",
    5,
  )


def test_every_suite_has_us_first_and_known_works():
  assert list(IMPLEMENTATIONS) == list(problems.WORKS)
  chosen = implementations.choose("", list(IMPLEMENTATIONS))
  assert all(names[0] == "ours" for names in chosen.values())


def test_what_runs_on_one_kind_of_device_takes_part_if_it_is_named():
  assert "ours:cudnn" not in implementations.choose("", ["cells"])["cells"]
  named = implementations.choose("ours,ours:gpu_kernel", ["cells", "linear"])
  assert all(names == ["ours", "ours:gpu_kernel"] for names in named.values())


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["--suite=cels"], "--suite=cels is unknown"),
    (["--peers=ours,theano"], "'theano' is unknown"),
    (["--suite=decode", "--peers=flax"], "none of the suite decode"),
    (["--shapes=1,2,3"], "'1,2,3' is unknown"),
    (["--shapes=1,2,0,4"], "'1,2,0,4' is unknown"),
    (["--shapes=elman:1,2,3,4"], "unknown"),
    (["--suite=cells,linear", "--shapes=1,2,3,4"], "none of the suite linear"),
    (["--dtype=float64"], "--dtype=float64"),
    (["--repeats=0"], "--repeats=0 is out of range"),
    (["--rounds=3"], "use --repeats"),
    (["--threads=-1"], "--threads=-1 is out of range"),
  ],
)
def test_a_bad_flag_is_named_and_nothing_runs(tmp_path, capsys, flags, words):
  workdir = f"--workdir={tmp_path / 'run'}"
  assert words in refused(capsys, 2, benchmark, workdir, *flags)
  assert not (tmp_path / "run").exists()
