"""Compares the rules of "auto" with the times in docs/methods.json."""

import json
import pathlib
import statistics

import jax.numpy as jnp
import pytest

from experiments.benchmarks import methods
from recurrent import cells
from recurrent.executors import EXECUTORS, Setting, choice, choose
from recurrent.kernels import cpu

DOCS = pathlib.Path(__file__).parents[2] / "docs"
FLOAT32 = jnp.dtype("float32")
HERE = Setting(FLOAT32, FLOAT32, "cpu", 1)
MEASURED = json.loads((DOCS / "methods.json").read_text())["methods"]


@pytest.fixture
def with_compiler(monkeypatch):
  """Pretends that a C++ compiler is there, as on the measured machine."""
  monkeypatch.setattr(cpu, "unavailable", lambda: "")


@pytest.mark.parametrize(
  "row",
  MEASURED,
  ids=lambda r: f"{r['name']}-{r['batch']}x{r['time']}-{r['work']}",
)
@pytest.mark.usefixtures("with_compiler")
def test_auto_is_nowhere_far_from_the_best_method(row):
  cell = cells.get(row["name"])(row["features"])
  chosen = choose(cell, HERE).method
  # The worst is an mLSTM of 10 time steps, by half a millisecond.
  assert row["ms"][chosen] <= 1.6 * min(row["ms"].values())


@pytest.mark.usefixtures("with_compiler")
def test_auto_is_at_most_a_tenth_slower_than_the_best_nearly_everywhere():
  over = []
  for row in MEASURED:
    cell = cells.get(row["name"])(row["features"])
    chosen = choose(cell, HERE).method
    over.append(row["ms"][chosen] / min(row["ms"].values()))
  assert sum(x <= 1.1 for x in over) >= 0.95 * len(over)
  assert statistics.geometric_mean(over) <= 1.02


@pytest.mark.usefixtures("with_compiler")
def test_a_new_cell_need_not_be_measured_if_cells_of_its_kind_were():
  rule = lambda name: choose(cells.get(name)(8), HERE)
  measured = {rule(row["name"]) for row in MEASURED}
  for name in cells.CELLS:
    assert rule(name) in measured, f"measure {name}: no other cell is like it"


@pytest.mark.usefixtures("with_compiler")
def test_what_was_measured_was_measured_by_every_method():
  found = {(row["name"], row["batch"], row["time"]) for row in MEASURED}
  names = {name for name, _, _ in found}
  assert found == {
    (c.name, c.batch, c.time) for c in methods.cases() if c.name in names
  }
  for row in MEASURED:
    cell = cells.get(row["name"])(row["features"])
    able = {
      name
      for name, executor in EXECUTORS.items()
      if not executor.why_not(cell) and not executor.why_not_here(HERE)
    }
    assert set(row["ms"]) == able - set(methods.LEFT_OUT)


@pytest.mark.parametrize("platform", choice.TABLES)
@pytest.mark.usefixtures("with_compiler")
def test_each_row_is_somebodys_and_takes_a_method_that_can_run(platform):
  setting = Setting(FLOAT32, FLOAT32, platform, 1)
  taken = set()
  for build in cells.CELLS.values():
    cell = build(8)
    rule = choose(cell, setting)
    executor = EXECUTORS[rule.method]
    assert not executor.why_not(cell) and not executor.why_not_here(setting)
    taken.add(rule.name)
  assert taken == {rule.name for rule in choice.TABLES[platform].rules}


def test_an_unknown_kind_of_device_is_taken_for_a_gpu():
  setting = Setting(FLOAT32, FLOAT32, "neuron", 1)
  assert choose(cells.LSTM(4), setting) is choice.GATED
