"""Runs experiments with JAX's default promotion and one shared data cache."""

import pytest


@pytest.fixture(autouse=True)
def _as_users_have_it(standard_promotion, tmp_path_factory, monkeypatch):
  root = tmp_path_factory.getbasetemp().parent
  monkeypatch.setenv("RECURRENT_CACHE", str(root / "cache"))
