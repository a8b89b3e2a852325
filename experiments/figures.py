"""Draws figures of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

COLUMNS = 4  # panels side by side
# Beginnings of the names of metrics whose largest value is the best.
RISING = tuple(
  "accuracy auc f1 precision recall slot_f1 exact_match bleu chrf rouge".split()
)


def curves(metrics: Path, figures: Path) -> Path:
  """Draws every metric of a `metrics.jsonl` over the steps.

  Metrics of one kind, such as train_bpc and valid_bpc, share a panel.

  Args:
    metrics: path of the `metrics.jsonl`.
    figures: folder for `curves.png`; it is created if it is missing.

  Returns:
    The path of `curves.png`.
  """
  from matplotlib.figure import Figure  # noqa: PLC0415 - slow to load

  from recurrent.training import writers

  series: dict[str, dict[str, list[tuple]]] = {}
  for row in writers.read(metrics):
    step = row.pop("step")
    for name, value in row.items():
      split, _, kind = name.partition("_")
      if split not in ("train", "valid", "test"):
        split, kind = "", name
      if isinstance(value, int | float):
        lines = series.setdefault(kind, {})
        lines.setdefault(split, []).append((step, value))
  # A metric that is always zero is not drawn.
  telling = [
    kind
    for kind, lines in series.items()
    if any(value for points in lines.values() for _, value in points)
  ]
  panels = telling or list(series)
  columns = min(len(panels), COLUMNS)
  height = -(-len(panels) // columns)
  figure = Figure(figsize=(4 * columns, 3.2 * height), layout="tight")
  axes = figure.subplots(height, columns, squeeze=False).ravel()
  for axis in axes[len(panels) :]:
    axis.axis("off")
  for axis, kind in zip(axes[: len(panels)], panels, strict=True):
    for split, points in series[kind].items():
      steps, values = zip(*points, strict=True)
      marker = "o" if len(steps) < 30 else None
      axis.plot(steps, values, marker=marker, markersize=3, label=split or None)
      if split == "valid":
        rising = kind.startswith(RISING)
        best = (max if rising else min)(values)
        axis.annotate(
          f"{best:.3f}",
          (steps[values.index(best)], best),
          textcoords="offset points",
          xytext=(0, -12 if rising else 6),
          ha="center",
        )
    axis.set(title=kind.replace("_", " "), xlabel="step")
    axis.grid(alpha=0.3)
    if any(series[kind]):
      axis.legend()
  figures.mkdir(exist_ok=True)
  path = figures / "curves.png"
  figure.savefig(path, dpi=120)
  return path


class ForecastPanel(NamedTuple):
  """The data of one panel of the picture: a forecast and its history.

  Attributes:
    title: name of the series.
    times: [time] of history and horizon.
    values: [time] true values, NaN where missing.
    point: [H] forecast of the last H times.
    interval: [H, 2] lower and upper limit; None if there is none.
    baselines: other forecasts [H], by name.
  """

  title: str
  times: np.ndarray
  values: np.ndarray
  point: np.ndarray
  interval: np.ndarray | None
  baselines: Mapping[str, np.ndarray]


def forecasts(path: Path, panels: Sequence[ForecastPanel]) -> None:
  """Draws forecasts with their history, intervals and baselines.

  Args:
    path: the PNG to write.
    panels: what to draw, one below the other.
  """
  from matplotlib.figure import Figure  # noqa: PLC0415 - slow to load

  figure = Figure(figsize=(9, 1 + 3 * len(panels)), layout="tight")
  axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
  for axis, panel in zip(axes, panels, strict=True):
    ahead = panel.times[-len(panel.point) :]
    axis.plot(panel.times, panel.values, color="black", lw=1, label="true")
    for name, values in panel.baselines.items():
      axis.plot(ahead, values, lw=0.8, alpha=0.8, ls="--", label=name)
    if panel.interval is not None:
      low, high = panel.interval.T
      axis.fill_between(
        ahead, low, high, color="tab:red", alpha=0.2, lw=0, label="80 %"
      )
    axis.plot(ahead, panel.point, color="tab:red", lw=1.6, label="network")
    axis.axvline(ahead[0], color="grey", lw=0.8, ls=":")
    axis.set_title(panel.title)
    axis.grid(alpha=0.3)
    axis.legend(loc="upper left", fontsize=8)
  figure.savefig(path, dpi=120)


class AttentionMap(NamedTuple):
  """The attention of a sequence to its source.

  Attributes:
    weights: [T, S], the weight of each source token for each token.
    source: the S tokens of the source.
    target: the T tokens.
  """

  weights: np.ndarray
  source: Sequence[str]
  target: Sequence[str]


def attention(path: Path, maps: Sequence[AttentionMap]) -> None:
  """Draws attention weights, one map below the other.

  Characters that no installed font has are written as their code points.

  Args:
    path: the PNG to write.
    maps: what to draw.
  """
  from matplotlib.figure import Figure  # noqa: PLC0415 - slow to load

  from experiments import glyphs

  cell = 0.17  # inches
  rows = [len(each.target) for each in maps]
  width = max(len(each.source) for each in maps)
  tokens = [token for each in maps for token in (*each.source, *each.target)]
  labels = glyphs.Labels(tokens)
  style: Any = {"fontfamily": labels.fonts, "fontsize": 8}
  figure = Figure(
    figsize=(2 + cell * width, sum(1.2 + cell * row for row in rows)),
    layout="constrained",
  )
  axes = figure.subplots(len(maps), 1, squeeze=False, height_ratios=rows)
  for axis, each in zip(axes[:, 0], maps, strict=True):
    axis.imshow(each.weights, cmap="Blues", vmin=0)
    source, target = (
      [labels.show(token) for token in side]
      for side in (each.source, each.target)
    )
    turn = 90 if max(map(len, source)) > 2 else 0
    axis.set_xticks(range(len(source)), source, rotation=turn, **style)
    axis.set_yticks(range(len(target)), target, **style)
    axis.xaxis.tick_top()
  figure.savefig(path, dpi=120, bbox_inches="tight")


def confusion(counts: np.ndarray, classes: Sequence[str], path: Path) -> Path:
  """Draws a confusion matrix, coloured by the share of each row.

  Args:
    counts: [C, C] how many examples of class i were predicted as class j.
    classes: names of the classes.
    path: path of the picture to write.
  """
  from matplotlib.figure import Figure  # noqa: PLC0415 - slow to load

  size = len(classes)
  shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  side = min(12, 2.5 + 0.4 * size)
  figure = Figure(figsize=(side + 1, side), layout="tight")
  axis = figure.subplots()
  image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
  figure.colorbar(image, label="share of the class")
  named = range(0, size, -(-size // 40))
  names = [str(classes[i])[:24] for i in named]
  axis.set_xticks(named, names, rotation=90)
  axis.set_yticks(named, names)
  axis.set(xlabel="predicted", ylabel="true")
  if size <= 20:
    for (i, j), count in np.ndenumerate(counts):
      if count:
        axis.text(
          j,
          i,
          str(count),
          ha="center",
          va="center",
          fontsize=8,
          color="white" if shares[i, j] > 0.5 else "black",
        )
  figure.savefig(path, dpi=120)
  return path


def lines(
  path: Path,
  x: Sequence[float],
  panels: Mapping[str, Mapping[str, Sequence[float]]],
  label: str,
  mark: tuple[str, float],
) -> None:
  """Draws lines over a common axis, on which powers of two are labelled.

  Args:
    path: the PNG to write; its folder is created if it is missing.
    x: the places on the axis, above zero.
    panels: for each panel, the values of each line at these places.
    label: label of the axis.
    mark: name and place of a vertical line.
  """
  from matplotlib.figure import Figure  # noqa: PLC0415 - slow to load

  figure = Figure(figsize=(4 * len(panels), 3.2), layout="tight")
  axes = figure.subplots(1, len(panels), squeeze=False)[0]
  for axis, (title, series) in zip(axes, panels.items(), strict=True):
    for name, values in series.items():
      axis.plot(x, values, marker="o", markersize=3, label=name)
    axis.axvline(mark[1], color="grey", linestyle=":", label=mark[0])
    axis.set_xscale("log", base=2)
    axis.set_xticks(x, [f"{place:g}" for place in x], minor=False)
    axis.set_ylim(bottom=0)
    axis.set(title=title, xlabel=label)
    axis.grid(alpha=0.3)
    axis.legend()
  path.parent.mkdir(exist_ok=True)
  figure.savefig(path, dpi=120)


def transcript(
  path: Path,
  spectrum: np.ndarray,
  period: float,
  stacking: int,
  names: Sequence[str],
  probabilities: np.ndarray,
  texts: tuple[str, str],
) -> None:
  """Draws a spectrum, and below it which symbols a network heard in it.

  Args:
    path: the PNG to write.
    spectrum: [frames, bands]; those after the last time step are left out.
    period: seconds of a time step of the network.
    stacking: frames of a time step.
    names: name of each symbol; the first one is the blank.
    probabilities: [time, symbols].
    texts: the wanted transcript and that of the network.
  """
  from matplotlib.figure import Figure  # noqa: PLC0415 - slow to load

  figure = Figure(figsize=(12, 5), layout="tight")
  above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
  seconds = len(probabilities) * period
  above.imshow(
    spectrum[: len(probabilities) * stacking].T,
    origin="lower",
    aspect="auto",
    cmap="magma",
    extent=(0, seconds, 0, spectrum.shape[1]),
  )
  above.set(ylabel="mel band", title=f"wanted: {texts[0]}\nfound: {texts[1]}")
  times = (np.arange(len(probabilities)) + 0.5) * period
  below.plot(times, probabilities[:, 0], color="lightgrey", label="blank")
  best = probabilities.argmax(axis=1)
  for time, symbol, row in zip(times, best, probabilities, strict=True):
    if symbol:
      name = names[symbol].replace(" ", "\u2423")
      below.vlines(time, 0, row[symbol], color="tab:red")
      below.annotate(name, (time, row[symbol]), ha="center", va="bottom")
  below.set(
    xlim=(0, seconds), ylim=(0, 1.3), xlabel="seconds", ylabel="probability"
  )
  below.legend(loc="upper right")
  figure.savefig(path, dpi=120)
