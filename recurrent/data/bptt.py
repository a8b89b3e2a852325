"""Windows of a long text: for training on it, and for scoring all of it.

Both classes are pure functions of an index, so there is no position to save: a
resumed run asks for the batch of its next step. Both return global batches,
which are split over devices later.
"""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from recurrent.errors import DataError


@dataclasses.dataclass(frozen=True, eq=False)
class ContiguousBatches:
  """An endless sequence of batches for truncated back-propagation (BPTT).

  Each of the B rows reads one contiguous segment of the text. Window w of a
  pass over the text continues where window w - 1 ended, so the carry of one
  window is the initial carry of the next. At the first window of a pass
  `restart` is True: there the carry must be the initial carry again.

  A pass starts at an offset in [0, T) that is drawn from (seed, number of the
  pass), so that the text is cut at other places in each pass. All passes have
  the same number of windows. A pass leaves out fewer than (B + 1) T tokens, at
  the two ends of the text.

  Example:
    >>> import numpy as np
    >>> from recurrent import data
    >>> batches = data.ContiguousBatches(
    ...   np.arange(20), batch_size=2, seq_len=3
    ... )
    >>> first, second = batches[0], batches[1]
    >>> first["inputs"].tolist(), second["inputs"].tolist()
    ([[2, 3, 4], [8, 9, 10]], [[5, 6, 7], [11, 12, 13]])
    >>> first["restart"].tolist(), second["restart"].tolist()
    ([True, True], [False, False])

  Args:
    tokens: [N] integers, the ids of the text.
    batch_size: rows B.
    seq_len: time steps T of a window.
    seed: seed of the offsets, 0 or more.

  Raises:
    ValueError: if an argument is out of range.
    DataError: if the text has fewer than (B + 1) T tokens.

  Reference:
    Mikolov et al., "Recurrent neural network based language model", 2010;
    the rows: Zaremba, Sutskever & Vinyals, 2014.
  """

  tokens: np.ndarray
  batch_size: int
  seq_len: int
  seed: int = 0

  def __post_init__(self):
    _check_tokens(self.tokens)
    check_least("batch_size", self.batch_size, 1)
    check_least("seq_len", self.seq_len, 1)
    check_least("seed", self.seed, 0)
    if self.windows_per_pass < 1:
      size, rows, time_steps = len(self.tokens), self.batch_size, self.seq_len
      most_rows, most_time_steps = size // time_steps - 1, size // (rows + 1)
      fits = []
      if most_rows > 0:
        fits.append(f"batch_size <= {most_rows}")
      if most_time_steps > 0:
        fits.append(f"seq_len <= {most_time_steps}")
      raise DataError(
        f"the text has {size} tokens, and batch_size {rows} x seq_len"
        f" {time_steps} takes {(rows + 1) * time_steps}",
        " or ".join(["give a longer text", *fits]),
      )

  @property
  def windows_per_pass(self) -> int:
    """Training steps of one pass, from one reset to the next."""
    # T - 1 tokens for the largest offset, one for the last target.
    usable = len(self.tokens) - self.seq_len
    return usable // (self.batch_size * self.seq_len)

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    """Returns the batch of a training step.

    Args:
      step: number of the step, from 0, without a limit.

    Returns:
      `inputs` and `targets`, int32 [B, T], where a target is the token after
      its input; `restart`, bool [B], the same for all rows.
    """
    return self.rows(step, slice(None))

  def rows(self, step: int, which: slice) -> dict[str, np.ndarray]:
    """Returns some rows of the batch of a step, and reads no others."""
    check_least("step", step, 0)
    number, window = divmod(step, self.windows_per_pass)
    offset = np.random.default_rng((self.seed, number)).integers(self.seq_len)
    segment = self.windows_per_pass * self.seq_len
    rows = offset + segment * np.arange(self.batch_size)[which, None]
    time_steps = window * self.seq_len + np.arange(self.seq_len + 1)
    read = self.tokens[rows + time_steps].astype(np.int32)
    return {
      "inputs": read[:, :-1],
      "targets": read[:, 1:],
      "restart": np.full(len(rows), window == 0),
    }


