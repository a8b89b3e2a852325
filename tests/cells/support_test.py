import pathlib

import jax
import numpy as np
import pytest

from recurrent import explain, unroll
from recurrent.cells import CELLS
from recurrent.executors import EXECUTORS, Setting
from tests.cells.cases import inputs_for
from tests.cells.support import table

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def test_the_table_in_the_docs_is_what_the_executors_say():
  assert (DOCS / "cells.md").read_text() == table()


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_runs_by_what_the_table_says_and_by_nothing_else(name):
  cell = CELLS[name](8)
  params = cell.init(jax.random.key(0), 3)
  inputs = inputs_for(cell, np.random.default_rng(0), 2, 3, 3)
  run = lambda method: jax.eval_shape(
    lambda: unroll(cell, params, None, inputs, method=method)
  )
  for method, executor in EXECUTORS.items():
    reason = executor.why_not(cell) or executor.why_not_here(Setting.here())
    if reason:
      with pytest.raises(ValueError, match=f"{method}.*{type(cell).__name__}"):
        run(method)
      assert f"{method}: no, it {reason}" in explain(cell)
    else:
      run(method)
      assert f"{method}: possible" in explain(cell)


def test_explain_names_the_choice_its_rule_and_its_reason():
  assert explain(CELLS["slstm"](8)).splitlines()[0] == (
    f"{CELLS['slstm'](8)} runs by"
    " 'fused': weight gradients are bulk products, outside the reverse loop"
    " (rule 'gated cells' for cpu, measured on one device: docs/methods.json)"
  )
  assert "'scan': asked for" in explain(CELLS["lstm"](8), method="scan")
  with pytest.raises(ValueError, match="method"):
    explain(CELLS["lstm"](8), method="guess")
