"""Checkpoints as a stranger might send them: each is to be refused, unread.

Every function changes the folder of a good checkpoint. Beside it there is a
folder of this host, `outside`, of which no file may be opened. Its path must be
short, since it takes the place of the name of a file.
"""

import ctypes
import json
import os
import pathlib
import shutil
import socket
import struct
import zlib

import tensorstore

IN_OPEN = 0x20  # of <sys/inotify.h>

ATTACKS = {}


def attack(function):
  """Registers an attack under the name of its function."""
  ATTACKS[function.__name__] = function
  return function


class Openings:
  """Counts who opens files of a folder, by any means; Linux only."""

  def __init__(self, folder: pathlib.Path):
    libc = ctypes.CDLL(None, use_errno=True)
    self._queue = libc.inotify_init1(os.O_NONBLOCK)
    self._libc, self._folder = libc, folder

  def __enter__(self):
    for path in (self._folder, *self._folder.rglob("*")):
      if not path.is_symlink() and path.is_dir():
        self._libc.inotify_add_watch(self._queue, bytes(path), IN_OPEN)
    return self

  def __exit__(self, *_):
    try:
      self.seen = os.read(self._queue, 1 << 16)
    except BlockingIOError:
      self.seen = b""
    os.close(self._queue)


def data_file(step: pathlib.Path) -> pathlib.Path:
  """The largest file of a checkpoint: the arrays."""
  files = [f for f in step.rglob("*") if f.is_file() and not f.is_symlink()]
  return max(files, key=lambda f: f.stat().st_size)


def _linked(file, outside, content=None):
  """Replaces a file or folder by a link to a copy of it outside."""
  target = outside / file.name
  if file.is_dir():
    shutil.move(file, target)
  else:
    target.write_bytes(file.read_bytes() if content is None else content)
    file.unlink()
  file.symlink_to(target)


def _link_of(name):
  def make(step, outside):
    _linked(step / name if name else data_file(step), outside)

  make.__name__ = f"link_in_place_of_{name or 'the arrays'}".replace("/", "_")
  attack(make)


for _name in (
  "",
  "state",
  "about",
  "about/metadata",
  "state/_METADATA",
  "state/manifest.ocdbt",
  "state/d",
  "state/ocdbt.process_0",
  "state/ocdbt.process_0/manifest.ocdbt",
  "state/array_metadatas/process_0",
  "state/_sharding",
  "commit_success.txt",
):
  _link_of(_name)


@attack
def the_whole_step_is_a_link(step, outside):
  _linked(step, outside)


@attack
def a_relative_link(step, outside):
  file = data_file(step)
  target = outside / "secret"
  target.write_bytes(file.read_bytes())
  file.unlink()
  file.symlink_to(os.path.relpath(target, file.parent))


@attack
def a_link_to_a_link(step, outside):
  _linked(data_file(step), outside)
  file = next(f for f in step.rglob("*") if f.is_symlink())
  file.rename(file.with_name("other"))
  file.symlink_to("other")


@attack
def a_link_that_dangles(step, outside):
  (step / "state" / "extra").symlink_to(outside / "absent")


@attack
def links_in_a_circle(step, outside):
  del outside
  (step / "state" / "a").symlink_to("b")
  (step / "state" / "b").symlink_to("a")


@attack
def a_pipe_in_place_of_the_arrays(step, outside):
  del outside
  file = data_file(step)
  file.unlink()
  os.mkfifo(file)


@attack
def a_pipe_in_place_of_the_description(step, outside):
  del outside
  (step / "about" / "metadata").unlink()
  os.mkfifo(step / "about" / "metadata")


@attack
def a_socket(step, outside):
  del outside
  # The path of a socket may have 107 characters.
  here = os.getcwd()
  os.chdir(step / "state")
  try:
    with socket.socket(socket.AF_UNIX) as listener:
      listener.bind("s")
  finally:
    os.chdir(here)


def _about(step, **values):
  file = step / "about" / "metadata"
  file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@attack
def nested_json(step, outside):
  del outside
  (step / "about" / "metadata").write_text("[" * 200_000)


@attack
def nested_json_of_orbax(step, outside):
  del outside
  (step / "state" / "_METADATA").write_text('{"a":' * 200_000)


