"""Forecasting, from a command line to a result and to forecasts of new data."""

import json
import math

import jax
import numpy as np
import pytest

from experiments import evaluate, forecasting, predict
from recurrent import data
from tests.experiments.scripts import call, refused, result, rows

SMALL = (
  "--features=8",
  "--batch_size=8",
  "--steps=6",
  "--log_every=3",
  "--eval_every=3",
  "--context=12",
  "--horizon=6",
  "--season=4",
  "--eval_stride=5",
  "--schedule=constant",
)


@pytest.fixture(scope="session")
def csv_file(tmp_path_factory):
  """Two series with gaps, one covariate, and six rows to be forecast."""
  path = tmp_path_factory.mktemp("series") / "days.csv"
  rng = np.random.default_rng(0)
  days = np.arange("2024-01-01", "2024-07-25", dtype="datetime64[D]")
  t = np.arange(len(days))
  values = np.sin(np.pi * t / 2)[:, None] + rng.normal(size=(len(t), 2)) / 9
  lines = ["day,a,b,holiday"]
  for row, day in enumerate(days):
    cells = [f"{x:.4f}" for x in values[row]]
    if row >= len(days) - 6:
      cells = ["", ""]
    elif row % 13 == 5:
      cells[row % 2] = ""
    lines.append(",".join([str(day), *cells, str(int(row % 7 == 0))]))
  path.write_text("\n".join(lines) + "\n")
  return path


def train(capsys, workdir, *flags):
  assert call(forecasting, f"--workdir={workdir}", *SMALL, *flags) == 0
  return result(capsys.readouterr().out)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, csv_file):
  """The workdir of a run that several tests look at."""
  workdir = tmp_path_factory.mktemp("forecasting") / "run"
  flags = (f"--csv_file={csv_file}", "--known_future=holiday")
  with (
    jax.numpy_dtype_promotion("standard"),
    jax.numpy_rank_promotion("allow"),
  ):
    assert call(forecasting, f"--workdir={workdir}", *SMALL, *flags) == 0
  return workdir


def test_a_run_leaves_what_the_contract_names(trained):
  found = json.loads((trained / "result.json").read_text())
  keys = (
    "test_mae test_mse test_smape test_mase test_coverage test_crps test_owa"
    " test_mae_naive test_mae_seasonal_naive test_mae_seasonal_naive_drift"
    " test_mae_linear"
  ).split()
  assert found["horizon"] == 6
  assert all(math.isfinite(found[key]) for key in keys)
  assert "test_mae_holt_winters" in found
  assert 0 <= found["test_coverage"] <= 1
  assert {row["step"] for row in rows(trained)} == {3, 6}
  assert (trained / "figures" / "forecast.png").read_bytes()[:4] == b"\x89PNG"


def test_predict_forecasts_what_comes_after_the_last_value(
  trained, csv_file, tmp_path, capsys
):
  output = tmp_path / "out.jsonl"
  flags = (f"--workdir={trained}", f"--input={csv_file}", f"--output={output}")
  assert call(predict, *flags) == 0
  found = [json.loads(line) for line in output.read_text().splitlines()]
  assert [row["series"] for row in found] == ["a", "b"]
  for row in found:
    assert row["times"][0] == "2024-07-19T00:00:00" and len(row["times"]) == 6
    quantiles = np.array([row["quantiles"][f"0.{i}"] for i in range(1, 10)])
    assert quantiles.shape == (9, 6) and (np.diff(quantiles, axis=0) >= 0).all()
    np.testing.assert_allclose(row["forecast"], row["quantiles"]["0.5"])


def test_a_forecast_needs_the_known_future(trained, csv_file, tmp_path, capsys):
  lines = csv_file.read_text().splitlines()
  short = tmp_path / "short.csv"
  short.write_text("\n".join(lines[:-3]))
  flags = (f"--workdir={trained}", f"--input={short}", "--output=/dev/null")
  message = refused(capsys, 3, predict, *flags)
  assert "known_future ends 3 time steps after" in message
  short.write_text("\n".join([lines[0], *lines[-12:]]))
  assert "6 time steps, and the network" in refused(capsys, 3, predict, *flags)


def test_evaluate_gives_the_result_again(trained, capsys):
  flags = (f"--workdir={trained}", "--split=test")
  assert call(evaluate, *flags) == 0
  found = result(capsys.readouterr().out)
  wanted = json.loads((trained / "result.json").read_text())
  assert found["test_mae"] == pytest.approx(wanted["test_mae"], rel=1e-5)


def test_a_resumed_run_ends_with_the_same_parameters(
  trained, tmp_path, capsys, csv_file
):
  flags = (f"--csv_file={csv_file}", "--known_future=holiday")
  first = train(capsys, tmp_path / "run", *flags, "--steps=3")
  again = train(capsys, tmp_path / "run", *flags)
  wanted = json.loads((trained / "result.json").read_text())
  assert first["step"] == 3
  assert again["params_sha256"] == wanted["params_sha256"]


