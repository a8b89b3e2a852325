r"""TFDS builders of texts that come with every installation of Python.

Both write their splits, in order, as records of whole lines: a split's text is
exactly `"\n".join(records)`. They need no download and no TensorFlow. Importing
this module imports TFDS (0.4 s) and registers the builders; `text.py` does so
when needed.
"""

import hashlib
import itertools
import os
import pathlib
import sys
import sysconfig
from collections.abc import Iterator

import tensorflow_datasets as tfds

from recurrent.data import overlap
from recurrent.errors import DataError

_LINES_PER_RECORD = 128
# Folders with tests, and with packages that were installed later. The files
# `config-*` and `_sysconfigdata*` are written when Python is built, and name
# the machine.
_SKIPPED_FOLDERS = {
  "__pycache__",
  "dist-packages",
  "idle_test",
  "site-packages",
  "test",
  "tests",
}
_GENERATED = ("_sysconfigdata", "config-")


class _Lines(  # type: ignore[call-arg]
  tfds.core.GeneratorBasedBuilder, skip_registration=True
):
  """A text in three splits, as records of whole lines."""

  # The text ships with Python, so another version of Python has another text.
  # The text of a version must not change, since caches contain it.
  VERSION = tfds.core.Version("{}.{}.{}".format(*sys.version_info[:3]))

  def texts(self) -> dict[str, str]:
    """The splits' texts, by name."""
    raise NotImplementedError

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      description=type(self).__doc__,
      features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # Nothing to download.
    return {
      split: self._generate_examples(text)
      for split, text in self.texts().items()
    }

  def _generate_examples(self, text):
    for key, lines in enumerate(_groups(text.split("\n"))):
      yield key, {"text": "\n".join(lines)}


class Pydoc(_Lines):
  """The Python language reference, as `pydoc` shows it: 455 kB of English.

  The text is the topics of `pydoc_data.topics`, sorted by name and joined by
  newlines. Train, valid and test are the first 90 %, the next 5 % and the last
  5 % of the characters. Since the topics quote each other, a paragraph of test
  (the text between two blank lines) is left out if 100 or more characters of it
  in a row occur in train or valid.
  """

  # Python's version, plus 100 for each change of the rule above.
  VERSION = tfds.core.Version(
    "{}.{}.{}".format(*sys.version_info[:2], 100 + sys.version_info[2])
  )

  def texts(self) -> dict[str, str]:
    """The splits' texts, by name."""
    try:
      from pydoc_data.topics import topics
    except ImportError as error:
      raise DataError(
        f"this Python came without the pydoc_data package ({error})",
        "install the whole standard library, or give your own `text_file`",
      ) from error
    text = "\n".join(topics[name] for name in sorted(topics))
    first, second = int(0.9 * len(text)), int(0.95 * len(text))
    seen = [text[:first], text[first:second]]
    test = overlap.without_repeated_paragraphs(text[second:], seen)
    return dict(zip(("train", "valid", "test"), [*seen, test], strict=True))


class Stdlib(_Lines):
  """The standard library's own sources: 12 MB of Python.

  The text is the `.py` files without the tests, sorted by relative path and
  joined by newlines. The hash of its path assigns each file to train (90 %),
  valid or test (5 % each), so that each split is a sample of all packages.
  """

  def texts(self) -> dict[str, str]:
    """The splits' texts, by name."""
    files: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for name, source in _sources(sysconfig.get_path("stdlib")):
      files[_split_of(name)].append(source)
    if not all(files.values()):
      raise DataError(
        "this Python came without the sources of its standard library",
        "install them, or choose `dataset=pydoc` or your own `text_file`",
      )
    return {split: "\n".join(sources) for split, sources in files.items()}


def _groups(lines: list[str]) -> Iterator[tuple[str, ...]]:
  remaining = iter(lines)
  while group := tuple(itertools.islice(remaining, _LINES_PER_RECORD)):
    yield group


def _sources(root: str) -> Iterator[tuple[str, str]]:
  """(relative path, text) of the sources below `root`, sorted by path."""
  paths = {}
  for folder, folders, files in os.walk(root):
    folders[:] = [name for name in folders if not _skipped(name)]
    for file in files:
      if file.endswith(".py") and not _skipped(file):
        path = pathlib.Path(folder, file)
        paths[path.relative_to(root).as_posix()] = path
  for name, path in sorted(paths.items()):
    try:
      yield name, path.read_bytes().decode("utf-8")
    except (UnicodeDecodeError, OSError):
      continue  # A file in another encoding, a dangling link.


def _skipped(name: str) -> bool:
  return name in _SKIPPED_FOLDERS or name.startswith(_GENERATED)


def _split_of(name: str) -> str:
  """The split of a file, by a hash of its name: 90/5/5 on every machine."""
  bucket = hashlib.sha256(name.encode("utf-8")).digest()[0] * 100 // 256
  return "train" if bucket < 90 else "valid" if bucket < 95 else "test"


BUILDERS: dict[str, type[tfds.core.GeneratorBasedBuilder]] = {
  "pydoc": Pydoc,
  "stdlib": Stdlib,
}
