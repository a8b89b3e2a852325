"""Tests of the reader of time series, their calendar and their windows."""

import datetime

import numpy as np
import pytest

from recurrent.data import missing, series
from recurrent.errors import ConfigError, DataError

NAN = np.nan


@pytest.fixture
def write(tmp_path):
  def write(*lines, encoding="utf-8"):
    path = tmp_path / "file.csv"
    path.write_bytes("\n".join(lines).encode(encoding))
    return path

  return write


def hours(count, start="2024-01-01T00:00"):
  first = datetime.datetime.fromisoformat(start)
  return [first + datetime.timedelta(hours=i) for i in range(count)]


def test_a_wide_file_has_a_series_a_column_and_empty_cells_are_missing(write):
  path = write("time,a,b", "2024-01-01,1,", "2024-01-02,NA,4", "2024-01-03,3,5")
  found = series.read_series(path)
  assert found.names == ("a", "b")
  np.testing.assert_array_equal(found.values, [[1, NAN, 3], [NAN, 4, 5]])
  assert found.times.astype(str)[1] == "2024-01-02T00:00:00"
  assert series.guess_season(found.times) == 7


def test_columns_are_targets_or_past_or_known(write):
  path = write("t,a,b,c", "0,1,2,3", "1,,5,6", "2,7,8,9")
  found = series.read_series(path, target=["a"], known_future=["c"])
  assert found.names == ("a",) and found.columns == (("b",), ("c",))
  np.testing.assert_array_equal(found.past[:, 0], [2, 5, 8])
  np.testing.assert_array_equal(found.known[:, 0], [3, 6, 9])


def test_rows_are_series_of_their_own_lengths(write):
  path = write('"id","v1","v2","v3"', "x,1,2,3", "y,4,,6,,", "z,7")
  found = series.read_series(path, layout="rows")
  assert found.names == ("x", "y", "z") and found.times is None
  wanted = ([1, 2, 3], [4, NAN, 6], [7])
  for got, want in zip(found.values, wanted, strict=True):
    np.testing.assert_array_equal(got, want)
  without = series.read_series(write("x,1,2", "y,3,4"), layout="rows")
  assert without.names == ("x", "y")


def test_rows_that_are_left_out_of_regular_times_are_missing(write):
  times = [t.isoformat(" ") for t in hours(6)]
  lines = [f"{t},{i}" for i, t in enumerate(times) if i not in (2, 3)]
  found = series.read_series(write("time,a", *lines))
  np.testing.assert_array_equal(found.values[0], [0, 1, NAN, NAN, 4, 5])
  assert len(found.times) == 6 and series.guess_season(found.times) == 24


def test_months_are_regular_though_their_lengths_differ(write):
  months = [f"2024-{m:02}-01" for m in (1, 2, 4, 5)]
  found = series.read_series(write("t,a", *(f"{m},1" for m in months)))
  assert len(found.times) == 5 and np.isnan(found.values[0][2])
  assert series.guess_season(found.times) == 12
  later = series.at_steps(found.times, np.array([12]))
  assert str(later[0]) == "2025-01-01T00:00:00"


def test_irregular_times_stay_as_they_are(write):
  found = series.read_series(write("t,a", "0,1", "1,2", "2.7,3", "9,4"))
  np.testing.assert_array_equal(found.times, [0, 1, 2.7, 9])


def test_times_with_an_offset_increase_through_the_end_of_summer_time(write):
  path = write("t,a", "2024-10-27T02:30+02:00,1", "2024-10-27T02:30+01:00,2")
  assert np.diff(series.read_series(path).times).astype(int) == 3600


