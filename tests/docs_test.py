"""The Python in README.md and docs/ runs as it stands there."""

import configparser
import importlib.util
import inspect
import pathlib
import re
import sys
import types

import jax
import numpy as np
import pytest
from flax import nnx

import recurrent
from experiments import evaluate
from recurrent import cells, executors, nn

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = {
  f"{path.relative_to(ROOT)}:{number}": block
  for path in PAGES
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
  if "experiments import speech_recognition" in block:
    pytest.importorskip("jiwer")
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


def _parameters(*functions):
  names = set().union(*(inspect.signature(f).parameters for f in functions))
  return names - {"self", "args", "kwargs", "inputs", "name"}


# torch's signatures are (*args, **kwargs).
TORCH = {
  *("input_size", "hidden_size", "num_layers", "bias", "batch_first"),
  *("dropout", "bidirectional", "proj_size", "nonlinearity", "device", "dtype"),
  *("h_0", "c_0", "h_n", "c_n", "PackedSequence", "enforce_sorted"),
}


def _flax():
  layers = [nnx.RNN, nnx.Bidirectional]
  made = [
    *(nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell),
    *layers,
  ]
  return _parameters(*made, *(layer.__call__ for layer in layers))


def _keras():
  layers = pytest.importorskip("keras").layers
  kinds = layers.SimpleRNN, layers.LSTM, layers.GRU
  return _parameters(*kinds, *(kind.call for kind in kinds)) - {"sequences"}


def _haiku():
  hk = pytest.importorskip("haiku")
  cores = hk.VanillaRNN, hk.LSTM, hk.GRU, hk.ResetCore, hk.DeepRNN
  return _parameters(*cores, hk.dynamic_unroll)


@pytest.mark.parametrize(
  "arguments",
  [lambda: TORCH, _flax, _keras, _haiku],
  ids=["torch", "Flax", "Keras", "Haiku"],
)
def test_every_argument_of_another_library_has_a_counterpart_or_a_word(
  arguments,
):
  page = (ROOT / "docs" / "coming_from.md").read_text()
  first_columns = re.findall(r"^\| (.*?) \|", page, re.MULTILINE)
  assert arguments() - set(re.findall(r"\w+", " ".join(first_columns))) == set()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_a_page_names_in_the_library_exists(path):
  rooms = {"cells": cells, "nn": nn, "recurrent": recurrent}
  # A path of a file, such as `cells/lstm.py`, has no dot after its first word.
  found = re.findall(
    r"(?<![\w./])(cells|nn|recurrent)\.(?!md\b)(\w+)", path.read_text()
  )
  lost = {
    f"{room}.{name}"
    for room, name in found
    if not hasattr(rooms[room], name)
    and not importlib.util.find_spec(f"{rooms[room].__name__}.{name}")
  }
  assert not lost


def test_the_levels_drawn_are_those_that_the_linter_checks():
  setup = configparser.ConfigParser()
  setup.read(ROOT / "setup.cfg")
  contract = setup["importlinter:contract:levels"]["layers"]
  checked = [
    # A name in parentheses may be missing.
    {name for name in line.split(" | ") if name[0] != "("}
    for line in contract.split("\n")
    if line
  ]
  page = (ROOT / "docs" / "architecture.md").read_text()
  tree = re.findall(r"^```\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[0]
  drawn = [
    set(re.findall(r"\b(\w+)(?:/|\.py)(?=\s|$)", line))
    for line in tree.splitlines()
  ]
  assert drawn == [{"experiments"}, *checked]


def test_links_lead_to_files():
  for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
    for link in re.findall(r"\]\(([^)#]+)", path.read_text()):
      if "://" not in link:
        assert (path.parent / link).exists(), f"{path.name}: {link}"