@attack
def a_huge_description(step, outside):
  del outside
  with (step / "about" / "metadata").open("r+b") as file:
    file.truncate(1 << 40)  # sparse: a terabyte to read


@attack
def a_huge_description_of_orbax(step, outside):
  del outside
  with (step / "state" / "_METADATA").open("r+b") as file:
    file.truncate(1 << 40)


@attack
def digests_that_are_no_table(step, outside):
  del outside
  _about(step, digests=["params/kernel"])


@attack
def a_description_that_is_no_table(step, outside):
  del outside
  (step / "about" / "metadata").write_text('"step"')


# OCDBT, the format of the arrays: files of a header, a body and a checksum.


def crc32c(content: bytes) -> int:
  """The checksum of OCDBT's files."""
  crc = 0xFFFFFFFF
  for byte in content:
    crc ^= byte
    for _ in range(8):
      crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
  return crc ^ 0xFFFFFFFF


def _store(folder, **config):
  spec = {"driver": "ocdbt", "base": f"file://{folder}/"}
  return tensorstore.KvStore.open(spec | config).result()


def _rewrite(step, change):
  """Writes the arrays anew in plain files, after a change to their table."""
  state = step / "state"
  old = _store(state)
  table = {key: old[key] for key in old.list().result()}
  change(table)
  for name in ("manifest.ocdbt", "d", "ocdbt.process_0"):
    path = state / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  config = {"compression": None, "max_inline_value_bytes": 0}
  new = _store(state, config=config)
  with tensorstore.Transaction() as all_at_once:  # one file
    for key, value in table.items():
      new.with_transaction(all_at_once)[key] = value


def _declare(**values):
  def change(table):
    key = b"params/kernel/.zarray"
    table[key] = json.dumps({**json.loads(table[key]), **values}).encode()

  return change


@attack
def arrays_that_claim_a_petabyte(step, outside):
  del outside
  _rewrite(step, _declare(shape=[1 << 25, 1 << 25]))


@attack
def chunks_that_claim_a_petabyte(step, outside):
  del outside
  _rewrite(step, _declare(chunks=[1 << 25, 1 << 25]))


@attack
def arrays_of_python_objects(step, outside):
  del outside
  _rewrite(step, _declare(dtype="|O", filters=[{"id": "pickle"}]))


@attack
def a_filter_by_name_of_a_module(step, outside):
  del outside
  _rewrite(step, _declare(filters=[{"id": "os.system"}]))


@attack
def a_chunk_that_unpacks_to_much(step, outside):
  del outside
  packer = zlib.compressobj()
  zeros = bytes(1 << 20)
  bomb = b"".join(packer.compress(zeros) for _ in range(1 << 8))

  def change(table):
    _declare(compressor={"id": "zlib", "level": 1})(table)
    table[b"params/kernel/0.0"] = bomb + packer.flush()

  _rewrite(step, change)


def _renamed(content: bytes, old: bytes, new: bytes) -> bytes:
  """Replaces the name of a file in OCDBT's tables, and their checksums."""
  place = -1
  while (place := content.find(b"\x0c\xdb", place + 1)) >= 0:
    (length,) = struct.unpack("<Q", content[place + 4 : place + 12])
    end = place + length
    if length < 16 or end > len(content):
      continue
    table = content[place : end - 4].replace(old, new)
    checksum = struct.pack("<I", crc32c(table))
    content = content[:place] + table + checksum + content[end:]
  return content


def elsewhere(step, path):
  """Moves the file of the arrays, whose new path begins with `path`."""
  _rewrite(step, lambda table: None)
  state = step / "state"
  (file,) = (state / "d").iterdir()
  old = f"d/{file.name}"
  new = path + "x" * (len(old) - len(path))
  assert len(new) == len(old), (new, old)
  manifest = state / "manifest.ocdbt"
  rename = lambda content: _renamed(content, old.encode(), new.encode())
  target = pathlib.Path(os.path.normpath(state / new))
  target.write_bytes(rename(file.read_bytes()))
  file.unlink()
  manifest.write_bytes(rename(manifest.read_bytes()))


@attack
def arrays_in_a_file_above(step, outside):
  elsewhere(step, os.path.relpath(outside, step / "state") + "/")


@attack
def arrays_in_a_file_by_its_absolute_path(step, outside):
  elsewhere(step, f"{outside}/")
