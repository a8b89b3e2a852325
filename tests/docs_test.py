"""The Python in README.md and docs/ runs as it stands there."""

import pathlib
import re
import sys
import types

import jax
import numpy as np
import pytest

import recurrent
from experiments import evaluate
from recurrent import cells, executors

ROOT = pathlib.Path(__file__).parents[1]
BLOCKS = {
  f"{path.relative_to(ROOT)}:{number}": block
  for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
  for number, block in enumerate(
    re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.DOTALL | re.M)
  )
}


@pytest.fixture(autouse=True)
def _as_users_have_it(standard_promotion):
  pass


@pytest.fixture
def as_module(monkeypatch):
  """Runs a block as the module of a name."""

  def run(block, name="docs_example"):
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(block, name, "exec"), module.__dict__)
    return module

  return run


@pytest.mark.parametrize("place", BLOCKS)
def test_every_block_runs(place, as_module, capsys):
  block = BLOCKS[place]
  for library in ("torch", "keras", "haiku"):
    if re.search(rf"import.*\b{library}\b", block):
      pytest.importorskip(library)
  as_module(block)


def test_the_cell_of_the_guide_runs_by_every_method_it_is_promised(as_module):
  cell = as_module(BLOCKS["docs/add_a_cell.md:0"]).UGRNN(4)
  assert isinstance(cell, cells.GatedCell)
  params = cell.init(jax.random.key(0), 3)
  inputs = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
  want = recurrent.unroll(cell, params, None, inputs, method="scan")
  for method in ("fused", "newton"):
    got = recurrent.unroll(cell, params, None, inputs, method=method)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want
    )


@pytest.mark.parametrize("name", ["gru", "lru", "mgu"])
def test_the_executor_of_the_guide_is_one_row(name, as_module, monkeypatch):
  module = as_module(BLOCKS["docs/add_an_executor.md:0"])
  row = executors.Executor(module.unrolled, lambda cell: "")
  monkeypatch.setitem(executors.EXECUTORS, "unrolled", row)
  cell = cells.CELLS[name](4)
  params = cell.init(jax.random.key(0), 3)
  random = np.random.default_rng(0)
  inputs = random.normal(size=(2, 5, 3)).astype(np.float32)
  flags = {"mask": random.random((2, 5)) < 0.7}
  flags["resets"] = random.random((2, 5)) < 0.3
  run = lambda method: recurrent.unroll(
    cell, params, None, inputs, **flags, reverse=True, method=method
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    run("unrolled"),
    run("scan"),
  )
  said = recurrent.explain(cell, "unrolled")
  assert "runs by 'unrolled': asked for" in said
  assert "\n  unrolled: possible" in said


def test_the_experiment_of_the_guide_trains(as_module, tmp_path):
  parity = as_module(
    BLOCKS["docs/add_an_experiment.md:0"], "experiments.parity"
  )
  config = parity.Config(
    workdir=str(tmp_path), steps=4, batch_size=8, eval_every=2
  )
  trained = parity.run(config)
  found = evaluate.run(evaluate.Config(workdir=str(tmp_path), split="valid"))
  assert found["valid_nats"] == pytest.approx(trained["valid_nats"], rel=1e-5)


def test_links_lead_to_files():
  for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
    for link in re.findall(r"\]\(([^)#]+)", path.read_text()):
      if "://" not in link:
        assert (path.parent / link).exists(), f"{path.name}: {link}"