@pytest.mark.parametrize(
  "flags",
  [
    ("--missing=model", "--decoding=recursive", "--head=gaussian"),
    ("--missing=decay", "--segment=1", "--head=point", "--target=a"),
    ("--cell=transformer", "--heads=2", "--segment=3", "--decoding=parallel"),
  ],
)
def test_every_kind_trains(tmp_path, capsys, csv_file, flags):
  flags = (f"--csv_file={csv_file}", "--steps=2", "--eval_every=2", *flags)
  assert math.isfinite(train(capsys, tmp_path, *flags)["test_mae"])


def test_rows_are_series_of_their_own(tmp_path, capsys):
  path = tmp_path / "rows.csv"
  rng = np.random.default_rng(0)
  lines = [
    ",".join([f"s{n}", *(f"{x:.3f}" for x in rng.normal(5, 1, length))])
    for n, length in enumerate((60, 45, 80))
  ]
  path.write_text("\n".join(lines))
  flags = (f"--csv_file={path}", "--layout=rows", "--splits=0,6,6")
  found = train(capsys, tmp_path / "run", *flags, "--steps=2")
  assert math.isfinite(found["test_owa"])
  # A series that was not in the training data is forecast too.
  path.write_text(lines[2].replace("s2", "new") + "\n" + lines[0])
  output = tmp_path / "out.jsonl"
  flags = f"--workdir={tmp_path / 'run'}", f"--input={path}"
  assert call(predict, *flags, f"--output={output}") == 0
  names = [json.loads(x)["series"] for x in output.read_text().splitlines()]
  assert names == ["new", "s0"]


def test_the_network_learns_what_repeats(tmp_path, capsys, csv_file):
  flags = (f"--csv_file={csv_file}", "--steps=200", "--eval_every=200")
  flags = (*flags, "--learning_rate=0.01", "--ema=0", "--normalization=none")
  flags = (*flags, "--output_dropout=0", "--segment=1", "--decoding=direct")
  found = train(capsys, tmp_path, *flags, "--features=16", "--head=point")
  assert found["test_mae"] < 0.3 < found["test_mae_naive"]


def test_removed_values_are_scored_and_not_read(csv_file):
  given = {"csv_file": str(csv_file), "season": 4, "horizon": 6, "context": 12}
  config = lambda **more: forecasting.Config(workdir="unused", **given, **more)
  whole, less = (
    forecasting.make_task(config(remove=remove)) for remove in (0.0, 30.0)
  )
  one, other = (list(task.splits["test"])[0] for task in (whole, less))
  assert (one["target_mask"] == other["target_mask"]).all()
  share = other["observed"].mean() / one["observed"].mean()
  assert 0.6 < share < 0.8


@pytest.mark.several_devices
def test_results_are_those_of_one_device(tmp_path, capsys, csv_file):
  flags = (f"--csv_file={csv_file}", "--season=4")
  one, many = (
    train(capsys, tmp_path / str(n), *flags, f"--devices={n}") for n in (1, 8)
  )
  for key in ("valid_mae", "test_mae", "test_coverage", "test_forecast_loss"):
    assert one[key] == pytest.approx(many[key], rel=1e-4), key


BAD = {
  "no column": (2, ("--target=z",), None),
  "both": (2, ("--target=a", "--known_future=a"), None),
  "columns of rows": (2, ("--layout=rows", "--target=a"), None),
  "segment": (2, ("--segment=5",), None),
  "segments that decay": (2, ("--missing=decay", "--segment=2"), None),
  "splits": (2, ("--splits=50,50,50.5",), None),
  "idle flag": (2, ("--point_loss=mse",), None),
  "short series": (3, ("--context=500",), None),
  "no file": (3, (), "missing"),
  "ragged": (3, (), "t,a\n0,1,2\n"),
  "text": (3, (), "t,a\n0,x\n"),
  "not increasing": (3, (), "t,a\n1,1\n0,1\n"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_its_exit_code(
  tmp_path, capsys, csv_file, case
):
  code, flags, content = BAD[case]
  path = csv_file
  if content:
    path = tmp_path / "bad.csv"
    if content != "missing":
      path.write_text(content)
  flags = (f"--workdir={tmp_path / 'run'}", f"--csv_file={path}", *flags)
  small = [f for f in SMALL if f.split("=")[0] not in str(flags)]
  refused(capsys, code, forecasting, *small, *flags)
  assert not (tmp_path / "run").exists()


def test_the_default_data_come_with_statsmodels(capsys):
  pytest.importorskip("statsmodels")
  for name, length, gaps in (("co2", 2284, 59), ("sunspots", 309, 0)):
    found = data.series.load_series(name)
    assert len(found.values[0]) == length
    assert np.isnan(found.values[0]).sum() == gaps
