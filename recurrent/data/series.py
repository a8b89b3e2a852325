"""Time series: their files, their calendar, and windows of them."""

import dataclasses
import datetime
import functools
import logging
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from recurrent.data import missing, splits
from recurrent.data.records import csv_rows, read_records
from recurrent.data.text import read_text
from recurrent.errors import ConfigError, DataError

LOG = logging.getLogger(__name__)

LAYOUTS = ("wide", "rows")
DATASETS = ("co2", "sunspots")

_MISSING = ("", "nan", "na", "n/a", "null", "none")
_DAY = 86400.0
_MONTH = 30.5 * _DAY
# Time steps in a season, by the length of a time step in seconds.
_SEASONS = {
  60.0: 60,
  600.0: 144,
  900.0: 96,
  1800.0: 48,
  3600.0: 24,
  _DAY: 7,
  7 * _DAY: 52,
}


class Series(NamedTuple):
  """One or more time series, and what is known beside them.

  Attributes:
    names: name of each series.
    values: each series [time], float64, NaN where missing. With `times` all
      have the length of `times`.
    times: [time], datetime64[s] or float64, ascending; None if unknown.
    past: [time, P] variables that are known up to now.
    known: [time, K] variables whose future is known, without gaps.
    columns: the names of the variables in `past`, and of those in `known`.
  """

  names: tuple[str, ...]
  values: tuple[np.ndarray, ...]
  times: np.ndarray | None
  past: np.ndarray
  known: np.ndarray
  columns: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


def read_series(
  path: str | os.PathLike,
  *,
  layout: str = "wide",
  target: Sequence[str] = (),
  known_future: Sequence[str] = (),
  flag: str = "csv_file",
) -> Series:
  """Reads series from a CSV file.

  With the layout "wide" the file has a header; its first column is the time,
  as dates (ISO 8601) or numbers that increase, and every other column is a
  series. If the times are regular but for left-out rows, these are inserted as
  missing. With "rows" each row is a name and the values of one series, of any
  length; a first row without numbers is a header. An empty cell, NA or NaN is a
  missing value.

  Args:
    path: path of the file, in UTF-8.
    layout: "wide" or "rows".
    target: the columns to forecast; empty: all but those of `known_future`.
      Other columns are read up to now.
    known_future: columns whose values are known for the time to be forecast.
    flag: name of the flag that gave the path, for messages.

  Raises:
    DataError: if the file is not as it should be; the message names its line
      and column.
    ConfigError: if a column is not in the file, or the layout has no columns.
  """
  if layout == "rows":
    if target or known_future:
      raise ConfigError(
        "`target` and `known_future` name columns, and `layout=rows` has none",
        "leave them out, or use `layout=wide`",
      )
    return _read_rows(path, flag)
  records = read_records(path, (), flag=flag)
  time_name, *columns = records[0].values
  for option, names in (("target", target), ("known_future", known_future)):
    for name in names:
      if name not in columns:
        raise ConfigError(
          f"`{option}={name}`: {path} has no such column, only"
          f" {', '.join(map(repr, columns)) or 'that of the time'}",
          "name columns of the header, separated by commas",
        )
  if both := set(target) & set(known_future):
    raise ConfigError(
      f"{min(both)!r} is in both `target` and `known_future`",
      "what is known need not be forecast: leave it out of one",
    )
  targets = list(target) or [c for c in columns if c not in known_future]
  if not targets:
    raise DataError(
      f"{path}, line 1: there is no column to forecast",
      "give a column for the time and one for each series",
    )
  times = _read_times(path, time_name, records)
  table = {
    name: np.array(
      [_number(path, r.line, name, r.values[name]) for r in records]
    )
    for name in columns
  }
  _check_known(path, table, known_future, records)
  times, table = _regular(times, table)
  for name in known_future:
    table[name] = _without_gaps(table[name])
  past = [c for c in columns if c not in {*targets, *known_future}]
  stack = lambda names: np.array([table[name] for name in names]).reshape(
    len(names), len(times)
  )
  for name in targets:
    _check_some(path, name, table[name])
  return Series(
    tuple(targets),
    tuple(table[name] for name in targets),
    times,
    stack(past).T,
    stack(known_future).T,
    (tuple(past), tuple(known_future)),
  )


