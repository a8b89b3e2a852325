"""Docstrings of packages: what is a pair, and which split it is in."""

import json
import os

import pytest

from recurrent.data import docstrings
from recurrent.errors import DataError

BODY = "The body has ten words or more, {} and {} among them."


def source(*names):
  """A module that cannot be imported, with one function for each name."""
  functions = [
    f'def {name}():\n  """Computes the {name}.\n\n  {BODY.format(name, name)}\n'
    '  """\n'
    for name in names
  ]
  return "raise SystemExit\n" + "\n".join(functions)


@pytest.fixture
def packages(tmp_path, monkeypatch):
  monkeypatch.setenv("RECURRENT_CACHE", str(tmp_path / "cache"))
  folder = tmp_path / "site-packages"
  for number in range(60):
    inside = folder / f"package{number}" / "deeper"
    inside.mkdir(parents=True)
    (inside / "module.py").write_text(source(f"n{number}", "common"))
    (inside / "tests").mkdir()
    (inside / "tests" / "module.py").write_text(source("tested"))
  (folder / "one_module.py").write_text(source("single"))
  (folder / "package1-2.0.dist-info").mkdir()
  (folder / "package1-2.0.dist-info" / "a.py").write_text(source("info"))
  return folder


def load(folder):
  return docstrings.load_docstrings([folder])


def test_packages_are_divided_and_nothing_is_in_two_splits(packages):
  found = load(packages)
  sets = [set(pairs.sources) for pairs in found.values()]
  assert not sets[0] & sets[1] and not sets[0] & sets[2]
  assert not sets[1] & sets[2]
  bodies = set.union(*sets)
  # Each package has its own, all of them one, and two folders are left out.
  assert len(bodies) == 62 and BODY.format("common", "common") in sets[0]
  assert not any("tested" in body or "info" in body for body in bodies)
  for sources, targets in found.values():
    for body, summary in zip(sources, targets, strict=True):
      assert summary.split()[-1].rstrip(".") in body


def test_a_package_stays_in_its_split_whatever_else_is_installed(packages):
  before = load(packages)
  (packages / "zzz").mkdir()
  (packages / "zzz" / "a.py").write_text(source("late"))
  after = load(packages)
  for split, pairs in before.items():
    assert set(pairs.sources) <= set(after[split].sources)
  assert sum(len(x.sources) for x in after.values()) == 63


def test_a_long_run_of_characters_of_train_keeps_a_body_out_of_test(packages):
  before = load(packages)
  long = " ".join(f"word{i}" for i in range(40))
  for split in ("train", "test"):
    bodies = before[split].sources
    body = next(body for body in bodies if "more, n" in body)
    number = body.split("more, n")[1].split()[0]
    code = f'"""Has a long body.\n\n{split} {number} {long}\n"""'
    (packages / f"package{number}" / "long.py").write_text(code)
  after = load(packages)
  assert sum(long in x for x in after["train"].sources) == 1
  assert after["test"] == before["test"]


def test_the_result_is_cached_until_a_file_changes(packages, tmp_path):
  found = load(packages)
  cache = tmp_path / "cache" / "docstrings.json"
  content = json.loads(cache.read_text())
  content["pairs"]["test"] = [["cached"], ["cached"]]
  cache.write_text(json.dumps(content))
  assert load(packages)["test"].sources == ["cached"]
  os.utime(packages / "one_module.py", ns=(1, 1))
  assert load(packages) == found
  cache.write_text("damaged")
  assert load(packages) == found


@pytest.mark.parametrize(
  ("code", "count"),
  [
    (f'"""A summary line here.\n\n{BODY}\n"""', 1),
    (f'class A:\n  """A summary line here.\n\n  {BODY}\n  """', 1),
    (
      "if True:\n  try:\n    pass\n  except ValueError:\n    async def f():\n"
      f'      """A summary line here.\n\n      {BODY}\n      """',
      1,
    ),
    (f'"""A summary line here.\n{BODY}\n"""', 0),
    (f'"""Two words.\n\n{BODY}\n"""', 0),
    ('"""A summary line here.\n\nToo short a body.\n"""', 0),
    (f'x = """A summary line here.\n\n{BODY}\n"""', 0),
    ('def broken(:\n  """A', 0),
    ('"""\\d invalid escape here.\n\n' + BODY + '\n"""', 1),
  ],
  ids=str,
)
def test_what_is_a_pair(code, count):
  assert len(list(docstrings.parse(code.encode()))) == count


def test_too_few_packages_are_refused(tmp_path, monkeypatch):
  monkeypatch.setenv("RECURRENT_CACHE", str(tmp_path / "cache"))
  with pytest.raises(DataError, match="0 installed packages"):
    load(tmp_path / "nothing")
