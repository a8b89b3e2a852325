"""Runs experiments with JAX's default promotion and one shared data cache."""

import contextlib

import pytest

from recurrent import cache


@pytest.fixture(autouse=True)
def _as_users_have_it(standard_promotion, tmp_path_factory, monkeypatch):
  root = tmp_path_factory.getbasetemp().parent / "cache"
  # The loops in C++ need not be compiled for each run of the tests.
  with contextlib.suppress(OSError):
    library = cache.private_folder("cpu_kernel")
    root.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
      (root / "cpu_kernel").symlink_to(library)
  monkeypatch.setenv("RECURRENT_CACHE", str(root))
