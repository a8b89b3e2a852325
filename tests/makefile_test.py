"""Tests how the Makefile finds a Python for the environment."""

import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
MAKE = shutil.which("make")

pytestmark = [
  pytest.mark.processes,
  pytest.mark.skipif(MAKE is None, reason="no make"),
]

SHIM = "echo 'pyenv: command not found' >&2; exit 127"


def python(minor: int, ensurepip: bool = True) -> str:
  """A command that says it is Python 3.`minor`."""
  hide = "" if ensurepip else "sys.modules['ensurepip'] = None; "
  pretend = f"import sys; {hide}sys.version_info = (3, {minor}, 0)"
  return f'exec {sys.executable} -c "{pretend}; exec(sys.argv[1])" "$2"'


def make(folder, commands, *options):
  """The install rule where only `commands` are on the path."""
  path = folder / "path"
  path.mkdir()
  for name, code in commands.items():
    (path / name).write_text(f"#!/bin/sh\n{code}\n")
    (path / name).chmod(0o755)
  installed = folder / "venv" / "installed"
  return subprocess.run(
    [MAKE, f"VENV={installed.parent}", *options, str(installed)],
    cwd=ROOT,
    env={"PATH": str(path)},
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.parametrize(
  "commands, taken, lock",
  [
    ({"python3": python(12), "python3.14": python(14)}, "python3", "py312"),
    ({"python3": python(10), "python3.13": python(13)}, "python3.13", "py313"),
    ({"python3.14": SHIM, "python3.11": python(11)}, "python3.11", "py311"),
    (
      {"python3": python(11, ensurepip=False), "python3.14": python(14)},
      "python3.14",
      "py314",
    ),
  ],
  ids=["python3 first", "python3 too old", "a shim", "no ensurepip"],
)
def test_the_first_python_that_runs_and_has_a_lock_file_is_taken(
  tmp_path, commands, taken, lock
):
  done = make(tmp_path, commands, "--dry-run")
  assert done.returncode == 0, done.stderr
  assert f"\n{taken} -m venv" in done.stdout
  assert f"--require-hashes -r requirements/{lock}.txt" in done.stdout


@pytest.mark.parametrize(
  "commands, options, cause",
  [
    ({}, [], "no Python with ensurepip"),
    ({"python3": python(10), "python3.13": SHIM}, [], "no Python with"),
    ({"old": python(10)}, ["PYTHON=old"], "old does not run or is not one of"),
    ({}, ["PYTHON=absent"], "absent does not run or is not one of"),
  ],
  ids=["none", "none that fits", "named, too old", "named, absent"],
)
def test_without_a_python_that_fits_the_versions_are_named(
  tmp_path, commands, options, cause
):
  done = make(tmp_path, commands, *options)
  assert done.returncode == 2
  assert cause in done.stderr
  assert "3.14 3.13 3.12 3.11" in done.stderr
  assert "make PYTHON=" in done.stderr
  assert not (tmp_path / "venv").exists()


def test_each_python_has_a_lock_file_with_a_hash_for_every_package():
  makefile = (ROOT / "Makefile").read_text().splitlines()
  (line,) = (line for line in makefile if line.startswith("PYTHONS :="))
  versions = line.split()[2:]
  locks = {f"py{v.replace('.', '')}.txt" for v in versions}
  assert locks == {path.name for path in (ROOT / "requirements").iterdir()}
  setup = (ROOT / "setup.cfg").read_text()
  for version in versions:
    assert f"Programming Language :: Python :: {version}\n" in setup
  for lock in locks:
    text = (ROOT / "requirements" / lock).read_text()
    # No index, address or option: only packages and their hashes.
    for package in text.replace("\\\n", "").splitlines():
      name, *hashes = package.split()
      assert "==" in name
      assert hashes
      assert all(part.startswith("--hash=sha256:") for part in hashes)
