"""Saves, restores and verifies training checkpoints, by Orbax.

Orbax writes atomically and in the background. By itself, however, it restores
an array with a flipped bit without an error, accepts an empty directory as a
checkpoint, and by its usual options deletes the newest checkpoint in favour of
the best. Therefore this module stores a digest of every array and verifies it
on reading, moves a checkpoint that cannot be read or verified aside and falls
back to the previous one, and keeps both the newest and the best checkpoints.
"""

import contextlib
import gc
import itertools
import json
import logging
import math
import os
import re
import stat
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers, checkpoint_utils

from recurrent.errors import CheckpointError, UserError, WorkdirError
from recurrent.files import write_text
from recurrent.training import digest
from recurrent.training.object_store import is_url
from recurrent.types import PyTree

LOG = logging.getLogger("recurrent")

FORMAT = 1
# Orbax measures its time limits by the time of day: one that is set forward
# would end a good save. What hangs is the watchdog's concern.
NEVER = 100 * 365 * 86400
MAX_TEXT = 64 << 20  # bytes of a file of JSON in a checkpoint
KEEP_LATEST = 2
SEEN = 16  # newest steps that processes compare


class Restored(NamedTuple):
  """A checkpoint that has been read and verified."""

  step: int
  state: PyTree
  progress: dict[str, Any]