def _without_gaps(values):
  """A series [time] in which the rows that were inserted are interpolated."""
  column = values[:, None]
  return missing.fill(column, "linear", missing.measure([column])).values[:, 0]


def _check_some(path, name, values):
  if np.isnan(values).all():
    raise DataError(
      f"{path}: column {name!r} has no value, only missing ones",
      "remove it, or name others as `target`",
    )


def _check_known(path, table, known_future, records):
  """Known covariates must reach as far as the file, and have no gap."""
  for name in known_future:
    gaps = np.flatnonzero(np.isnan(table[name]))
    if len(gaps):
      row = int(gaps[0])
      raise DataError(
        f"{path}, line {records[row].line}: {name!r} of `known_future` has no"
        " value there; it ends too early or has a gap",
        "give it a value in every row, also in those to be forecast",
      )


def _number(path, line, column, cell) -> float:
  text = str("" if cell is None else cell).strip()
  if text.lower() in _MISSING:
    return np.nan
  where = f"{path}, line {line}, column {column!r}: {text[:40]!r}"
  try:
    value = float(text)
  except ValueError as error:
    plain = text.replace(",", "").replace(" ", "").replace("'", "")
    try:
      float(plain)
    except ValueError:
      raise DataError(
        f"{where} is no number",
        "leave the cell empty if the value is missing; remove columns of text",
      ) from error
    raise DataError(
      f"{where} has a separator of thousands, or a decimal comma",
      f"write {plain!r}, or with a point before the decimals",
    ) from error
  if not np.isfinite(value):
    raise DataError(
      f"{where} is infinite", "leave the cell empty if the value is missing"
    )
  return value


def _is_value(cell) -> bool:
  return _real(cell) is not None or cell.lower() in (*_MISSING, "inf", "-inf")


def _read_rows(path, flag) -> Series:
  names: list[str] = []
  values = []
  for line, cells in csv_rows(path, read_text(path, flag=flag)):
    name, *rest = (cell.strip() for cell in cells)
    if not names and rest and not _is_value(rest[0]):
      continue  # the header
    while rest and not rest[-1]:
      rest.pop()
    if not name and not rest:
      continue
    if name in names:
      raise DataError(
        f"{path}, line {line}: a second series is called {name!r}",
        "rename or remove one of them",
      )
    row = [_number(path, line, i + 2, cell) for i, cell in enumerate(rest)]
    if np.isnan(row).all():
      raise DataError(
        f"{path}, line {line}: series {name!r} has no value",
        "give it some, or remove the row",
      )
    names.append(name)
    values.append(np.array(row))
  if not names:
    raise DataError(
      f"{path} has no series", "give one a row: its name, then its values"
    )
  longest = max(map(len, values))
  nothing = np.empty((longest, 0))
  return Series(tuple(names), tuple(values), None, nothing, nothing)


def _read_times(path, name, records) -> np.ndarray:
  """The times, which must increase; numbers if the first one is a number."""
  cells = [str(record.values[name]).strip() for record in records]
  parse = _real if _real(cells[0]) is not None else _date
  found = []
  for record, cell in zip(records, cells, strict=True):
    time = parse(cell)
    if time is None:
      raise DataError(
        f"{path}, line {record.line}, column {name!r}: {cell[:40]!r} is no"
        " time",
        "write all as dates, 2024-12-31 or 2024-12-31 23:00, or all as numbers",
      )
    found.append(time)
  times = np.array(found, np.float64 if parse is _real else "datetime64[s]")
  wrong = np.flatnonzero(times[1:] <= times[:-1])
  if len(wrong):
    row = int(wrong[0]) + 1
    where = f"{path}, line {records[row].line}, column {name!r}: {cells[row]!r}"
    if times[row] == times[row - 1]:
      raise DataError(
        f"{where} occurs twice",
        "give each time one row; at the end of daylight saving time an hour"
        " occurs twice: write times in UTC, or with their offset (+01:00)",
      )
    raise DataError(
      f"{where} is before the time in the row above",
      "sort the rows by time",
    )
  return times


def _real(cell) -> float | None:
  """A finite number, or None."""
  try:
    return float(cell) if np.isfinite(float(cell)) else None
  except ValueError:
    return None


