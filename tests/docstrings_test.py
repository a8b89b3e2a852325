"""The examples in docstrings run, and print what they say."""

import doctest
import importlib
import pathlib

import pytest

import recurrent

ROOT = pathlib.Path(recurrent.__file__).parent
SHOWN = [
  path for path in sorted(ROOT.rglob("*.py")) if ">>>" in path.read_text()
]


@pytest.mark.parametrize(
  "path", SHOWN, ids=lambda path: str(path.relative_to(ROOT))
)
def test_the_examples_of_a_module_run(standard_promotion, path):
  name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
  module = importlib.import_module(name.removesuffix(".__init__"))
  failed, tried = doctest.testmod(module)
  assert tried and not failed
