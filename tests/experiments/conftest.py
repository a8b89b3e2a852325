"""Experiments run as users have them: dtypes promoted, one cache of data."""

import contextlib

import pytest

from recurrent import cache


@pytest.fixture(autouse=True)
def _as_users_have_it(standard_promotion, tmp_path_factory, monkeypatch):
  root = tmp_path_factory.getbasetemp().parent / "cache"
  # The loops in C++ need not be compiled for each run of the tests.
  with contextlib.suppress(OSError):
    native = cache.private_folder("native")
    root.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
      (root / "native").symlink_to(native)
  monkeypatch.setenv("RECURRENT_CACHE", str(root))