BAD = {
  "ragged": (["t,a", "0,1", "1,2,3"], "line 3: 3 cells"),
  "no header": (["t,", "0,1"], "line 1: column 2 of the header has no name"),
  "duplicate column": (["t,a,a", "0,1,2"], "two columns are called 'a'"),
  "text": (["t,a", "0,1", "1,many"], "line 3, column 'a': 'many' is no number"),
  "thousands": (["t,a", '0,"1,234"'], "line 2, column 'a'.*thousands"),
  "inf": (["t,a", "0,1", "1,inf"], "line 3, column 'a': 'inf' is infinite"),
  "all missing": (["t,a,b", "0,1,", "1,2,"], "column 'b' has no value"),
  "descending": (["t,a", "1,1", "0,2"], "line 3, column 't': '0' is before"),
  "twice": (
    ["t,a", "2024-10-27T02:00,1", "2024-10-27T02:00,2"],
    "line 3, column 't'.*twice\n.*daylight saving",
  ),
  "no time": (["t,a", "2024-01-01,1", "soon,2"], "line 3.*'soon' is no time"),
  "empty time": (["t,a", "0,1", ",2"], "line 3, column 't': '' is no time"),
  "empty": ([""], "has no rows"),
  "only a time": (["t", "0", "1"], "no column to forecast"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_with_line_and_column(write, case):
  lines, message = BAD[case]
  with pytest.raises(DataError, match=message) as caught:
    series.read_series(write(*lines))
  assert "file.csv" in caught.value.cause and caught.value.exit_code == 3


BAD_ROWS = {
  "text": (["x,1,2", "y,3,four"], "line 2, column 3: 'four' is no number"),
  "duplicate": (["x,1,2", "x,3,4"], "line 2: a second series is called 'x'"),
  "all missing": (["x,1,2", "y,,"], "line 2: series 'y' has no value"),
  "inf": (["x,1,-inf"], "line 1, column 3: '-inf' is infinite"),
  "empty": ([""], "has no series"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_refused_with_line_and_column(write, case):
  lines, message = BAD_ROWS[case]
  with pytest.raises(DataError, match=message):
    series.read_series(write(*lines), layout="rows")


def test_a_covariate_that_ends_too_early_is_refused(write):
  path = write("t,a,k", "0,1,1", "1,2,1", "2,3,")
  with pytest.raises(DataError, match="line 4: 'k' of `known_future` has no"):
    series.read_series(path, known_future=["k"])


@pytest.mark.parametrize("option", ["target", "known_future"])
def test_columns_that_are_not_in_the_file_are_refused(write, option):
  with pytest.raises(ConfigError, match=f"`{option}=z`.*no such column.*'a'"):
    series.read_series(write("t,a", "0,1"), **{option: ["z"]})


def test_another_encoding_is_refused(write):
  path = write("t,ä", "0,1", encoding="latin1")
  with pytest.raises(DataError, match="is not UTF-8 at byte 2"):
    series.read_series(path)


def test_the_calendar_has_the_phase_of_each_cycle_longer_than_a_step():
  times = np.arange("2024-01-01", "2025-01-01", dtype="datetime64[h]")
  times = times.astype("datetime64[s]")
  waves = series.calendar(times, series.step_seconds(times))
  assert waves.shape == (len(times), 6)
  np.testing.assert_allclose(waves[:-24, :2], waves[24:, :2], atol=1e-5)
  np.testing.assert_allclose(waves[:-168, 2:4], waves[168:, 2:4], atol=1e-5)
  assert series.calendar(times[::24], 86400.0).shape[1] == 4
  assert series.calendar(times[::168], 7 * 86400.0).shape[1] == 2
  assert series.calendar(np.arange(5.0), 0.0).shape == (5, 0)


@pytest.mark.parametrize(
  "text, wanted",
  [
    ("80,10,10", (160, 180, 200)),
    ("90,5,5", (176, 188, 200)),  # at least a horizon each
    ("0,12,24", (164, 176, 200)),
    ("120,40,30", (120, 160, 190)),  # the rest is not used
  ],
)
def test_splits_are_shares_or_numbers_of_time_steps(text, wanted):
  assert series.split_ends(200, text, 12) == wanted


@pytest.mark.parametrize("text", ["120,60,40", "a,b,c", "60,20,10", "0,150,80"])
def test_splits_that_do_not_fit_are_refused(text):
  with pytest.raises((ConfigError, DataError), match="splits"):
    series.split_ends(200, text, 12)


def _windows(strategy="forward", **changes):
  rng = np.random.default_rng(0)
  inputs = [rng.normal(size=(n, 2)) for n in (30, 20)]
  inputs[0][5:7, 0] = NAN
  targets = [values[:, 0] for values in inputs]
  places = series.origins([(10, 30), (10, 20)], 8, 4)
  values = {
    "inputs": inputs,
    "targets": targets,
    "known": np.arange(40.0)[:, None],
    "times": np.arange(30.0),
    "places": places,
    "context": 8,
    "horizon": 4,
    "strategy": strategy,
    "statistics": [missing.measure([v]) for v in inputs],
    "numbers": np.array([1, 2]),
  }
  return series.Windows(**{**values, **changes})


def test_windows_are_what_is_before_and_after_their_origin():
  windows = _windows()
  assert len(windows) == (26 - 10 + 1) + (16 - 10 + 1)
  batch = windows.gather(np.arange(len(windows)))
  for row, (number, origin) in enumerate(windows.places):
    raw = windows.inputs[number][origin - 8 : origin].astype(np.float32)
    known = ~np.isnan(raw)
    np.testing.assert_array_equal(batch["inputs"][row][known], raw[known])
    np.testing.assert_array_equal(batch["observed"][row], known)
    after = windows.targets[number][origin : origin + 4]
    np.testing.assert_array_equal(batch["targets"][row], np.float32(after))
    span = np.arange(origin - 8, origin + 4)
    np.testing.assert_array_equal(batch["known"][row, :, 0], span)
    assert batch["series"][row] == number + 1
  assert np.isfinite(batch["inputs"]).all()


@pytest.mark.parametrize("strategy", missing.STRATEGIES)
def test_a_window_never_sees_what_is_after_its_origin(strategy):
  windows = _windows(strategy)
  row = np.array([2])
  number, origin = windows.places[2]
  changed = [values.copy() for values in windows.inputs]
  changed[number][origin:] = 1e6
  other = _windows(strategy, inputs=changed).gather(row)
  np.testing.assert_array_equal(other["inputs"], windows.gather(row)["inputs"])


def test_missing_targets_have_no_weight():
  windows = _windows()
  targets = [values.copy() for values in windows.targets]
  targets[0][12] = NAN
  batch = _windows(targets=targets).gather(np.array([0]))
  assert batch["target_mask"].tolist() == [[True, True, False, True]]
  assert batch["targets"][0, 2] == 0


def test_batches_contain_every_window_once():
  windows = _windows()
  batches = list(windows.in_batches(5))
  index = np.concatenate([batch["index"] for batch in batches])
  np.testing.assert_array_equal(index, np.arange(len(windows)))
  assert len(batches) == len(windows.in_batches(5)) == 5


def test_origins_are_a_stride_apart_and_end_with_the_last():
  places = series.origins([(20, 50)], 10, 5, stride=10)
  assert places[:, 1].tolist() == [25, 35, 45]


@pytest.mark.parametrize("blocks", [False, True])
def test_a_share_of_the_observed_values_is_removed(blocks):
  values = np.arange(1000.0)
  values[::10] = NAN
  rng = np.random.default_rng(0)
  found = series.remove(values, 0.3, blocks, rng)
  assert np.isnan(found).sum() == 100 + 270
  kept = ~np.isnan(found)
  np.testing.assert_array_equal(found[kept], values[kept])
  changes = np.diff(np.isnan(found).astype(int)) == 1
  assert (changes.sum() < 150) == blocks


def test_months_that_are_mostly_left_out_are_inserted(tmp_path):
  path = tmp_path / "months.csv"
  months = ["2020-01-01", "2020-03-01", "2020-05-01", "2020-06-01"]
  path.write_text("t,a\n" + "".join(f"{m},{i}\n" for i, m in enumerate(months)))
  found = series.read_series(path)
  assert [str(time)[:7] for time in found.times] == [
    f"2020-{month:02}" for month in range(1, 7)
  ]
  assert np.isnan(found.values[0]).tolist() == [
    False, True, False, True, False, False,
  ]  # fmt: skip
