"""Draws the learning curves of a run, and other plots of lines."""

from collections.abc import Mapping, Sequence
from pathlib import Path


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
  figure = Figure(figsize=(4 * len(panels), 3.2), layout="tight")
  axes = figure.subplots(1, len(panels), squeeze=False)[0]
  for axis, kind in zip(axes, panels, strict=True):
    for split, points in series[kind].items():
      steps, values = zip(*points, strict=True)
      marker = "o" if len(steps) < 30 else None
      axis.plot(steps, values, marker=marker, markersize=3, label=split or None)
      if split == "valid":
        best = min(values)
        axis.annotate(
          f"{best:.3f}",
          (steps[values.index(best)], best),
          textcoords="offset points",
          xytext=(0, 6),
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