class Checkpoints:
  """The checkpoints of one run, `directory/<step>/`.

  Args:
    directory: directory of the checkpoints, or its URL in an object store;
      created by the first save.
    fingerprint: hash of the run's configuration. A checkpoint that was saved
      with another fingerprint is refused.
    before_save: is called before each save. What it writes is there when the
      checkpoint is.
  """

  def __init__(
    self,
    directory: os.PathLike,
    fingerprint: str,
    before_save: Callable[[], None] = lambda: None,
  ):
    self._directory: Any = (
      epath.Path(directory) if is_url(directory) else Path(directory).absolute()
    )
    self._before_save = before_save
    self._fingerprint = fingerprint
    self._keep = _LatestAndBest()
    self._manager: ocp.CheckpointManager | None = None
    self._unchecked = False  # whether a save may have failed unnoticed

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    # An error of the `with` block is the cause: it is the one to be raised.
    with contextlib.suppress(*[WorkdirError] * (kind is not None)):
      self.close()

  def save(
    self, step: int, state: PyTree, progress: dict[str, Any], best_step: int
  ) -> None:
    """Starts to save a step in the background; all processes must call it.

    Args:
      step: number of the training step, which names the directory. If the step
        is saved already, only its `progress` is replaced.
      state: pytree of arrays; it may be donated as soon as this returns.
      progress: JSON values to store beside the state.
      best_step: the step with the best evaluation, which is never deleted.

    Raises:
      CheckpointError: if Orbax refuses to save the step.
      WorkdirError: if this save or an earlier one cannot be written.
    """
    self._before_save()
    with self._writing():
      self._save(step, state, progress, best_step)

  def _save(self, step, state, progress, best_step):
    manager = self._open()
    self._keep.best_step = best_step
    if step in manager.all_steps():
      manager.wait_until_finished()
      self._replace_progress(step, progress)
      return
    arrays = digest.flatten(state)
    about = {
      "format": FORMAT,
      "step": step,
      "fingerprint": self._fingerprint,
      "digests": {k: digest.leaf_sha256(k, v) for k, v in arrays.items()},
      "progress": progress,
    }
    saved = manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(about)
      ),
      force=True,
    )
    self._unchecked = True
    if not saved:
      raise CheckpointError(
        f"Orbax declined to save step {step} in {self._directory}",
        f"look for a later step there (latest: {manager.latest_step()})",
      )

  def restore_latest(self, template: PyTree) -> Restored | None:
    """Restores the newest step that can be read and verified.

    Steps that cannot be are moved to `<directory>.damaged/`, with a warning.

    Args:
      template: pytree of `jax.ShapeDtypeStruct` with shardings.

    Returns:
      The restored checkpoint, or None if there are no checkpoints.

    Raises:
      CheckpointError: if there are checkpoints but all are damaged, or they
        are those of another configuration.
    """
    steps = _common(self.steps())
    for step in reversed(steps):
      restored, why = None, ""
      try:
        restored = self._read(step, template)
      except _Damaged as error:
        why = str(error)
      if _on_all(restored is not None) and restored is not None:
        return restored
      self._set_aside(step, why or "another process cannot read it")
    if steps:
      raise CheckpointError(
        f"none of the checkpoints {steps} in {self._directory} can be read",
        f"they are kept in {self._damaged}; restore a copy, or start again in"
        " another `workdir`",
      )
    return None

  def restore(self, step: int, template: PyTree) -> Restored:
    """Restores one step and verifies it.

    Args:
      step: number of the saved step.
      template: pytree of `jax.ShapeDtypeStruct` with shardings. It may be a
        part of the saved state; only that part is then read.

    Raises:
      CheckpointError: if the step is missing or damaged, or it was saved with
        another configuration.
    """
    try:
      return self._read(step, template)
    except _Damaged as error:
      raise CheckpointError(
        f"checkpoint {self._directory / str(step)} is damaged: {error}",
        "train on from the last good one with the command that made it",
      ) from error

  def restore_part(self, step: int, part: str) -> dict[str, np.ndarray]:
    """Restores a part of a step without a template, and verifies it.

    Args:
      step: number of the saved step.
      part: name of a part of the state, such as "params".

    Returns:
      The arrays by their path below the part, such as "output/bias".

    Raises:
      CheckpointError: as `restore` does, or if there is no such part.
    """
    try:
      names = [
        name
        for name in self._about(step)["digests"]
        if name.startswith(part + "/")
      ]
      self._check_model(step, self._about(step), names)
      shapeless = dict.fromkeys(names, 0)
      kind = ocp.RestoreArgs(restore_type=np.ndarray)
      arrays = self._arrays(step, shapeless, dict.fromkeys(names, kind))
    except _Damaged as error:
      raise CheckpointError(
        f"checkpoint {self._directory / str(step)} is damaged: {error}",
        "use another one",
      ) from error
    return {name.removeprefix(part + "/"): x for name, x in arrays.items()}

  def steps(self) -> list[int]:
    """Numbers of the saved steps, ascending; their contents are not read."""
    if not self._directory.is_dir():
      return []
    names = [d.name for d in self._directory.iterdir() if d.is_dir()]
    return sorted(int(n) for n in names if n.isdecimal() and str(int(n)) == n)

  def progress(self, step: int) -> dict[str, Any]:
    """The JSON values that were saved with a step."""
    try:
      return self._about(step)["progress"]
    except _Damaged as error:
      raise CheckpointError(
        f"checkpoint {self._directory / str(step)} is damaged: {error}",
        "run the training command again: it falls back to a good one",
      ) from error

  def check(self) -> None:
    """Raises the error of a save that has ended and failed; never waits."""
    if (
      self._unchecked
      and self._manager is not None
      and not self._manager.is_saving_in_progress()
    ):
      self.wait()

  def wait(self) -> None:
    """Waits for the save in the background and raises its error, if any."""
    self._unchecked = False
    if self._manager is not None:
      with self._writing():
        self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the save in the background and closes Orbax's manager."""
    if self._manager is not None:
      self.wait()
      self._manager.close()
      self._manager = None

  @contextlib.contextmanager
  def _writing(self):
    """Turns any error of a save into a `WorkdirError`."""
    try:
      yield
    except (UserError, jax.errors.JaxRuntimeError):  # e.g. a peer has ended
      raise
    except Exception as error:  # TensorStore raises ValueErrors
      said = re.search(r"OS error \d+: ([^\]\n]*)", str(error))
      raise WorkdirError(
        f"a checkpoint in {self._directory} cannot be saved:"
        f" {said[1] if said else _first_line(error)}",
        "free some space or mend the disk, then run the same command again;"
        " what was saved before is kept",
      ) from error

  def _replace_progress(self, step, progress):
    if jax.process_index() == 0:
      about = {**self._about(step), "progress": progress}
      file = self._directory / str(step) / "about" / "metadata"
      # An object is replaced at once; so is a file by `write_text`.
      write = file.write_text if is_url(file) else partial(write_text, file)
      write(json.dumps(about))

  @property
  def _damaged(self) -> Any:
    return self._directory.with_name(self._directory.name + ".damaged")

  def _open(self) -> ocp.CheckpointManager:
    if self._manager is None:
      logging.getLogger("absl").addFilter(_not_a_traceback_of_orbax)
      self._manager = ocp.CheckpointManager(
        self._directory,
        options=ocp.CheckpointManagerOptions(
          preservation_policy=self._keep,
          cleanup_tmp_directories=True,
          step_name_format=ocp.step.standard_name_format(),
          async_options=ocp.options.AsyncOptions(timeout_secs=NEVER),
        ),
      )
    return self._manager

  def _read(self, step, template) -> Restored:
    about = self._about(step)
    wanted = digest.flatten(template)
    self._check_model(step, about, wanted)
    arrays = self._arrays(
      step, wanted, checkpoint_utils.construct_restore_args(wanted)
    )
    state = digest.unflatten(template, arrays)
    return Restored(step, state, about["progress"])

  def _arrays(self, step, wanted, restore_args) -> dict[str, Any]:
    """Reads arrays by path, and compares them with their digests."""
    digests = self._about(step)["digests"]
    folder = self._directory / str(step) / "state"
    try:
      checkpointer = ocp.PyTreeCheckpointer()
      found = checkpointer.metadata(folder).item_metadata
      if found is None:
        raise _Damaged("it does not say which arrays it has")
      _refuse_sizes(found.tree, wanted)
      arrays = checkpointer.restore(
        folder,
        ocp.args.PyTreeRestore(
          wanted, restore_args=restore_args, partial_restore=True
        ),
      )
    except (jax.errors.JaxRuntimeError, _Damaged):  # e.g. a peer has ended
      raise
    except Exception as error:  # Orbax passes its libraries' errors on
      why = _first_line(error)
      error.__traceback__ = None
      _collect_quietly()
      raise _Damaged(why) from None
    for path, array in arrays.items():
      if digest.leaf_sha256(path, array) != digests[path]:
        raise _Damaged(f"{path} differs from its SHA-256")
    return arrays

  def _about(self, step) -> dict[str, Any]:
    folder = self._directory / str(step)
    try:
      _refuse_strange_files(folder)
      about = json.loads((folder / "about" / "metadata").read_text())
      if about["step"] != step:
        raise _Damaged(f"it says it is step {about['step']}")
      for name in ("digests", "progress"):
        if not isinstance(about[name], dict):
          raise _Damaged(f"its {name} are no table")
      return about
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
      raise _Damaged(f"{type(error).__name__}: {error}") from error

  def _check_model(self, step, about, wanted):
    if about.get("format") != FORMAT:
      raise CheckpointError(
        f"checkpoint {step} has format {about.get('format')}, not {FORMAT}",
        "use the version of recurrent that wrote it",
      )
    odd = sorted(set(wanted) - set(about["digests"]))
    if odd or about["fingerprint"] != self._fingerprint:
      raise CheckpointError(
        f"checkpoint {self._directory / str(step)} is of another"
        f" configuration{': ' + odd[0] if odd else ''}",
        "use the workdir's own config.json, or another `workdir`",
      )

  def _set_aside(self, step, why):
    source = self._directory / str(step)
    LOG.warning("Checkpoint %s is damaged: %s", source, why)
    if jax.process_index() == 0:
      self._damaged.mkdir(exist_ok=True)
      target = self._damaged / str(step)
      if target.exists():
        epath.Path(target).rmtree()
      source.rename(target)
      LOG.warning("Moved it to %s; trying the one before.", target)


