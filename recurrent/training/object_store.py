"""Workdirs in object stores, such as `gs://bucket/runs/1`.

An object store has no locks, and nothing can be appended to an object. The
small files of a run are therefore written to a local folder and copied to the
store: before each checkpoint and at the end, so that a resumed run finds all
rows up to its checkpoint. Checkpoints are written to the store itself, by
Orbax.

In place of a lock there is a lease: an object that says who uses the workdir,
and until when. It is replaced by compare-and-swap, so that of two runs that
want it at once only one gets it.
"""

import json
import logging
import os
import pathlib
import shutil
import socket
import tempfile
import threading
import time
import uuid
from typing import Any

from recurrent.errors import ConfigError, WorkdirError

LOG = logging.getLogger("recurrent")

# URL schemes, and TensorStore's drivers for them. "file" is a local folder that
# is treated as an object store, to try out what that does.
DRIVERS = {"gs": "gcs", "s3": "s3", "file": "file"}
# Packages without which Orbax cannot reach a store.
PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}

LEASE = "lease.json"
LEASE_SECONDS = 60.0

_APART = ("checkpoints/", "checkpoints.damaged/")


def is_url(path: str | os.PathLike) -> bool:
  """Whether a path is a URL, such as gs://bucket/folder."""
  return "://" in os.fspath(path)


class ObjectStore:
  """A workdir in an object store, and its local copy.

  Args:
    url: such as gs://bucket/folder.

  Raises:
    ConfigError: if the scheme is unknown, or a package is not installed.
    WorkdirError: if the store cannot be reached.
  """

  def __init__(self, url: str):
    self.url = url.rstrip("/")
    scheme, _, rest = self.url.partition("://")
    if scheme not in DRIVERS:
      raise ConfigError(
        f"`workdir={url}`: there is no store {scheme}://",
        f"use {', '.join(f'{name}://' for name in DRIVERS)} or a local folder",
      )
    self._require(scheme)
    self.local = pathlib.Path(tempfile.mkdtemp(prefix="recurrent-workdir-"))
    self._sent: dict[str, tuple[int, int]] = {}
    self._store = self._open(scheme, rest)
    self._lease: _Lease | None = None

  @property
  def checkpoints(self) -> Any:
    """Where Orbax writes the checkpoints, a path of etils."""
    from etils import epath

    return epath.Path(self.url.removeprefix("file://")) / "checkpoints"

  def acquire(self) -> None:
    """Takes the lease, and waits for that of a run that has died.

    Raises:
      WorkdirError: if another run renews it.
    """
    self._lease = _Lease(self._store, self.url)

  def pull(self) -> None:
    """Copies the small files to the local folder."""
    for key in self._list():
      place = self.local / key
      place.parent.mkdir(parents=True, exist_ok=True)
      place.write_bytes(self._try(self._store.read(key)).value)
      self._sent[key] = _version(place)

  def push(self) -> None:
    """Copies the files that have changed since to the store.

    Raises:
      WorkdirError: if they cannot be written, or the lease is lost.
    """
    if self._lease is not None:
      self._lease.check()
    here = {
      path.relative_to(self.local).as_posix(): path
      for path in self.local.rglob("*")
      if path.is_file()
    }
    for key, path in here.items():
      version = _version(path)
      if self._sent.get(key) != version:
        self._try(self._store.write(key, path.read_bytes()))
        self._sent[key] = version
    for key in self._sent.keys() - here.keys():
      self._try(self._store.write(key, None))
      del self._sent[key]

  def close(self) -> None:
    """Removes the local folder and gives the lease back; pushes nothing."""
    shutil.rmtree(self.local, ignore_errors=True)
    if self._lease is not None:
      self._lease.release()
      self._lease = None

  def _require(self, scheme):
    package = PACKAGES.get(scheme)
    if package is None:
      return
    try:
      __import__(package)
    except ImportError as error:
      raise ConfigError(
        f"`workdir={self.url}` needs the package {package}",
        f"pip install {package}, or use a local folder",
      ) from error

  def _open(self, scheme, rest):
    import tensorstore

    spec: dict[str, Any] = {"driver": DRIVERS[scheme], "path": f"{rest}/"}
    if scheme != "file":
      bucket, _, path = rest.partition("/")
      spec.update(bucket=bucket, path=f"{path}/" if path else "")
    return self._try(tensorstore.KvStore.open(spec))

  def _list(self) -> list[str]:
    keys = [key.decode() for key in self._try(self._store.list())]
    return [
      key
      for key in keys
      if key != LEASE and not key.startswith(_APART) and _is_inside(key)
    ]

  def _try(self, future):
    try:
      return future.result()
    except Exception as error:  # TensorStore raises ValueErrors
      raise _unreachable(self.url, error) from error


