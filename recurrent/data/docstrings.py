"""Docstrings of the installed packages: their bodies, and their summary lines.

By PEP 257 a docstring is a summary line, a blank line, and a more elaborate
description. The sources are parsed, and never imported.
"""

import ast
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import sysconfig
import warnings
from collections.abc import Iterable, Iterator

from recurrent.cache import cache_dir
from recurrent.data import overlap
from recurrent.data.parallel import Pairs
from recurrent.data.splits import Shares, by_hash
from recurrent.errors import DataError

LOG = logging.getLogger("recurrent")
VERSION = 1  # Of the rules by which pairs are found in a source.
SHARES = Shares(0.8, 0.1, 0.1)
BODY_WORDS = 10  # A shorter body has nothing to summarise.
MOST_WORDS = 150  # words of a body that are kept
SUMMARY_WORDS = 3, 20
DOCUMENTED = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
SKIPPED = frozenset(("__pycache__", "test", "tests", "testing"))


def load_docstrings(
  folders: Iterable[str | os.PathLike] | None = None, shares: Shares = SHARES
) -> dict[str, Pairs]:
  """Reads the docstrings of packages as pairs of a body and a summary line.

  The split of a package is drawn from a hash of its name, so no package is in
  two splits. Of equal bodies the first is kept, those of train before those of
  valid and test. A body of valid or test that has 100 or more characters in a
  row in common with one of an earlier split is left out.

  Args:
    folders: folders that contain packages; by default the `site-packages` of
      this Python.
    shares: the expected shares of the packages.

  Returns:
    The pairs of "train", "valid" and "test". White space is reduced to single
    spaces.

  Raises:
    DataError: if a split is empty.
  """
  if folders is None:
    folders = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
  packages = _files(folders)
  found = _cached(packages, shares)
  for split, pairs in found.items():
    if not pairs.sources:
      raise DataError(
        f"the {len(packages)} installed packages have no docstrings for"
        f" {split}",
        "install more packages, or give your own `data_file`",
      )
  LOG.info(
    "Docstrings of %d packages: %s.",
    len(packages),
    ", ".join(f"{len(x.sources):,} pairs of {k}" for k, x in found.items()),
  )
  return found


def parse(source: bytes) -> Iterator[tuple[str, str]]:
  """Yields the body and the summary line of each docstring of a module.

  Docstrings without a blank second line are left out, and those whose body is
  too short or whose summary is too short or too long. Of a body the first words
  are taken.

  Args:
    source: source code of Python; nothing is yielded if it cannot be parsed.
  """
  if not any(quotes in source for quotes in (b'"""', b"'''")):
    return  # A docstring of several lines needs them.
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # Invalid escapes in strings.
      nodes: list[ast.AST] = [ast.parse(source)]
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return
  least, most = SUMMARY_WORDS
  while nodes:
    node = nodes.pop()
    # Statements only: expressions hold no docstrings, and are most of a tree.
    for block in ("body", "orelse", "finalbody", "handlers"):
      inside = getattr(node, block, ())
      nodes += inside if isinstance(inside, list) else ()
    if not isinstance(node, DOCUMENTED):
      continue
    first, _, rest = (ast.get_docstring(node) or "").partition("\n")
    second, _, body = rest.partition("\n")
    words, summary = body.split()[:MOST_WORDS], first.split()
    if not second.strip() and len(words) >= BODY_WORDS:
      if least <= len(summary) <= most:
        yield " ".join(words), " ".join(summary)


def _files(folders) -> dict[str, list[pathlib.Path]]:
  """The source files of each package or module in some folders, sorted."""
  packages: dict[str, list[pathlib.Path]] = {}
  for root in map(pathlib.Path, sorted(map(str, folders))):
    for folder, inside, files in os.walk(root):
      named = (x for x in inside if x.isidentifier() and x not in SKIPPED)
      inside[:] = sorted(named)
      for file in sorted(files):
        if file.endswith(".py"):
          path = pathlib.Path(folder, file)
          name = path.relative_to(root).parts[0].removesuffix(".py")
          packages.setdefault(name, []).append(path)
  return packages


def _cached(packages, shares) -> dict[str, Pairs]:
  """The result of `_divided`, from the cache if it is that of the last call.

  Parsing all packages takes half a minute. A file is taken as unchanged if its
  size and its time are.
  """
  status = [
    (str(path), *(getattr(path.stat(), x) for x in ("st_size", "st_mtime_ns")))
    for paths in packages.values()
    for path in paths
  ]
  asked = json.dumps([VERSION, shares, status])
  key = hashlib.sha256(asked.encode()).hexdigest()
  cache = cache_dir() / "docstrings.json"
  with contextlib.suppress(OSError, ValueError, KeyError):
    kept = json.loads(cache.read_text(encoding="utf-8"))
    if kept["key"] == key:
      return {split: Pairs(*pairs) for split, pairs in kept["pairs"].items()}
  LOG.info("Parsing the sources of %d installed packages.", len(packages))
  found = _divided(packages, shares)
  with contextlib.suppress(OSError):  # A cache that cannot be written.
    cache.parent.mkdir(parents=True, exist_ok=True)
    scratch = cache.with_name(f"{cache.name}.{os.getpid()}")
    scratch.write_text(json.dumps({"key": key, "pairs": found}))
    os.replace(scratch, cache)
  return found


def _divided(packages, shares) -> dict[str, Pairs]:
  """Parses all files, and divides their pairs by package."""
  names = sorted(packages)
  drawn = by_hash((name.encode() for name in names), shares)
  found: dict[str, Pairs] = {}
  earlier: list[str] = []
  for split in ("train", "valid", "test"):
    pairs: dict[str, str] = {}  # The first summary of each body.
    for name, its in zip(names, drawn, strict=True):
      for path in packages[name] if its == split else ():
        with contextlib.suppress(OSError):
          for body, summary in parse(path.read_bytes()):
            pairs.setdefault(body, summary)
    kept = _new(list(pairs), earlier)
    found[split] = Pairs(kept, [pairs[body] for body in kept])
    earlier += kept
  return found


def _new(bodies: list[str], earlier: list[str]) -> list[str]:
  """The bodies that have no long run of characters in earlier ones."""
  seen = set(earlier)
  bodies = [body for body in bodies if body not in seen]
  begins = overlap.repeated("\n".join(bodies), ["\n".join(earlier)])
  kept, start = [], 0
  for body in bodies:
    end = start + len(body)
    if not begins[start : max(start, end - overlap.LENGTH + 1)].any():
      kept.append(body)
    start = end + 1
  return kept
