"""Missing values: what stands in for the NaNs of real-valued sequences.

Statistics come from the train split only. What is filled by the neighbours of a
gap (`forward`, `linear`) is taken from the sequence given, so a caller that
must not see the future cuts the sequence before it fills it.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

CONSTANTS = ("mean", "median", "max", "mode")
# The network itself handles the gaps: it predicts its own missing inputs, or it
# is a GRU-D, which reads the mask and the elapsed times.
LEARNT = ("model", "decay")
STRATEGIES = ("drop", *CONSTANTS, "forward", "linear", *LEARNT)


class Statistics(NamedTuple):
  """Statistics of the observed values of each variable, each [D] float64.

  They are zero for a variable without any observed value.

  Attributes:
    mean: the mean.
    median: the median.
    max: the largest value.
    mode: the most frequent value, and the smallest of those if there are
      several.
    number: the number of observed values.
  """

  mean: np.ndarray
  median: np.ndarray
  max: np.ndarray
  mode: np.ndarray
  number: np.ndarray


class Filled(NamedTuple):
  """Sequences without NaN.

  Attributes:
    values: [time, D] or [N, time, D], with a number in place of every NaN.
    observed: bool, shape of `values`: True where the value was observed.
    keep: bool [time] or [N, time]: False at the time steps that "drop" leaves
      out. Give it to a network as its mask: a masked time step does not change
      the carry, which is the same as not being there.
  """

  values: np.ndarray
  observed: np.ndarray
  keep: np.ndarray


def measure(sequences: Iterable[np.ndarray]) -> Statistics:
  """Computes the statistics of each variable over the train split.

  Args:
    sequences: arrays [time, D] or [N, time, D] with NaN where a value is
      missing (or padding); one array [N, time, D] is iterated over as well.

  Raises:
    ValueError: if there is no sequence, or their numbers of variables differ.
  """
  rows = [np.asarray(x, np.float64).reshape(-1, x.shape[-1]) for x in sequences]
  if len({x.shape[-1] for x in rows}) != 1:
    raise ValueError(
      "sequences must be one or more, of one number of variables; got"
      f" {[x.shape for x in rows][:5]}"
    )
  found = []
  for column in np.concatenate(rows).T:
    seen = column[~np.isnan(column)]
    if not len(seen):
      found.append((0.0, 0.0, 0.0, 0.0, 0))
      continue
    values, counts = np.unique(seen, return_counts=True)
    mode = values[np.argmax(counts)]
    found.append((seen.mean(), np.median(seen), seen.max(), mode, len(seen)))
  return Statistics(*np.array(found).T)


def fill(
  values: np.ndarray,
  strategy: str,
  statistics: Statistics,
  *,
  times: np.ndarray | None = None,
) -> Filled:
  """Fills the missing values of sequences.

  The strategies are:

  - "mean", "median", "max", "mode": the statistic of the variable.
  - "forward": the last observed value of the variable; its mean where there is
    none before.
  - "linear": on the line between the observed values before and after the gap;
    the nearest observed value at the ends of the sequence; the mean where the
    variable is never observed in the sequence.
  - "drop": the time steps with a missing value are marked in `keep`. A variable
    that is never observed in the train split does not count, or nothing would
    be left. Their values are the mean.
  - "model", "decay": the mean. The network reads `observed`, and the elapsed
    times that `cells.elapsed_since_observed` computes from it.

  Example:
    >>> import numpy as np
    >>> from recurrent.data import missing
    >>> values = np.array([[np.nan], [2.0], [np.nan], [6.0], [np.nan]])
    >>> train = missing.measure([values])
    >>> for strategy in ("mean", "forward", "linear"):
    ...   print(missing.fill(values, strategy, train).values[:, 0])
    [4. 2. 4. 6. 4.]
    [4. 2. 2. 6. 6.]
    [2. 2. 4. 6. 6.]
    >>> missing.fill(values, "drop", train).keep
    array([False,  True, False,  True, False])

  Args:
    values: [time, D] or [N, time, D] floating-point, NaN where missing.
    strategy: one of `STRATEGIES`.
    statistics: from `measure`, of the train split.
    times: [time] or [N, time], ascending, for "linear" between irregular time
      steps; None: the time steps are one unit apart.

  Returns:
    The filled values, in the dtype of `values`.

  Raises:
    ValueError: if the strategy is unknown, or shapes do not fit.
  """
  values = np.asarray(values)
  if strategy not in STRATEGIES:
    raise ValueError(f"strategy must be one of {STRATEGIES}, got {strategy!r}")
  if values.ndim not in (2, 3) or values.shape[-1] != len(statistics.mean):
    raise ValueError(
      f"values must be [..., time, {len(statistics.mean)}], got {values.shape}"
    )
  if times is not None and np.shape(times) != values.shape[:-1]:
    raise ValueError(
      f"times must be {values.shape[:-1]}, got {np.shape(times)}"
    )
  observed = ~np.isnan(values)
  keep = np.ones(values.shape[:-1], bool)
  if strategy == "drop":
    keep = (observed | (statistics.number == 0)).all(axis=-1)
  if strategy in ("forward", "linear") and values.size:
    stand_in = _from_neighbours(
      values, observed, statistics.mean, times, strategy
    )
  else:
    name = strategy if strategy in CONSTANTS else "mean"
    stand_in = getattr(statistics, name)
  filled = np.where(observed, values, stand_in).astype(values.dtype)
  return Filled(filled, observed, keep)


def _from_neighbours(values, observed, otherwise, times, strategy):
  """The values [..., time, D] that "forward" and "linear" put into gaps."""
  length = values.shape[-2]
  steps = np.arange(length)[:, None]
  before = np.maximum.accumulate(np.where(observed, steps, -1), axis=-2)
  value_at = lambda place: np.take_along_axis(
    values, np.clip(place, 0, length - 1), axis=-2
  )
  last = value_at(before)
  if strategy == "forward":
    return np.where(before < 0, otherwise, last)
  after = np.where(observed, steps, length)
  after = np.minimum.accumulate(after[..., ::-1, :], axis=-2)[..., ::-1, :]
  following = value_at(after)
  here = np.broadcast_to(
    steps if times is None else np.asarray(times)[..., None], values.shape
  ).astype(np.float64)
  time_at = lambda place: np.take_along_axis(
    here, np.clip(place, 0, length - 1), axis=-2
  )
  start, end = time_at(before), time_at(after)
  # Two time steps at one time have no line between them.
  span = np.where(end > start, end - start, 1.0)
  line = last + (here - start) / span * (following - last)
  line = np.where(after == length, last, line)
  line = np.where(before < 0, following, line)
  return np.where((before < 0) & (after == length), otherwise, line)