def _date(cell) -> np.datetime64 | None:
  """A date, in UTC if it has an offset, or None."""
  try:
    found = datetime.datetime.fromisoformat(cell)
  except ValueError:
    try:
      return np.datetime64(cell, "s") if cell else None
    except ValueError:
      return None
  if found.tzinfo is not None:
    found = found.astimezone(datetime.UTC).replace(tzinfo=None)
  return np.datetime64(found, "s")


def _regular(times, table):
  """Inserts the rows that are left out of otherwise regular times."""
  if len(times) < 3:
    return times, table
  grid = _grid(times)
  if grid is None:
    LOG.info("The times are irregular; time steps are the rows of the file.")
    return times, table
  place, every = grid
  if len(every) == len(times):
    return times, table
  LOG.info(
    "%d of %d time steps have no row: they count as missing.",
    len(every) - len(times),
    len(every),
  )
  filled = {}
  for name, column in table.items():
    filled[name] = np.full(len(every), np.nan)
    filled[name][place] = column
  return every, filled


def _grid(times):
  """The index of each time on a regular grid, and the grid; or None."""
  months, step = _months(times), _common_gap(times)
  since = (times if months is None else months) - (
    times[0] if months is None else months[0]
  )
  place = since.astype(np.float64) / step
  whole = np.round(place).astype(int)
  if abs(place - whole).max() > 1e-3 or (np.diff(whole) < 1).any():
    return None
  if whole[-1] + 1 > 4 * len(times):
    return None
  return whole, at_steps(times, np.arange(whole[-1] + 1))


def _months(times) -> np.ndarray | None:
  """Months since year 0, if every time is on one day of its month."""
  if times.dtype.kind != "M":
    return None
  month = times.astype("datetime64[M]")
  if (
    len(np.unique(times - month)) > 1 or (np.diff(month).astype(int) < 1).any()
  ):
    return None
  return month.astype(np.int64)


def _common_gap(times) -> float:
  """The gap between times that are regular but for left-out rows.

  It is the least number of months if every time is on one day of its month, and
  otherwise the most frequent gap, in seconds for dates; 1 for a single time.
  """
  if len(times) < 2:
    return 1
  months = _months(times)
  if months is not None:
    return int(np.diff(months).min())
  gaps = np.round(np.diff(times).astype(np.float64), 9)
  values, counts = np.unique(gaps, return_counts=True)
  return values[np.argmax(counts)]


def step_seconds(times: np.ndarray | None) -> float:
  """Length of a time step in seconds; 0 for times that are no dates."""
  if times is None or times.dtype.kind != "M" or len(times) < 2:
    return 0.0
  months = _months(times)
  if months is not None:
    return float(np.median(np.diff(months))) * _MONTH
  return float(np.median(np.diff(times).astype(np.float64)))


def at_steps(times: np.ndarray, steps: np.ndarray) -> np.ndarray:
  """The times of any time steps, counted from the first of regular times."""
  step = _common_gap(times)
  if _months(times) is not None:
    month = times[0].astype("datetime64[M]")
    return (month + steps * step) + (times[0] - month)
  if times.dtype.kind == "M":
    return times[0] + (steps * step).astype("timedelta64[s]")
  return times[0] + steps * step


def guess_season(times: np.ndarray | None) -> int:
  """Time steps in a season: a day, week or year, by the length of a step."""
  seconds = step_seconds(times)
  if seconds >= _MONTH:
    return max(1, round(12 * _MONTH / seconds))
  return _SEASONS.get(seconds, 1)


def calendar(times: np.ndarray | None, seconds: float) -> np.ndarray:
  """Calendar features: the phase in the day, the week and the year.

  Args:
    times: [time]; None or numbers have no calendar.
    seconds: length of a time step. Cycles that are not longer than it are left
      out.

  Returns:
    [time, 2 C] float32: sine and cosine of each of C cycles.
  """
  if times is None:
    return np.empty((0, 0), np.float32)
  if times.dtype.kind != "M" or not seconds:
    return np.empty((len(times), 0), np.float32)
  since = lambda unit: (
    (times - times.astype(f"datetime64[{unit}]"))
    .astype("timedelta64[s]")
    .astype(np.float64)
  )
  week = (times.astype("datetime64[D]").astype(np.int64) + 3) % 7
  day = since("D") / _DAY
  cycles = [
    (_DAY, day),
    (7 * _DAY, (week + day) / 7),
    (12 * _MONTH, since("Y") / (365.2425 * _DAY)),
  ]
  phases = [phase for length, phase in cycles if length > 1.5 * seconds]
  waves = [f(2 * np.pi * phase) for phase in phases for f in (np.sin, np.cos)]
  return np.stack(waves, axis=-1).astype(np.float32)


