"""Finds TFDS datasets on disk, and prepares this library's own in a cache.

The library's own datasets need no network and are prepared on first use. A
dataset of the TFDS catalogue is prepared once by its own code, which downloads
it and needs TensorFlow; reading it needs neither. Both are opened from their
prepared files, without running the code of their builders.
"""

import contextlib
import difflib
import fcntl
import io
import itertools
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from recurrent.cache import cache_dir
from recurrent.data.builders import BUILDERS
from recurrent.errors import DataError


class Damaged(DataError):
  """The files of a prepared dataset are damaged."""


_LOG = logging.getLogger(__name__)
_BATCH = 1024  # Records read at once.


def own(
  name: str, data_dir: str | os.PathLike | None = None, *, anew: bool = False
) -> tfds.core.DatasetBuilder:
  """Opens one of this library's own datasets, and prepares it if needed.

  Several processes may call this at once: one of them prepares the dataset in a
  temporary folder, which it renames when all is written, and the others wait.
  The files of a killed process are never read.

  Args:
    name: a key of `BUILDERS`.
    data_dir: a local folder to use instead of the cache.
    anew: whether to prepare it again, because its files are damaged.

  Returns:
    The builder to pass to `records`.

  Raises:
    DataError: if the folder cannot be written.
  """
  root = pathlib.Path(data_dir) if data_dir else cache_dir()
  if "://" in str(data_dir):
    raise DataError(
      f"cannot prepare {name!r} in {data_dir}: not a local folder",
      "leave out `data_dir`, or give a local folder",
    )
  version = str(BUILDERS[name].VERSION)
  folder = root / name / version
  if anew or not folder.exists():
    try:
      root.mkdir(parents=True, exist_ok=True)
      with _locked(root / f"{name}.lock"):
        if anew or not folder.exists():
          _prepare(name, folder, scratch=root / f"{name}.incomplete")
    except (OSError, RuntimeError) as error:  # array_record: a full disk
      raise DataError(
        f"cannot write {name!r} to {root}: {_first_line(error)}",
        "set RECURRENT_CACHE to a local folder that you can write",
      ) from error
  try:
    return tfds.builder_from_directory(folder)
  except Exception as error:  # TFDS and protobuf raise many types.
    raise _damaged(name, folder, error) from error


def catalogue(
  name: str,
  data_dir: str | os.PathLike | None = None,
  *,
  others: Sequence[str] = tuple(BUILDERS),
  flag: str = "text_file",
) -> tfds.core.DatasetBuilder:
  """Opens a dataset that TFDS has prepared before.

  Args:
    name: its name in TFDS, such as `lm1b`, `glue/cola` or `mnist:3.0.1`.
    data_dir: the folder in which it was prepared; by default that of TFDS.
    others: names of datasets that need no preparation, for messages.
    flag: name of the flag that takes a file instead, for messages.

  Returns:
    The builder to pass to `records`.

  Raises:
    DataError: if it is not there. If the TFDS catalogue has it, the message
      has the commands that prepare it; otherwise it has similar names.
  """
  if not _base(name).isidentifier():
    raise _not_found(name, data_dir, others, flag)
  try:
    return read_only_builder.builder_from_files(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as error:
    raise _not_found(name, data_dir, others, flag) from error
  except Exception as error:  # TFDS and protobuf raise many types.
    raise DataError(
      f"cannot open dataset {name!r}: {_first_line(error)}",
      "check its name and `data_dir`; if it is damaged, prepare it again, in "
      f"a new folder: {_command(name, 'NEW_FOLDER')}",
    ) from error


def records(
  builder: tfds.core.DatasetBuilder, split: str
) -> Iterator[dict[str, Any]]:
  """Reads the records of a split, in order. Text in them is `bytes`.

  Args:
    builder: from `own` or `catalogue`.
    split: a key of `builder.info.splits`.

  Yields:
    One dict per record.

  Raises:
    DataError: if the files are damaged, or cannot be read without TensorFlow.
  """
  name = builder.info.full_name
  try:
    source = builder.as_data_source(split)
    keys = iter(range(len(source)))
    while batch := list(itertools.islice(keys, _BATCH)):
      yield from source.__getitems__(batch)
  except NotImplementedError as error:
    raise DataError(
      f"dataset {name!r} is not stored as array_record",
      f"prepare it again, in a new folder: {_command(name, 'NEW_FOLDER')}",
    ) from error
  except Exception as error:  # array_record raises plain RuntimeErrors.
    raise _damaged(name, builder.data_path, error) from error


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
  """Holds a file lock, which ends with the process at the latest."""
  with open(path, "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _prepare(name: str, folder: pathlib.Path, scratch: pathlib.Path):
  """Writes dataset `name` below `scratch`, then moves it to `folder`."""
  _LOG.info("preparing %s in %s", name, folder)
  shutil.rmtree(scratch, ignore_errors=True)  # Left by a killed process.
  builder = BUILDERS[name](data_dir=scratch, file_format="array_record")
  # TFDS reports on stdout, which belongs to the scripts' results.
  with (
    contextlib.redirect_stdout(io.StringIO()),
    contextlib.redirect_stderr(io.StringIO()),
  ):
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
  shutil.rmtree(folder, ignore_errors=True)
  folder.parent.mkdir(parents=True, exist_ok=True)
  os.replace(builder.data_path, folder)
  shutil.rmtree(scratch)


def _damaged(name: str, folder: os.PathLike, error: Exception) -> Damaged:
  return Damaged(
    f"dataset {name!r} in {folder} is damaged: {_first_line(error)}",
    "delete that folder, and prepare the dataset again",
  )


def _not_found(name, data_dir, others, flag) -> DataError:
  known = tfds.list_builders(with_community_datasets=False)
  base = _base(name)
  if base in known and base not in others:
    return DataError(
      f"dataset {name!r} is not prepared in "
      f"{data_dir or 'the default folder of TFDS'}",
      "once, where there is a network: pip install 'recurrent[prepare]' && "
      + _command(name, data_dir),
    )
  near = difflib.get_close_matches(base, {*known, *others}, n=3, cutoff=0.7)
  return DataError(
    f"there is no dataset {name!r}",
    f"did you mean {' or '.join(sorted(near))}?"
    if near
    else f"choose {' or '.join(others)}, a name from the TFDS catalogue, or "
    f"your own `{flag}`",
  )


def _base(name: str) -> str:
  """The name of a dataset without its config and version."""
  return name.partition("/")[0].partition(":")[0]


def _command(name: str, data_dir: str | os.PathLike | None) -> str:
  place = f" --data_dir={data_dir}" if data_dir else ""
  return f"tfds build {name} --file_format=array_record{place}"


def _first_line(error: Exception) -> str:
  reason = getattr(error, "strerror", None) or str(error)
  return (reason or type(error).__name__).splitlines()[0]
