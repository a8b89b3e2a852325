"""Checkpoints by Orbax, and what it lacks.

Orbax writes atomically and in the background, but loads a flipped bit as a
different number, takes an empty directory for a checkpoint, and by its usual
options deletes the newest in favour of the best. So here every array has a
digest, verified when it is read; a step that cannot be read or verified is
moved aside and the one before is taken; and the latest and the best stay.
"""

import contextlib
import gc
import json
import logging
import re
import shutil
import stat
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers, checkpoint_utils

from recurrent.errors import CheckpointError, UserError, WorkdirError
from recurrent.training import digest
from recurrent.types import PyTree

LOG = logging.getLogger("recurrent")

FORMAT = 1
KEEP_LATEST = 2


class Restored(NamedTuple):
  """A checkpoint that has been read and verified."""

  step: int
  state: PyTree
  progress: dict[str, Any]


class Checkpoints:
  """The checkpoints of one run, `directory/<step>/`.

  Args:
    directory: where they are; created by the first save.
    fingerprint: of the configuration; a checkpoint of another is refused.
  """

  def __init__(self, directory: Path, fingerprint: str):
    self._directory = Path(directory).absolute()
    self._fingerprint = fingerprint
    self._keep = _LatestAndBest()
    self._manager: ocp.CheckpointManager | None = None
    self._unchecked = False  # whether a save may have failed unnoticed

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    # Of two errors the first is the cause.
    with contextlib.suppress(*[WorkdirError] * (kind is not None)):
      self.close()

  def save(
    self, step: int, state: PyTree, progress: dict[str, Any], best_step: int
  ) -> None:
    """Saves in the background; all processes must call it.

    Args:
      step: number of the step, the directory's name. Of one that is saved
        already, only `progress` is written anew.
      state: pytree of arrays; it may be donated as soon as this returns.
      progress: JSON values that go with it.
      best_step: the step that must not be deleted.

    Raises:
      CheckpointError: if Orbax declines.
      WorkdirError: if this save or one before it cannot be written.
    """
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
    """The newest step that can be read and verified, or None if there is none.

    Steps that cannot are moved to `<directory>.damaged/`, with a warning.

    Args:
      template: pytree of `jax.ShapeDtypeStruct` with shardings.

    Raises:
      CheckpointError: if there are checkpoints but none is good, or they are
        of another model.
    """
    steps = self.steps()
    for step in reversed(steps):
      try:
        return self._read(step, template)
      except _Damaged as error:
        self._set_aside(step, str(error))
    if steps:
      raise CheckpointError(
        f"none of the checkpoints {steps} in {self._directory} can be read",
        f"they are kept in {self._damaged}; restore a copy, or start again in"
        " another --workdir",
      )
    return None

  def restore(self, step: int, template: PyTree) -> Restored:
    """One step, verified; the template may be a part of what was saved.

    Raises:
      CheckpointError: if it is missing, damaged or of another model.
    """
    try:
      return self._read(step, template)
    except _Damaged as error:
      raise CheckpointError(
        f"checkpoint {self._directory / str(step)} is damaged: {error}",
        "train on from the last good one with the command that made it",
      ) from error

  def steps(self) -> list[int]:
    """Steps that have a finished directory, whatever is in it."""
    if not self._directory.is_dir():
      return []
    names = [d.name for d in self._directory.iterdir() if d.is_dir()]
    return sorted(int(n) for n in names if n.isdecimal() and str(int(n)) == n)

  def progress(self, step: int) -> dict[str, Any]:
    """What `save` was given as `progress`."""
    try:
      return self._about(step)["progress"]
    except _Damaged as error:
      raise CheckpointError(
        f"checkpoint {self._directory / str(step)} is damaged: {error}",
        "run the training command again: it falls back to a good one",
      ) from error

  def check(self) -> None:
    """Raises what went wrong in a save that has ended; does not wait."""
    if (
      self._unchecked
      and self._manager is not None
      and not self._manager.is_saving_in_progress()
    ):
      self.wait()

  def wait(self) -> None:
    """Waits for the save in the background and raises what went wrong."""
    self._unchecked = False
    if self._manager is not None:
      with self._writing():
        self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and releases what Orbax holds."""
    if self._manager is not None:
      self.wait()
      self._manager.close()
      self._manager = None

  @contextlib.contextmanager
  def _writing(self):
    """Makes a failed save an error of the workdir, whoever raises what."""
    try:
      yield
    except UserError:
      raise
    except Exception as error:  # TensorStore's are ValueErrors
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
      temporary = self._directory / ".progress.tmp"
      temporary.write_text(json.dumps(about))
      temporary.replace(self._directory / str(step) / "about" / "metadata")

  @property
  def _damaged(self) -> Path:
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
        ),
      )
    return self._manager

  def _read(self, step, template) -> Restored:
    about = self._about(step)
    wanted = digest.flatten(template)
    self._check_model(step, about, wanted)
    try:
      arrays = ocp.PyTreeCheckpointer().restore(
        self._directory / str(step) / "state",
        ocp.args.PyTreeRestore(
          wanted,
          restore_args=checkpoint_utils.construct_restore_args(wanted),
          partial_restore=True,
        ),
      )
    except Exception as error:  # Orbax raises whatever its libraries raise
      why = _first_line(error)
      error.__traceback__ = None
      _collect_quietly()
      raise _Damaged(why) from None
    for path, array in arrays.items():
      if digest.leaf_sha256(path, array) != about["digests"][path]:
        raise _Damaged(f"{path} differs from its SHA-256")
    state = digest.unflatten(template, arrays)
    return Restored(step, state, about["progress"])

  def _about(self, step) -> dict[str, Any]:
    folder = self._directory / str(step)
    _refuse_links(folder)
    try:
      about = json.loads((folder / "about" / "metadata").read_text())
      if about["step"] != step:
        raise _Damaged(f"it says it is step {about['step']}")
      return about
    except (OSError, ValueError, KeyError, TypeError) as error:
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
        "use the workdir's own config.json, or another --workdir",
      )

  def _set_aside(self, step, why):
    source = self._directory / str(step)
    LOG.warning("Checkpoint %s is damaged: %s", source, why)
    if jax.process_index() == 0:
      self._damaged.mkdir(exist_ok=True)
      target = self._damaged / str(step)
      if target.exists():
        shutil.rmtree(target)
      source.rename(target)
      LOG.warning("Moved it to %s; trying the one before.", target)


class _Damaged(Exception):
  """This step cannot be used, the one before it perhaps can."""


class _LatestAndBest(checkpoint_managers.PreservationPolicy):
  """Keeps the newest steps and the best one."""

  best_step = -1

  def should_preserve(self, checkpoints, *, context):
    del context
    latest = {c.step for c in checkpoints[-KEEP_LATEST:]}
    return [c.step in latest or c.step == self.best_step for c in checkpoints]


def _not_a_traceback_of_orbax(record: logging.LogRecord) -> bool:
  """Each of its threads logs an error that `Checkpoints.wait` raises."""
  return not (record.exc_info and "orbax" in record.pathname)


def _first_line(error: Exception) -> str:
  """Of a message: TensorStore appends pages of its settings to its own."""
  return f"{type(error).__name__}: {error}".splitlines()[0][:160]


def _collect_quietly():
  """Drops what a failed read leaves: coroutines of a closed event loop.

  Python would print a traceback for each when it finds them.
  """
  hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
  try:
    gc.collect()
  finally:
    sys.unraisablehook = hook


def _refuse_links(folder: Path):
  """A link in a stranger's checkpoint would read any file of this host."""
  for path in folder.rglob("*"):
    mode = path.lstat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
      raise _Damaged(f"{path.relative_to(folder)} is neither file nor folder")