def load_series(dataset: str) -> Series:
  """Loads a series that comes with statsmodels.

  Args:
    dataset: "co2", weekly CO2 at Mauna Loa, 1958 to 2001, with 59 gaps; or
      "sunspots", the yearly number of sunspots, 1700 to 2008.

  Raises:
    DataError: if statsmodels is not installed.
  """
  try:
    from statsmodels import datasets
  except ImportError as error:
    raise DataError(
      f"`dataset={dataset}` comes with statsmodels, which is not installed",
      "install it: pip install 'recurrent[forecasting]'; or give a `csv_file`",
    ) from error
  table = getattr(datasets, dataset).load_pandas().data
  if dataset == "co2":
    times = table.index.to_numpy().astype("datetime64[s]")
    values = table["co2"].to_numpy(np.float64)
  else:
    times = table["YEAR"].to_numpy(np.float64)
    values = table["SUNACTIVITY"].to_numpy(np.float64)
  nothing = np.empty((len(times), 0))
  return Series((dataset,), (values,), times, nothing, nothing)


def split_ends(length: int, text: str, horizon: int) -> tuple[int, int, int]:
  """Where the train, valid and test splits of a series end.

  Args:
    length: time steps of the series.
    text: three shares in percent, which sum to 100; valid and test then have at
      least `horizon` time steps. Or three numbers of time steps, of which the
      first may be 0 for all that the others leave; what is after them is not
      used.
    horizon: number of time steps of a forecast.

  Raises:
    ConfigError: if the text is neither.
    DataError: if the series is too short.
  """
  try:
    numbers = [float(part) for part in text.split(",")]
  except ValueError:
    numbers = []
  whole = len(numbers) == 3 and all(n.is_integer() and n >= 0 for n in numbers)
  if whole and (numbers[0] == 0 or sum(numbers) > 100) and numbers[2]:
    train, valid, test = map(int, numbers)
    train = train or length - valid - test
    ends = train, train + valid, train + valid + test
  else:
    train, valid, _ = splits.in_order(length, splits.parse_shares(text))
    valid = min(valid, length - horizon)
    ends = min(train, valid - horizon), valid, length
  if ends[0] < 1 or ends[2] > length:
    raise DataError(
      f"a series of {length} time steps cannot be divided by `splits={text}`"
      f" and `horizon={horizon}`",
      "give longer series, or a smaller `horizon`, or other `splits`",
    )
  return ends


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
  """Windows of series, each with the values to forecast after it.

  Args:
    inputs: each series [time, D], standardised, NaN where missing; the variable
      to forecast is the first.
    targets: each series [time] as it is scored, NaN where missing.
    known: [time, K] covariates, for all series; at least as long as the series.
    times: [time] in time steps, for all series.
    places: [N, 2] integers: the number of a series, and its origin, the first
      time step to forecast. All time steps before it are known.
    context: time steps L of a window.
    horizon: time steps H of a forecast; 0 to forecast what is not known yet.
    strategy: how missing inputs are filled, of `missing.STRATEGIES`.
    statistics: of the train split of each series.
    numbers: [series] the numbers that a network knows the series by.
  """

  inputs: Sequence[np.ndarray]
  targets: Sequence[np.ndarray]
  known: np.ndarray
  times: np.ndarray
  places: np.ndarray
  context: int
  horizon: int
  strategy: str
  statistics: Sequence[missing.Statistics]
  numbers: np.ndarray

  def __len__(self) -> int:
    return len(self.places)

  @functools.cached_property
  def _flat(self):
    starts = np.cumsum([0, *map(len, self.inputs)])
    return (
      starts,
      np.concatenate(self.inputs),
      np.concatenate([np.asarray(t) for t in self.targets]),
    )

  def gather(
    self, rows: np.ndarray, *, ahead: bool = True
  ) -> dict[str, np.ndarray]:
    """Returns windows as a batch.

    Args:
      rows: [B] indices of windows.
      ahead: whether the windows have targets; if not, these are missing.

    Returns:
      `inputs` [B, L, D] float32 without NaN, `observed` [B, L, D], `mask`
      [B, L], `known` [B, L + H, K], `times` [B, L] from 0, in units of the
      context, for which rates of decay are drawn, `series` [B],
      `targets` [B, H] with 0 where missing, `target_mask` [B, H], `weights`
      [B] and `index` [B].
    """
    starts, inputs, targets = self._flat
    series, origins = self.places[rows].T
    back = np.arange(-self.context, 0)
    before = origins[:, None] + back
    after = origins[:, None] + np.arange(self.horizon)
    values = inputs[starts[series][:, None] + before].astype(np.float32)
    observed = ~np.isnan(values)
    mask = np.ones(before.shape, bool)
    gaps = ~observed.all(axis=(1, 2))
    for number in np.unique(series[gaps]):
      here = np.flatnonzero(gaps & (series == number))
      filled = missing.fill(
        values[here], self.strategy, self.statistics[number]
      )
      values[here], mask[here] = filled.values, filled.keep
    wanted = np.full(after.shape, np.nan, np.float32)
    if ahead:
      wanted = targets[starts[series][:, None] + after].astype(np.float32)
    given = ~np.isnan(wanted)
    both = origins[:, None] + np.arange(-self.context, self.horizon)
    times = self.times[before]
    return {
      "inputs": values,
      "observed": observed,
      "mask": mask,
      "known": self.known[both].astype(np.float32),
      "times": ((times - times[:, :1]) / self.context).astype(np.float32),
      "series": self.numbers[series].astype(np.int32),
      "targets": np.where(given, wanted, np.float32(0)),
      "target_mask": given,
      "weights": np.ones(len(rows), np.float32),
      "index": np.asarray(rows, np.int32),
    }

  def in_batches(self, batch_size: int, *, ahead: bool = True) -> "EvalWindows":
    """All windows once, in order; `ahead` is that of `gather`."""
    return EvalWindows(self, batch_size, ahead)


