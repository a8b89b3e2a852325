"""Draws the plots: medians of implementations, and growth with the size."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks import problems
from experiments.benchmarks.implementations import IMPLEMENTATIONS

Row = dict[str, Any]

# "auto" is black and the plain scan is grey; recomputation has colours.
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
# Part and axis of each panel with lines, and the labels of x and y.
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
  """A heading: processor, further facts, and versions of the libraries."""
  versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
  return f"{machine['processor']}, {about}; {versions}"


def medians(rows: Sequence[Row], heading: str, path: Path) -> None:
  """Draws medians as dots: a row of panels per suite, a panel per work.

  Args:
    rows: rows from `report.rows`.
    heading: device and versions.
    path: path of the PNG file to write.
  """
  suites = _groups(rows, "suite")
  columns = max(len(problems.WORKS[suite]) for suite in suites)
  shapes = {suite: list(_groups(suites[suite], "shape")) for suite in suites}
  # Inches for each shape, and for the labels around a panel.
  heights = [0.42 * len(names) + 1.3 for names in shapes.values()]
  figure = _figure((4.2 * columns + 2.5, sum(heights) + 0.8))
  grid = figure.add_gridspec(len(suites), columns, height_ratios=heights)
  for line, (suite, found) in enumerate(suites.items()):
    edge = len(shapes[suite]) - 0.5
    names = list(_groups(found, "implementation"))
    logs = np.log10([row["median_ms"] for row in found])
    limits = 10 ** np.array(
      [np.floor(logs.min() - 0.05), np.ceil(logs.max() + 0.05)]
    )
    for column, work in enumerate(problems.WORKS[suite]):
      panel = figure.add_subplot(grid[line, column])
      here = _groups([r for r in found if r["work"] == work], "implementation")
      for number, name in enumerate(names):
        chosen = here.get(name, [])
        # The dots of a shape are shifted, in the order of the legend, so that
        # they do not hide each other.
        shift = 0.6 * ((number + 0.5) / len(names) - 0.5)
        colour, marker = _style(name)
        panel.plot(
          [row["median_ms"] for row in chosen],
          [shapes[suite].index(row["shape"]) + shift for row in chosen],
          linestyle="",
          color=colour,
          marker=marker,
          markersize=7 if name == "ours" else 5,
          alpha=1 if name == "ours" else 0.8,
          zorder=3 - number / len(names),
          label=name,
        )
      panel.set(xscale="log", xlim=limits, ylim=(edge, -0.5))
      panel.set_title(f"{suite}: {work}", fontsize=10)
      panel.set_xlabel("median of a call, ms (log; left is faster)", fontsize=8)
      labels = shapes[suite] if column == 0 else [""] * len(shapes[suite])
      panel.set_yticks(range(len(labels)), labels)
      panel.xaxis.set_major_formatter("{x:g}")
      panel.tick_params(labelsize=8)
      panel.grid(alpha=0.3, which="both", axis="x")
      panel.hlines(np.arange(0.5, edge), *limits, color="lightgray", lw=0.8)
    panel.legend(
      loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False
    )
  sizes = "B x T x D x H: rows, time steps, width of inputs and of a layer"
  figure.suptitle(f"{heading}\n{sizes}", fontsize=10)
  figure.savefig(path, dpi=110)


def scaling(
  rows: Sequence[Row], exponents: Sequence[Row], heading: str, path: Path
) -> None:
  """Draws the results of the suite scaling as panels with logarithmic axes.

  Args:
    rows: rows from `scaling.measure`.
    exponents: rows from `scaling.fits`.
    heading: device and versions.
    path: path of the PNG file to write.
  """
  figure = _figure((20, 11))
  *panels, last = figure.subplots(2, 4).flat
  for panel, (part, axis, x_label, y_label) in zip(panels, PANELS, strict=True):
    found, lines = (
      [r for r in of if r["part"] == part and axis in (None, r["axis"])]
      for of in (rows, exponents)
    )
    for number, fit in enumerate(lines):
      name = fit["implementation"]
      points = sorted(
        (row["x"], row["value"], row["least"], row["most"])
        for row in found
        if (row["axis"], row["implementation"]) == (fit["axis"], name)
      )
      xs, ys, least, most = zip(*points, strict=True)
      colour = COLOURS.get(name, f"C{number}")
      label = f"{name}: {fit['all']:.2f}, {fit['last']:.2f}"
      marker = MARKERS[number % len(MARKERS)]
      panel.plot(xs, ys, color=colour, marker=marker, ms=5, label=label)
      panel.fill_between(xs, least, most, color=colour, alpha=0.15)
    panel.set_xscale("log", base=2)
    time_steps = sorted({row["x"] for row in found})
    panel.set_xticks(time_steps, [f"{x:g}" for x in time_steps])
    _finish(panel, x_label, y_label, f"{part} against {x_label}")
    low, high = panel.get_ylim()
    panel.yaxis.set_minor_formatter("{x:.2g}" if high < 10 * low else "")
    if lines:
      _legend_below(panel, 8, "exponent: all, last 3")
  _trade(last, [row for row in rows if row["part"] == "recompute"])
  about = "medians; the shade goes from the least to the most"
  figure.suptitle(f"{heading}\n{about}", fontsize=11)
  figure.savefig(path, dpi=80)


def _trade(panel, rows):
  """Draws time against memory, relative to "fused" without recomputation."""
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
  panel.set(yscale="log", xlabel=x_label, ylabel=y_label)
  panel.yaxis.set_major_formatter("{x:g}")
  panel.tick_params(axis="y", which="minor", labelsize=7)
  panel.grid(alpha=0.3, which="both")
  panel.set_title(heading, fontsize=11)


def _legend_below(panel, size, heading):
  """Draws the legend below the panel, where it hides no point."""
  panel.legend(
    loc="upper center",
    bbox_to_anchor=(0.5, -0.13),
    ncols=2,
    fontsize=size,
    title=heading,
    title_fontsize=size,
    frameon=False,
  )


def _style(name):
  """Colour and marker of an implementation; ours are grey circles."""
  ours, others = [], []
  for known in dict.fromkeys(n for s in IMPLEMENTATIONS.values() for n in s):
    (ours if known.startswith("ours") else others).append(known)
  if name in ours:
    return str(0.8 * ours.index(name) / len(ours)), "o"
  number = others.index(name) if name in others else -1
  return f"C{number % 10}", MARKERS[1:][number % 7]


def _groups(rows, key) -> dict[str, list[Row]]:
  """Groups rows by the value of a key, in the order of first appearance."""
  found: dict[str, list[Row]] = {}
  for row in rows:
    found.setdefault(row[key], []).append(row)
  return found


def _figure(size):
  from matplotlib.figure import Figure  # noqa: PLC0415 - slow to load

  return Figure(figsize=size, layout="constrained")
