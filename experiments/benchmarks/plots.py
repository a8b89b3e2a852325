"""All medians as dots: a row of panels a suite, a panel a work."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks import problems

# Ours dark and filled, the others by colour and mark.
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


def draw(found: Sequence[dict[str, Any]], title: str, path: Path) -> None:
  """Writes a PNG.

  Args:
    found: rows, as `report.rows` gives them.
    title: device and versions.
    path: of the file.
  """
  import matplotlib  # noqa: PLC0415 - slow, and only wanted at the end

  matplotlib.use("agg")
  from matplotlib import pyplot as plt

  suites = [
    s for s in problems.WORKS if any(row["suite"] == s for row in found)
  ]
  shapes = {
    suite: list(
      dict.fromkeys(row["shape"] for row in found if row["suite"] == suite)
    )
    for suite in suites
  }
  decades = {
    suite: _decades(row["median_ms"] for row in found if row["suite"] == suite)
    for suite in suites
  }
  columns = max(len(problems.WORKS[suite]) for suite in suites)
  # Inches for a shape, and for what stands around a panel.
  heights = [0.42 * len(shapes[suite]) + 1.3 for suite in suites]
  figure = plt.figure(
    figsize=(4.2 * columns + 2.5, sum(heights) + 0.8), layout="constrained"
  )
  grid = figure.add_gridspec(len(suites), columns, height_ratios=heights)
  for line, suite in enumerate(suites):
    names = dict.fromkeys(
      row["contestant"] for row in found if row["suite"] == suite
    )
    # Beside each other within the line of a shape, in the legend's order.
    shift = {
      name: 0.6 * ((number + 0.5) / len(names) - 0.5)
      for number, name in enumerate(names)
    }
    for column, work in enumerate(problems.WORKS[suite]):
      axis = figure.add_subplot(grid[line, column])
      for name in reversed(names):
        chosen = [
          row
          for row in found
          if (row["suite"], row["work"], row["contestant"])
          == (suite, work, name)
        ]
        colour, marker = STYLES.get(name, ("tab:gray", "x"))
        axis.plot(
          [row["median_ms"] for row in chosen],
          [shapes[suite].index(row["shape"]) + shift[name] for row in chosen],
          linestyle="",
          color=colour,
          marker=marker,
          markersize=7 if name == "ours" else 5,
          alpha=1 if name == "ours" else 0.8,
          label=name,
        )
      axis.set_xscale("log")
      axis.set_xlim(*decades[suite])
      axis.xaxis.set_major_formatter("{x:g}")
      axis.tick_params(labelsize=8)
      axis.set_ylim(len(shapes[suite]) - 0.5, -0.5)
      axis.set_yticks(range(len(shapes[suite])))
      axis.set_yticklabels(shapes[suite] if column == 0 else [], fontsize=8)
      axis.set_title(f"{suite}: {work}", fontsize=10)
      axis.set_xlabel("median of a call, ms (log; left is faster)", fontsize=8)
      axis.grid(alpha=0.3, which="both", axis="x")
      for edge in range(1, len(shapes[suite])):
        axis.axhline(edge - 0.5, color="lightgray", linewidth=0.8)
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(
      handles[::-1],
      labels[::-1],
      loc="upper left",
      bbox_to_anchor=(1.01, 1),
      fontsize=8,
      frameon=False,
    )
  figure.suptitle(
    f"{title}\nB x T x D x H: rows, ticks, width of inputs and of a layer",
    fontsize=10,
  )
  figure.savefig(path, dpi=110)
  plt.close(figure)


def _decades(values):
  """The powers of ten around some values."""
  logs = np.log10(list(values))
  return 10 ** np.floor(logs.min() - 0.05), 10 ** np.ceil(logs.max() + 0.05)
