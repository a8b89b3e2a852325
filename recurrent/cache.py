"""The cache folder of this library, for data sets and compiled C++ code."""

import os
import pathlib
import stat


def cache_dir() -> pathlib.Path:
  """Returns `$RECURRENT_CACHE`, else `recurrent` in the user's cache folder."""
  if chosen := os.environ.get("RECURRENT_CACHE"):
    return pathlib.Path(chosen).expanduser()
  caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(caches, "recurrent").expanduser()


def private_folder(name: str) -> pathlib.Path:
  """Returns a folder of the cache, for code, that no other user can change.

  Args:
    name: name of the folder. It is created, with mode 0700, if it does not
      exist.

  Returns:
    The path of the folder. Its file system may be read-only.

  Raises:
    OSError: if the folder cannot be created or read, or if another user owns it
      (other than root) or can write to it, since the code in it could then come
      from that user.
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
