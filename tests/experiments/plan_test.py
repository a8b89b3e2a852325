"""Tests of the plan of a training run."""

import importlib.util
import json
import subprocess
import sys

import pytest

from experiments import plan, programs
from recurrent.errors import ConfigError, UserError

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="needs libtpu, some 700 MB: make tpu-compile",
)

SMALL = "experiments.memory --smoke"


def run(topology, experiment=SMALL, **options):
  return plan.run(
    plan.Config(topology=topology, experiment=experiment, **options)
  )


@pytest.mark.parametrize(
  "topology",
  ["", "v5e", "v5e:", "v5e:0", "v5e:2x", "b200:8", "h100:-1", "h100:8 "],
)
def test_an_unknown_topology_is_refused(topology):
  with pytest.raises(ConfigError, match="topology"):
    plan.machine(topology)


@pytest.mark.parametrize("name", plan.CHIPS)
def test_every_chip_has_all_its_figures(name):
  found = plan.machine(f"{name}:2x4")
  assert found.chips == 8
  assert all(found.peak._replace(no_bfloat16=True))


def test_arrays_are_summed_in_a_group_and_then_across():
  one, two = plan.machine("h100:8"), plan.machine("h100:16")
  assert one.transfer(1e9, 1) == 0
  inside = 2 * 7 / 8 * 1e9 / 450e9
  assert one.transfer(1e9, 8) == pytest.approx(inside)
  across = 2 * 1 / 2 * 1e9 / 8 / 50e9
  assert two.transfer(1e9, 16) == pytest.approx(inside + across)


@pytest.mark.parametrize(
  ("text", "told"),
  [
    ("experiments.nothing", "no experiment"),
    ("experiments.runner", "no experiment"),
    ("experiments.memory --no_such_flag", "no flag"),
    ("experiments.memory --steps=-1", "--steps"),
  ],
)
def test_a_wrong_experiment_is_refused(text, told):
  with pytest.raises(ConfigError, match=told):
    run("h100:8", text)


@pytest.mark.parametrize(
  "name",
  "language_model classification forecasting translation memory".split(),
)
def test_every_experiment_is_planned(name, capsys):
  text = f"experiments.{name} --smoke"
  found = run("h100:4", text, largest_batch=False)
  assert found["bytes_a_chip"] == pytest.approx(sum(found["parts"].values()))
  assert found["gflop_a_chip"] > 0
  told = capsys.readouterr().out
  assert "ESTIMATE" in told and "all-reduce" in told


def test_the_parts_are_those_of_the_state():
  found = run("h100:4", f"{SMALL} --optimizer=adam", largest_batch=False)
  parts = found["parts"]
  # Two moments and some counters.
  assert parts["optimiser"] == pytest.approx(2 * parts["parameters"], abs=64)


def test_products_grow_with_the_rows():
  few, many = (
    run("h100:4", f"{SMALL} --batch_size={rows}", largest_batch=False)
    for rows in (8, 64)
  )
  ratio = many["gflop_a_chip"] / few["gflop_a_chip"]
  assert ratio == pytest.approx(8, rel=0.01)


def memory(fixed, slope, least=0.0):
  return lambda rows: plan.Memory(max(fixed + slope * rows, least), 1000.0, {})


@pytest.mark.parametrize(
  ("measure", "rows", "most"),
  [
    (memory(100, 1), 64, 900),
    (memory(100, 1), 512, 900),
    (memory(100, 1), 2048, 900),  # does not fit
    (memory(100, 0.01, least=500), 8, 90_000),  # not linear at first
    (memory(999, 1), 64, 0),
    (memory(2000, 1), 64, 0),
  ],
)
def test_about_the_largest_batch_is_found(measure, rows, most):
  for slope in (0.0, 0.5, 2.0):
    found = plan.largest(measure, measure(rows), rows, 8, 16, slope)
    assert found % 8 == 0 and found <= most
    assert found >= 0.9 * most - 8


def test_more_chips_stop_to_pay():
  counts = programs.Counts(narrow=1e12, bytes=1e9)
  spent = plan.Cost(programs.Counts(), counts, 1e9, 1e9)
  table = plan.scaling(plan.machine("h100:8"), spent, 64)
  assert [row["chips"] for row in table] == [1, 2, 4, 8, 16, 32]
  assert table[0]["efficiency"] == 1
  times = [row["ms a step"] for row in table]
  best = plan.where_it_pays(table)
  index = [row["chips"] for row in table].index(best)
  assert all(
    a > 1.5 * b for a, b in zip(times[:index], times[1:], strict=False)
  )


@pytest.mark.parametrize(
  "said",
  [
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in"
    " memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by",
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required"
    " for HLO temporaries (20.50G) exceeds available HBM (15.75G).",
  ],
)
def test_the_error_of_the_compiler_is_read(said):
  used, limit = plan._exceeded(said)
  assert (used, limit) == (20.5 * 2**30, 15.75 * 2**30)


def test_another_error_of_the_compiler_is_told():
  with pytest.raises(UserError, match="Mosaic failed"):
    plan._exceeded("INTERNAL: Mosaic failed\nstack")


@pytest.mark.processes
def test_what_does_not_fit_is_refused_with_exit_code_2():
  done = subprocess.run(
    [
      *(sys.executable, "-m", "experiments.plan", "--topology=t4:2", "--"),
      *("experiments.memory", "--features=40000", "--cell=lstm"),
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2, done.stderr
  assert "GiB a chip, and t4:2 has 11.18 GiB" in done.stderr
  assert "optimiser" in done.stdout and "Traceback" not in done.stderr


@pytest.mark.processes
def test_the_last_line_is_json():
  done = subprocess.run(
    [
      *(sys.executable, "-m", "experiments.plan", "--topology=h100:2"),
      *("--nolargest_batch", "--", "experiments.memory", "--smoke"),
    ],
    capture_output=True,
    text=True,
    check=True,
  )
  assert json.loads(done.stdout.splitlines()[-1])["chips"] == 2


@needs_libtpu
def test_the_train_step_is_compiled_for_tpus():
  found = run("v5e:2x2", SMALL, largest_batch=False)
  assert found["parts"]["program"] > 0
  assert [(c["kind"], c["in_loop"]) for c in found["collectives"]] == [
    ("all-reduce", False)
  ]


@needs_libtpu
def test_a_step_that_does_not_fit_a_tpu_is_refused():
  with pytest.raises(ConfigError, match="GiB a chip, and v5e:2x2 has 15.75"):
    run("v5e:2x2", "experiments.memory --features=12000 --cell=lstm")
