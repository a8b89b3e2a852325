"""Writes metrics to `metrics.jsonl` and to TensorBoard."""

import contextlib
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from tensorboardX import record_writer, summary
from tensorboardX.proto import event_pb2

from recurrent import files


class MetricsWriter:
  """Appends rows to `metrics.jsonl`, one JSON object a line with its `step`.

  The file contains the computed values and no speeds, so that an interrupted
  and resumed run leaves the same file as an uninterrupted one. Speeds are
  written to TensorBoard only.

  Args:
    workdir: directory of `metrics.jsonl` and of TensorBoard's event files.
    step: number of the step at which the run resumes; 0 for a new run.
    keep: predicate on the rows that the file already has. Rows that were
      written after the checkpoint from which the run resumes must not be kept,
      since they will be written again. By default the rows up to `step` are
      kept.
  """

  def __init__(
    self,
    workdir: Path,
    step: int,
    keep: Callable[[dict[str, Any]], bool] | None = None,
  ):
    self._file: Any = None
    if jax.process_index():
      return
    path = workdir / "metrics.jsonl"
    keep = keep or (lambda row: row["step"] <= step)
    kept = [json.dumps(row) + "\n" for row in read(path) if keep(row)]
    files.write_text(path, "".join(kept))
    self._file = path.open("a")
    # Not SummaryWriter: on a full disk its thread dies, and then its queue
    # blocks for ever.
    name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
    self._board = record_writer.RecordWriter(str(workdir / name))
    self._event(0, file_version="brain.Event:2")
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._event(step + 1, session_log=start)

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    # After an error of the disk, flushing at the close fails again.
    expected = [OSError] * (kind is not None)
    if self._file is not None:
      for file in (self._file, self._board):
        with contextlib.suppress(*expected):
          file.close()

  def write(self, step: int, values: dict[str, Any]) -> None:
    """Writes one row to both; numbers that are not finite become null."""
    if self._file is None:
      return
    self._file.write(files.to_json({"step": step, **values}) + "\n")
    self._file.flush()
    self.board(step, values)

  def board(self, step: int, values: dict[str, Any]) -> None:
    """Writes the numbers among the values to TensorBoard only."""
    if self._file is not None:
      for key, value in values.items():
        if isinstance(value, int | float):
          self._event(step, summary=summary.scalar(key, value))
      self._board.flush()

  def text(self, step: int, name: str, text: str) -> None:
    """Writes a text to TensorBoard."""
    if self._file is not None:
      self._event(step, summary=summary.text(name, text))
      self._board.flush()

  def close(self) -> None:
    """Flushes and closes both files."""
    self.__exit__(None)

  def _event(self, step, **content):
    event = event_pb2.Event(wall_time=time.time(), step=step, **content)
    self._board.write(event.SerializeToString())


def read(path: Path) -> list[dict[str, Any]]:
  """The rows of a `metrics.jsonl`; a last line cut short is left out."""
  if not path.exists():
    return []
  rows = []
  for line in path.read_text().splitlines():
    try:
      rows.append(json.loads(line))
    except ValueError:
      break
  return rows
