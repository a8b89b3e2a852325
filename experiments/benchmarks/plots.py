"""The plots: medians as dots, and how things grow. Matplotlib loads when used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks import problems

Row = dict[str, Any]

# Ours dark and filled, the others by colour and marker.
STYLES = {
  "ours": ("black", "o"),
  "ours:fused": ("dimgray", "o"),
  "ours:scan": ("darkgray", "o"),
  "ours:newton": ("tab:purple", "o"),
  "ours:bfloat16": ("dimgray", "o"),
  "ours:int8": ("darkgray", "o"),
  "ours:pallas": ("navy", "o"),
  "ours:mosaic_gpu": ("darkgreen", "o"),
  "ours:cudnn": ("darkred", "o"),
  "scan": ("tab:blue", "s"),
  "flax": ("tab:cyan", "^"),
  "haiku": ("tab:green", "v"),
  "equinox": ("tab:olive", "D"),
  "keras_jax": ("tab:brown", "<"),
  "keras_torch": ("tab:pink", ">"),
  "torch": ("tab:red", "P"),
  "associative": ("tab:orange", "D"),
  "step": ("tab:blue", "s"),
  "call": ("tab:cyan", "^"),
}
# Ours dark, the plain scan light; recomputation in colours.
COLOURS = {
  "auto": "black",
  "fused": "tab:blue",
  "scan": "tab:gray",
  "fused, gates again": "tab:orange",
  "fused, chunks of 64": "tab:green",
  "fused, chunks of the root": "tab:red",
  "fused, checkpoint around": "tab:purple",
}
MARKERS = "os^vDP<>"
# Part and axis of each panel that is lines, what x is, what y is.
PANELS = (
  ("time", "time_steps", "time steps T", "forward + backward, ms"),
  ("time", "batch", "rows B", "forward + backward, ms"),
  ("time", "features", "width H", "forward + backward, ms"),
  ("time", "layers", "layers", "forward + backward, ms"),
  ("devices", None, "devices or processes", "train step, ms"),
  ("memory", "time_steps", "time steps T", "temporaries, MiB"),
  ("compile", "time_steps", "time steps T", "to compile a gradient, s"),
)


def title(machine: dict[str, Any], about: str) -> str:
  """Processor, what else matters, and versions."""
  versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
  return f"{machine['processor']}, {about}; {versions}"


def medians(rows: Sequence[Row], heading: str, path: Path) -> None:
  """Draws all medians as dots: a row of panels a suite, a panel a work.

  Args:
    rows: as `report.rows` gives them.
    heading: device and versions.
    path: of the PNG.
  """
  suites = _groups(rows, "suite")
  columns = max(len(problems.WORKS[suite]) for suite in suites)
  shapes = {suite: list(_groups(suites[suite], "shape")) for suite in suites}
  # Inches for a shape, and for what stands around a panel.
  heights = [0.42 * len(names) + 1.3 for names in shapes.values()]
  figure = _figure((4.2 * columns + 2.5, sum(heights) + 0.8))
  grid = figure.add_gridspec(len(suites), columns, height_ratios=heights)
  for line, (suite, found) in enumerate(suites.items()):
    names = list(_groups(found, "implementation"))
    # Beside each other within the line of a shape, in the legend's order.
    shifts = 0.6 * ((np.arange(len(names)) + 0.5) / len(names) - 0.5)
    logs = np.log10([row["median_ms"] for row in found])
    for column, work in enumerate(problems.WORKS[suite]):
      panel = figure.add_subplot(grid[line, column])
      for name, shift in zip(names, shifts, strict=True):
        chosen = [
          row
          for row in found
          if (row["work"], row["implementation"]) == (work, name)
        ]
        colour, marker = STYLES.get(name, ("tab:gray", "x"))
        panel.plot(
          [row["median_ms"] for row in chosen],
          [shapes[suite].index(row["shape"]) + shift for row in chosen],
          linestyle="",
          color=colour,
          marker=marker,
          markersize=7 if name == "ours" else 5,
          alpha=1 if name == "ours" else 0.8,
          zorder=-names.index(name),
          label=name,
        )
      panel.set_xscale("log")
      panel.set_xlim(
        10 ** np.floor(logs.min() - 0.05), 10 ** np.ceil(logs.max() + 0.05)
      )
      panel.xaxis.set_major_formatter("{x:g}")
      panel.tick_params(labelsize=8)
      panel.set_ylim(len(shapes[suite]) - 0.5, -0.5)
      labels = shapes[suite] if column == 0 else []
      panel.set_yticks(range(len(shapes[suite])), labels or None, fontsize=8)
      panel.set_title(f"{suite}: {work}", fontsize=10)
      panel.set_xlabel("median of a call, ms (log; left is faster)", fontsize=8)
      panel.grid(alpha=0.3, which="both", axis="x")
      for edge in range(1, len(shapes[suite])):
        panel.axhline(edge - 0.5, color="lightgray", linewidth=0.8)
    panel.legend(
      loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False
    )
  _save(
    figure,
    f"{heading}\nB x T x D x H: rows, time steps, width of inputs and of a"
    " layer",
    path,
    dpi=110,
  )


def scaling(
  rows: Sequence[Row], exponents: Sequence[Row], heading: str, path: Path
) -> None:
  """Draws the parts of the suite scaling as small panels, log-log.

  Args:
    rows: as `scaling.measure` makes them.
    exponents: as `scaling.fits` gives them.
    heading: device and versions.
    path: of the PNG.
  """
  figure = _figure((20, 11))
  panels = figure.subplots(2, 4).flat
  for (part, axis, x_label, y_label), panel in zip(
    PANELS, panels, strict=False
  ):
    here = lambda row, part=part, axis=axis: (
      row["part"] == part and axis in (None, row["axis"])
    )
    found, lines = list(filter(here, rows)), list(filter(here, exponents))
    for number, fit in enumerate(lines):
      name = fit["implementation"]
      xs, ys, least, most = zip(
        *sorted(
          (row["x"], row["value"], row["least"], row["most"])
          for row in found
          if (row["axis"], row["implementation"]) == (fit["axis"], name)
        ),
        strict=True,
      )
      colour = COLOURS.get(name, f"C{number}")
      panel.plot(
        xs,
        ys,
        color=colour,
        marker=MARKERS[number % len(MARKERS)],
        markersize=5,
        label=f"{name}: {fit['all']:.2f}, {fit['last']:.2f}",
      )
      panel.fill_between(xs, least, most, color=colour, alpha=0.15)
    panel.set_xscale("log", base=2)
    points = sorted({row["x"] for row in found})
    panel.set_xticks(points, [f"{x:g}" for x in points])
    _finish(panel, x_label, y_label, f"{part} against {x_label}")
    low, high = panel.get_ylim()
    panel.yaxis.set_minor_formatter("{x:.2g}" if high < 10 * low else "")
    if lines:
      _legend_below(panel, 8, "exponent: all, last 3")
  _trade(
    figure.axes[len(PANELS)], [r for r in rows if r["part"] == "recompute"]
  )
  _save(
    figure,
    f"{heading}\nmedians; the shade goes from the least to the most",
    path,
    dpi=80,
  )


def _trade(panel, rows):
  """Time against memory, relative to what keeps all, by "fused"."""
  for number, (shape, found) in enumerate(_groups(rows, "x").items()):
    one = next(r for r in found if r["implementation"] == "fused, kept")
    for row in found:
      name = row["implementation"]
      panel.plot(
        row["mib"] / one["mib"],
        row["value"] / one["value"],
        color=f"C{number}",
        marker=MARKERS[("kept" not in name) + 2 * ("chunks" in name)],
        fillstyle="full" if name.startswith("auto") else "none",
        linestyle="",
        label=f"{shape}: {name}",
      )
  panel.set_xscale("log")
  _finish(
    panel,
    "temporaries, fused with all kept = 1",
    "forward + backward, fused with all kept = 1",
    "time against memory, B x T x H",
  )
  for axis in (panel.xaxis, panel.yaxis):
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("{x:g}")
  panel.tick_params(which="both", labelsize=7)
  _legend_below(panel, 6, "B x T x H: method, what is kept")


def _finish(panel, x_label, y_label, heading):
  panel.set_yscale("log")
  panel.yaxis.set_major_formatter("{x:g}")
  panel.tick_params(axis="y", which="minor", labelsize=7)
  panel.grid(alpha=0.3, which="both")
  panel.set_xlabel(x_label)
  panel.set_ylabel(y_label)
  panel.set_title(heading, fontsize=11)


def _legend_below(panel, size, heading):
  """Below the panel, where it hides no point."""
  panel.legend(
    loc="upper center",
    bbox_to_anchor=(0.5, -0.13),
    ncols=2,
    fontsize=size,
    title=heading,
    title_fontsize=size,
    frameon=False,
  )


def _groups(rows, key) -> dict[str, list[Row]]:
  """The rows by one of their values, in the order of its first row."""
  found: dict[str, list[Row]] = {}
  for row in rows:
    found.setdefault(row[key], []).append(row)
  return found


def _figure(size):
  from matplotlib.figure import Figure  # noqa: PLC0415 - slow to load

  return Figure(figsize=size, layout="constrained")


def _save(figure, heading, path, dpi):
  figure.suptitle(heading, fontsize=11)
  figure.savefig(path, dpi=dpi)
