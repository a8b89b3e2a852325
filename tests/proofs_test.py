"""Checks that the tests in docs/proofs.md and the lines of mutants exist."""

import pathlib
import re

from tests.mutation import MUTANTS

TESTS = pathlib.Path(__file__).parent


def test_every_test_that_the_proofs_name_is_there():
  text = (TESTS.parent / "docs" / "proofs.md").read_text()
  named = re.findall(r"`(?:([\w/]+\.py)::)?(test_\w+)`", text)
  assert len(named) > 20
  for file, test in named:
    source = (TESTS / (file or "cells/laws_test.py")).read_text()
    assert f"def {test}(" in source, test
  for file in re.findall(r"`([\w/]+_test\.py)", text):
    assert (TESTS / file).exists(), file


def test_every_mutant_changes_a_line_that_is_there():
  for file, old, new in MUTANTS:
    assert old != new
    assert old in (TESTS.parent / "recurrent" / file).read_text(), (file, old)
