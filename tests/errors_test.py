"""The library's messages name arguments; the flags are the experiments'."""

import ast
import pathlib
import re

import pytest

import recurrent

ROOT = pathlib.Path(recurrent.__file__).parent
# Command lines of other programs.
THEIRS = {"data/store.py": ("--file_format", "--data_dir")}


def texts(path):
  """The strings of a module that are not docstrings."""
  tree = ast.parse(path.read_text())
  docstrings = {
    id(node.value)
    for node in ast.walk(tree)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
  }
  for node in ast.walk(tree):
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
      if id(node) not in docstrings:
        yield node.value


@pytest.mark.parametrize(
  "path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_string_of_the_library_names_a_flag(path):
  theirs = THEIRS.get(str(path.relative_to(ROOT)), ())
  flags = [
    flag
    for text in texts(path)
    for flag in re.findall(r"(?<![\w-])--[a-z]\w*", text)
    if flag not in theirs
  ]
  assert not flags
