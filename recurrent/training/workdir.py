"""The directory of a run: its lock and its configuration."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from recurrent import files
from recurrent.errors import ConfigError, WorkdirError
from recurrent.training.object_store import ObjectStore, is_url

_NO_MORE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_MESSAGE = 4096  # bytes of an error message that is sent to all processes


class Workdir:
  """The directory of a run, locked until `close` or the end of the process.

  Args:
    path: path of the directory; it is created if it is missing. Or the URL of
      a folder in an object store (see `object_store`): `path` is then a local
      copy of its small files, which `publish` sends back.

  Raises:
    WorkdirError: if it cannot be written to, or another running process has
      locked it.
  """

  def __init__(self, path: str | os.PathLike):
    self._store = ObjectStore(os.fspath(path)) if is_url(path) else None
    self.name = os.fspath(path)
    self.path = self._store.local if self._store else Path(path).absolute()
    self.figures = self.path / "figures"
    self.checkpoints = (
      self._store.checkpoints if self._store else self.path / "checkpoints"
    )
    self._lock: IO[str] | None = None
    failure = None
    if jax.process_index() == 0:
      try:
        self._store.acquire() if self._store else self._open()
      except WorkdirError as error:
        failure = error
    _raise_on_all(failure)
    if self._store:
      self._store.pull()

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    # An error of the `with` block is the cause: it is the one to be raised.
    with contextlib.suppress(*[WorkdirError] * (kind is not None)):
      self.publish()
    self.close()

  def publish(self) -> None:
    """Sends the files that have changed to the object store, if it is one.

    Raises:
      WorkdirError: if it cannot be reached, or another run has the workdir.
    """
    if self._store and jax.process_index() == 0:
      self._store.push()

  def close(self) -> None:
    """Releases the lock."""
    if self._store is not None:
      self._store.close()
    if self._lock is not None:
      self._lock.close()
      self._lock = None

  def config(self) -> dict[str, Any] | None:
    """The contents of `config.json`, or None before the first run."""
    return read_config(self.path)

  def claim(self, config: dict[str, Any], about: dict[str, Any]) -> None:
    """Writes `config.json`, or checks that the one there has equal values.

    Args:
      config: JSON values that determine the results of the run.
      about: further JSON values to record: versions, device, command line.

    Raises:
      ConfigError: if the directory holds a run of another configuration, or
        the processes have different ones.
    """
    _refuse_differences(config)
    old = self.config()
    if old is not None:
      lines = difference(old["config"], config)
      if lines:
        raise ConfigError(
          f"{self.name} holds a run of another configuration:\n"
          + "\n".join(f"  {line}" for line in lines),
          "use the values it was made with, or another `workdir`",
        )
    elif jax.process_index() == 0:
      text = {"config": config, **about}
      self.write("config.json", json.dumps(text, indent=2) + "\n")

  def write(self, name: str, text: str) -> None:
    """Writes a small text file atomically."""
    if jax.process_index() == 0:
      files.write_text(self.path / name, text)
      self.publish()

  def remove(self, name: str) -> None:
    """Removes a small file, if it is there."""
    if jax.process_index() == 0:
      (self.path / name).unlink(missing_ok=True)

  def _open(self):
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      # The lock ends with its process, even a killed one: it is never stale.
      self._lock = (self.path / ".lock").open("a+")
      fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      self._lock.seek(0)
      holder = self._lock.read()
      self.close()
      raise WorkdirError(
        f"{self.path} is in use by the run with pid {holder}",
        "wait for it, stop it, or use another `workdir`",
      ) from error
    except OSError as error:
      raise WorkdirError(
        f"cannot write to `workdir={self.path}`: {error.strerror}",
        "choose a directory that you may write to",
      ) from error
    self._lock.truncate(0)
    self._lock.write(str(os.getpid()))
    self._lock.flush()


@contextlib.contextmanager
def full_disks(path: str | os.PathLike) -> Iterator[None]:
  """Turns an OSError of a full or failing disk into a `WorkdirError`.

  Args:
    path: path of the workdir, for the message.
  """
  try:
    yield
  except OSError as error:
    if error.errno not in _NO_MORE:
      raise
    raise WorkdirError(
      f"cannot write to {error.filename or path}: {error.strerror}",
      "free some space or mend the disk, then run the same command again;"
      " what was saved before is kept",
    ) from error


def _refuse_differences(config: dict[str, Any]) -> None:
  """Raises ConfigError on all processes unless all have one configuration."""
  if jax.process_count() == 1:
    return
  own = np.frombuffer(bytes.fromhex(fingerprint(config)), np.uint8)
  digests = multihost_utils.process_allgather(own)
  others = [n for n, d in enumerate(digests) if (d != digests[0]).any()]
  if others:
    raise ConfigError(
      f"the flags or data of process {others[0]} are not those of process 0",
      "give all processes the same flags, files and version of the code",
    )


def _raise_on_all(failure: WorkdirError | None) -> None:
  """Raises an error of process 0 on every process."""
  if jax.process_count() > 1:
    said = f"{failure.cause}\0{failure.remedy}" if failure else ""
    encoded = np.frombuffer(said.encode()[:_MESSAGE].ljust(_MESSAGE), np.uint8)
    heard = bytes(multihost_utils.broadcast_one_to_all(encoded)).decode(
      errors="replace"
    )
    if heard.strip():
      failure = WorkdirError(*heard.strip().split("\0", 1))
  if failure:
    raise failure


def read_config(path: str | os.PathLike) -> dict[str, Any] | None:
  """The contents of a workdir's `config.json`, or None if it has none.

  Raises:
    WorkdirError: if the file is there but is not a valid configuration.
  """
  file = Path(path) / "config.json"
  try:
    found = json.loads(file.read_text())
    found["config"]  # noqa: B018 - must be there
    return found
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise WorkdirError(
      f"cannot read {file}: {error}", "restore it, or use another `workdir`"
    ) from error


def fingerprint(config: dict[str, Any]) -> str:
  """SHA-256 of a configuration, in hex."""
  text = json.dumps(config, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def difference(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
  """One line of text for each value in which two configurations differ."""
  absent = "(not there)"
  return [
    f"`{key}`: {old.get(key, absent)} in the workdir,"
    f" {new.get(key, absent)} in this command"
    for key in sorted(old.keys() | new.keys())
    if old.get(key, absent) != new.get(key, absent)
  ]