@dataclasses.dataclass(frozen=True, eq=False)
class EvalWindows:
  """Batches that contain every window exactly once, in order.

  Args:
    windows: the windows.
    batch_size: rows of a batch; the last one may have fewer.
    ahead: whether the windows have targets.
  """

  windows: Windows
  batch_size: int
  ahead: bool = True

  def __len__(self) -> int:
    return -(-len(self.windows) // self.batch_size)

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(self.windows), self.batch_size):
      end = min(start + self.batch_size, len(self.windows))
      yield self.windows.gather(np.arange(start, end), ahead=self.ahead)


def origins(
  spans: Sequence[tuple[int, int]],
  context: int,
  horizon: int,
  stride: int = 1,
) -> np.ndarray:
  """The places [N, 2] of all windows whose forecasts are within spans.

  Args:
    spans: for each series the first time step to forecast, and the end.
    context: time steps that must be there before an origin.
    horizon: time steps of a forecast.
    stride: time steps between origins. The last possible origin is always one.
  """
  found = []
  for number, (start, end) in enumerate(spans):
    last = end - horizon
    places = np.arange(last, max(start, context) - 1, -stride)[::-1]
    found.append(np.stack([np.full_like(places, number), places], axis=-1))
  return np.concatenate(found)


def remove(
  values: np.ndarray, share: float, blocks: bool, rng: np.random.Generator
) -> np.ndarray:
  """Removes a share of the observed values of a series [time].

  Args:
    values: [time], NaN where missing already.
    share: share of the observed values to remove, from 0 to 1.
    blocks: whether they are removed in blocks of 5 to 50 time steps, instead of
      one by one.
    rng: draws what is removed.

  Returns:
    A copy with NaN at the removed values.
  """
  values = values.copy()
  seen = np.flatnonzero(~np.isnan(values))
  count = round(share * len(seen))
  if not blocks:
    values[rng.permutation(seen)[:count]] = np.nan
    return values
  left = count
  while left:
    start, length = rng.integers(len(seen)), rng.integers(5, 51)
    block = seen[start : start + length]
    block = block[~np.isnan(values[block])][:left]
    values[block] = np.nan
    left -= len(block)
  return values
