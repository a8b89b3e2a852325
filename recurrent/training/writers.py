"""Where numbers go: `metrics.jsonl` first, TensorBoard beside it."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import tensorboardX


class MetricsWriter:
  """Appends one JSON object a line, each with its `step`.

  The file holds what the run computed and nothing about how fast, so that an
  interrupted run leaves the very same file as an unbroken one. Speed goes to
  TensorBoard.

  Args:
    workdir: where `metrics.jsonl` and the event files are.
    step: rows after this step, left by a run that died, are dropped.
  """

  def __init__(self, workdir: Path, step: int):
    self._file: Any = None
    if jax.process_index():
      return
    path = workdir / "metrics.jsonl"
    kept = [json.dumps(row) + "\n" for row in read(path) if row["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)
    self._file = path.open("a")
    self._board = tensorboardX.SummaryWriter(
      str(workdir), purge_step=step + 1, flush_secs=30
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def write(self, step: int, values: dict[str, float]) -> None:
    """One row; values that are not finite become null."""
    if self._file is None:
      return
    row = {
      key: value if math.isfinite(value) else None
      for key, value in values.items()
    }
    self._file.write(json.dumps({"step": step, **row}) + "\n")
    self._file.flush()
    self.board(step, values)

  def board(self, step: int, values: dict[str, float]) -> None:
    """To TensorBoard only."""
    if self._file is not None:
      for key, value in values.items():
        self._board.add_scalar(key, value, step)

  def text(self, step: int, name: str, text: str) -> None:
    """Text to TensorBoard."""
    if self._file is not None:
      self._board.add_text(name, text, step)

  def close(self) -> None:
    """Flushes and closes both."""
    if self._file is not None:
      self._file.close()
      self._board.close()


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