def _common(steps: list[int]) -> list[int]:
  """The newest steps that all processes see; all must call it."""
  if jax.process_count() == 1:
    return steps
  newest = np.full(SEEN, -1)
  newest[: len(steps[-SEEN:])] = steps[-SEEN:]
  seen = [
    set(row.tolist()) for row in multihost_utils.process_allgather(newest)
  ]
  return sorted(set.intersection(*seen) - {-1})


def _on_all(good: bool) -> bool:
  """Whether something is true on all processes; all must call it."""
  if jax.process_count() == 1:
    return good
  return bool(multihost_utils.process_allgather(np.array(good)).all())


class _Damaged(Exception):
  """A checkpoint cannot be read or verified; an older one may be usable."""


class _LatestAndBest(checkpoint_managers.PreservationPolicy):
  """Keeps the newest steps and the best one."""

  best_step = -1

  def should_preserve(self, checkpoints, *, context):
    del context
    latest = {c.step for c in checkpoints[-KEEP_LATEST:]}
    return [c.step in latest or c.step == self.best_step for c in checkpoints]


def _not_a_traceback_of_orbax(record: logging.LogRecord) -> bool:
  """Log filter: drops Orbax's tracebacks, which `wait` raises as errors."""
  return not (record.exc_info and "orbax" in record.pathname)


def _first_line(error: Exception) -> str:
  """An error's first line; TensorStore appends pages of settings to it."""
  return f"{type(error).__name__}: {error}".splitlines()[0][:160]


def _collect_quietly():
  """Collects the garbage of a failed read without any output.

  A failed read leaves coroutines of a closed event loop, and Python prints a
  traceback for each of them when it collects it.
  """
  hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
  try:
    gc.collect()
  finally:
    sys.unraisablehook = hook


def _refuse_strange_files(folder: Path):
  """Raises `_Damaged` if a checkpoint has links, special files or huge texts.

  A link in a checkpoint from elsewhere could read any file of this host. Object
  stores have neither links nor special files.
  """
  if is_url(folder):
    return
  # The folder itself first: it is not to be listed where it is a link.
  for path in itertools.chain([folder], folder.rglob("*")):
    status = path.lstat()
    name = path.relative_to(folder.parent)
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
      raise _Damaged(f"{name} is neither file nor folder")
    if path.parent.name != "d" and status.st_size > MAX_TEXT:
      raise _Damaged(f"{name} has {status.st_size:,} bytes")


def _refuse_sizes(found: dict[str, Any], wanted: dict[str, Any]):
  """Raises `_Damaged` if arrays claim other shapes, or more than fits.

  It is called before anything is read or allocated.

  Args:
    found: what the checkpoint says of its arrays, by path.
    wanted: arrays to read by path; those with a shape must have it.
  """
  total = 0
  for path, like in wanted.items():
    about = found[path]
    shape = getattr(like, "shape", about.shape)
    if about.shape != shape:
      raise _Damaged(f"{path} has the shape {about.shape}, not {shape}")
    chunk = about.storage.chunk_shape
    if any(c > max(n, 1) for c, n in zip(chunk, shape, strict=True)):
      raise _Damaged(f"{path} {shape} has pieces of the shape {chunk}")
    total += math.prod(shape) * np.dtype(about.dtype).itemsize
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  if total > memory:
    raise _Damaged(f"{total:,} bytes do not fit into a memory of {memory:,}")
