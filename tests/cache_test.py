import os
import pathlib
import stat

import pytest

from recurrent import cache


def test_the_cache_is_where_the_environment_says(monkeypatch):
  monkeypatch.setenv("RECURRENT_CACHE", "/one")
  monkeypatch.setenv("XDG_CACHE_HOME", "/two")
  assert cache.cache_dir() == pathlib.Path("/one")
  monkeypatch.delenv("RECURRENT_CACHE")
  assert cache.cache_dir() == pathlib.Path("/two/recurrent")
  monkeypatch.delenv("XDG_CACHE_HOME")
  assert cache.cache_dir() == pathlib.Path.home() / ".cache/recurrent"


def test_a_folder_for_code_is_this_users_alone(monkeypatch, tmp_path):
  monkeypatch.setenv("RECURRENT_CACHE", str(tmp_path / "cache"))
  folder = cache.private_folder("code")
  assert stat.S_IMODE(folder.stat().st_mode) == 0o700
  assert cache.private_folder("code") == folder
  folder.chmod(0o702)
  with pytest.raises(PermissionError, match="others may write"):
    cache.private_folder("code")


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_a_folder_of_another_user_is_refused(monkeypatch, tmp_path):
  monkeypatch.setenv("RECURRENT_CACHE", str(tmp_path))
  os.chown(cache.private_folder("code"), 12345, -1)
  with pytest.raises(PermissionError, match="another user"):
    cache.private_folder("code")
