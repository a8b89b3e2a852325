"""Where this library keeps what it makes once: data sets, compiled loops."""

import os
import pathlib
import stat


def cache_dir() -> pathlib.Path:
  """`$RECURRENT_CACHE`, else `recurrent` in the user's cache folder."""
  if chosen := os.environ.get("RECURRENT_CACHE"):
    return pathlib.Path(chosen).expanduser()
  caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(caches, "recurrent").expanduser()


def private_folder(name: str) -> pathlib.Path:
  """A folder of the cache for code: only this user may write there.

  Args:
    name: of the folder; it is made, with mode 0700, if it is not there.

  Returns:
    The folder. It may be on a file system that is read-only.

  Raises:
    OSError: if it cannot be made or read, or if others can write there; what
      it holds could be anybody's.
  """
  folder = cache_dir() / name
  if not folder.exists():
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
  if not hasattr(os, "getuid"):
    return folder
  status = folder.stat()
  if status.st_uid not in (os.getuid(), 0):
    raise PermissionError(f"{folder} belongs to another user")
  if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
    raise PermissionError(f"others may write to {folder}: chmod 700 it")
  return folder
