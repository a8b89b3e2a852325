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


@pytest.fixture
def rows(with_compiler):
  """The measurements, with the methods that the rules choose now."""
  auto = lambda row: choose(cells.get(row["name"])(row["features"]), HERE)
  return [{**row, "auto": auto(row).method} for row in MEASURED]


def test_auto_is_at_most_a_tenth_slower_than_the_best_nearly_everywhere(rows):
  assert len(methods.exceptions(rows)) <= 0.03 * len(rows)
  over = [row["ms"][row["auto"]] / min(row["ms"].values()) for row in rows]
  assert statistics.geometric_mean(over) <= 1.01


def test_the_docs_name_all_cases_in_which_it_is_slower(rows):
  # A paragraph may be filled anew.
  words = lambda text: " ".join(text.split())
  docs = (DOCS / "performance.md").read_text()
  assert words(methods.report(rows)) in words(docs)


@pytest.mark.usefixtures("with_compiler")
def test_each_rule_was_measured_against_the_other_methods():
  # A cell or a method that is newer than the measurements need not be in them.
  taken = set()
  for row in MEASURED:
    cell = cells.get(row["name"])(row["features"])
    assert set(row["ms"]) <= set(methods.candidates(cell, HERE))
    taken.add(choose(cell, HERE).name)
  assert taken == {rule.name for rule in choice.TABLES["cpu"].rules}
  found = {(row["name"], row["batch"], row["time"]) for row in MEASURED}
  assert found <= {(c.name, c.batch, c.time) for c in methods.cases()}


@pytest.mark.usefixtures("with_compiler")
def test_a_new_cell_need_not_be_measured_if_cells_of_its_kind_were():
  rule = lambda name: choose(cells.get(name)(8), HERE)
  measured = {rule(row["name"]) for row in MEASURED}
  for name in cells.CELLS:
    assert rule(name) in measured, f"measure {name}: no other cell is like it"


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