@dataclasses.dataclass(frozen=True, eq=False)
class EvalStreams:
  """Windows that score every token of a text but the first exactly once.

  The targets are cut into R contiguous segments whose lengths differ by at most
  one. The segments are the rows of the batch and are read window by window; the
  carry of one window is the initial carry of the next. Before its segment a row
  reads the `warm_up` tokens that precede it, without scoring them, so that the
  carry has seen some context. R is a part of how the score is measured, and
  need not be the training batch size: another R gives a slightly other score.

  Example:
    >>> import numpy as np
    >>> from recurrent import data
    >>> streams = data.EvalStreams(np.arange(9), rows=2, seq_len=3)
    >>> [window["targets"].tolist() for window in streams]
    [[[1, 2, 3], [5, 6, 7]], [[4, 0, 0], [8, 0, 0]]]

  Args:
    tokens: [N] integers, the ids of the text.
    rows: number of segments R. Segments beyond N - 1 are empty.
    seq_len: time steps T of a window.
    warm_up: tokens read before a segment; fewer at the start of the text.

  Raises:
    ValueError: if an argument is out of range.
    DataError: if there are fewer than two tokens.
  """

  tokens: np.ndarray
  rows: int
  seq_len: int
  warm_up: int = 0

  def __post_init__(self):
    _check_tokens(self.tokens)
    check_least("rows", self.rows, 1)
    check_least("seq_len", self.seq_len, 1)
    check_least("warm_up", self.warm_up, 0)
    if len(self.tokens) < 2:
      raise DataError(
        f"a text of {len(self.tokens)} tokens has none to predict",
        "give a longer text",
      )

  @functools.cached_property
  def _segments(self) -> tuple[np.ndarray, np.ndarray]:
    """First and last (excluded) position of each row's segment, [R] each."""
    ends = np.arange(self.rows + 1) * (len(self.tokens) - 1) // self.rows
    return ends[:-1], ends[1:]

  @functools.cached_property
  def _lead(self) -> int:
    """Unscored time steps before the segments, limited by the last one."""
    return int(min(self.warm_up, self._segments[0][-1]))

  def __len__(self) -> int:
    starts, ends = self._segments
    return -(-(self._lead + int(max(ends - starts))) // self.seq_len)

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return (self[window] for window in range(len(self)))

  def __getitem__(self, window: int) -> dict[str, np.ndarray]:
    """Returns one window.

    Args:
      window: number of the window, in [0, len).

    Returns:
      `inputs` and `targets`, int32 [R, T]; `mask`, bool [R, T], True at real
      tokens; `weights`, float32 [R, T], 1 where the target is to be scored and
      0 elsewhere.

    Raises:
      IndexError: after the last window.
    """
    if not 0 <= window < len(self):
      raise IndexError(f"window {window} of {len(self)}")
    starts, ends = (bound[:, None] for bound in self._segments)
    time_steps = starts - self._lead + np.arange(self.seq_len)
    time_steps = time_steps + window * self.seq_len
    # An empty segment needs no warm-up.
    mask = (time_steps >= 0) & (time_steps < ends) & (starts < ends)
    time_steps = np.where(mask, time_steps, 0)
    return {
      "inputs": np.where(mask, self.tokens[time_steps], 0).astype(np.int32),
      "targets": np.where(mask, self.tokens[time_steps + 1], 0).astype(
        np.int32
      ),
      "mask": mask,
      "weights": (mask & (time_steps >= starts)).astype(np.float32),
    }


def _check_tokens(tokens: np.ndarray):
  if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
    raise ValueError(
      f"tokens must be [N] integers, got {tokens.dtype} {tokens.shape}"
    )


def check_least(name: str, value: int, least: int) -> None:
  """Raises ValueError if `value` is below `least`."""
  if value < least:
    raise ValueError(f"{name} must be {least} or more, got {value}")