class _Lease:
  """An object that one run at a time holds; a thread renews it."""

  def __init__(self, store, url):
    self._store, self._url = store, url
    self._owner = f"{socket.gethostname()}, pid {os.getpid()}"
    self._key = uuid.uuid4().hex
    self._lost = ""
    self._ended = threading.Event()
    self._generation = self._take()
    self._thread = threading.Thread(target=self._renew, daemon=True)
    self._thread.start()

  def check(self) -> None:
    """Raises WorkdirError if another run has taken the lease."""
    if self._lost:
      raise WorkdirError(
        f"the lease of {self._url} is lost: {self._lost}",
        "run one process group at a time on a workdir",
      )

  def release(self) -> None:
    self._ended.set()
    self._thread.join()
    if not self._lost:
      self._store.write(LEASE, None, if_equal=self._generation).result()

  def _text(self):
    lease = {
      "owner": self._owner,
      "key": self._key,
      "until": time.time() + LEASE_SECONDS,
    }
    return json.dumps(lease).encode()

  def _take(self):
    """Waits until the lease is free, for one term of it at most."""
    first, deadline = None, time.monotonic() + LEASE_SECONDS + 5
    while True:
      try:
        found = self._store.read(LEASE).result()
        there = found.state == "value"
        lease = json.loads(found.value) if there else {"until": 0, "key": ""}
      except Exception as error:
        raise _unreachable(self._url, error) from error
      if lease["until"] < time.time():
        generation = self._swap(found.stamp.generation)
        if generation:
          return generation
        continue  # Another one was faster.
      first = first or lease
      renewed = lease != first
      if renewed or time.monotonic() > deadline:
        raise WorkdirError(
          f"{self._url} is in use by the run on {lease['owner']}",
          "wait for it, stop it, or use another `workdir`",
        )
      if lease is first:
        LOG.info(
          "Waiting for the lease of the run on %s to end or to be renewed.",
          lease["owner"],
        )
      time.sleep(min(1.0, LEASE_SECONDS / 10))

  def _swap(self, generation):
    """Writes the lease if it is of that generation; returns the next one."""
    try:
      done = self._store.write(LEASE, self._text(), if_equal=generation)
      return done.result().generation
    except Exception as error:
      raise _unreachable(self._url, error) from error

  def _renew(self):
    renewed = time.monotonic()
    while not self._ended.wait(LEASE_SECONDS / 4):
      try:
        generation = self._swap(self._generation)
      except WorkdirError as error:
        if time.monotonic() - renewed > LEASE_SECONDS:
          self._lost = error.cause
          return
        continue
      if not generation:
        self._lost = "another run has taken it"
        return
      self._generation, renewed = generation, time.monotonic()


def _version(path: pathlib.Path) -> tuple[int, int]:
  status = path.stat()
  return status.st_mtime_ns, status.st_size


def _is_inside(key: str) -> bool:
  """Whether a name is that of a file below the folder."""
  return bool(key) and ".." not in key.split("/") and not key.startswith("/")


def _unreachable(url, error) -> WorkdirError:
  return WorkdirError(
    f"cannot reach `workdir={url}`: {str(error).splitlines()[0][:200]}",
    "check the name, the network and your credentials",
  )
