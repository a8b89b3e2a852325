"""The parts of the suite scaling as small panels, log-log."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Part and axis of each panel that is lines, what x is, what y is.
PANELS = (
  ("time", "ticks", "ticks T", "forward + backward, ms"),
  ("time", "batch", "rows B", "forward + backward, ms"),
  ("time", "features", "width H", "forward + backward, ms"),
  ("time", "layers", "layers", "forward + backward, ms"),
  ("devices", None, "devices or processes", "train step, ms"),
  ("memory", "ticks", "ticks T", "temporaries, MiB"),
  ("compile", "ticks", "ticks T", "to compile a gradient, s"),
)
COLUMNS = 4
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
MARKS = "os^vDP<>"


def draw(
  rows: Sequence[dict[str, Any]],
  exponents: Sequence[dict[str, Any]],
  title: str,
  path: Path,
) -> None:
  """Writes a PNG.

  Args:
    rows: as `scaling.measure` makes them.
    exponents: as `scaling.fits` gives them.
    title: device and versions.
    path: of the file.
  """
  import matplotlib  # noqa: PLC0415 - slow, and only wanted at the end

  matplotlib.use("agg")
  from matplotlib import pyplot as plt

  figure, grid = plt.subplots(
    2, COLUMNS, figsize=(5 * COLUMNS, 11), layout="constrained"
  )
  axes = list(grid.flat)
  for (part, axis, x_label, y_label), panel in zip(PANELS, axes, strict=False):
    lines = [
      fit
      for fit in exponents
      if fit["part"] == part and axis in (None, fit["axis"])
    ]
    for number, fit in enumerate(lines):
      points = sorted(
        (row["x"], row["value"], row["least"], row["most"])
        for row in rows
        if all(row[key] == fit[key] for key in ("part", "axis", "contestant"))
      )
      xs, ys, least, most = zip(*points, strict=True)
      name = fit["contestant"]
      colour = COLOURS.get(name, f"C{number}")
      panel.plot(
        xs,
        ys,
        color=colour,
        marker=MARKS[number % len(MARKS)],
        markersize=5,
        label=f"{name}: {fit['all']:.2f}, {fit['last']:.2f}",
      )
      panel.fill_between(xs, least, most, color=colour, alpha=0.15)
    _log_log(panel, sorted({row["x"] for row in _of(rows, part, axis)}))
    panel.set_xlabel(x_label)
    panel.set_ylabel(y_label)
    panel.set_title(f"{part} against {x_label}", fontsize=11)
    if lines:
      _legend(panel, 8, "exponent: all, last 3")
  _trade(axes[len(PANELS)], _of(rows, "recompute", None))
  figure.suptitle(
    f"{title}\nmedians; the shade goes from the least to the most", fontsize=11
  )
  figure.savefig(path, dpi=80)
  plt.close(figure)


def _of(rows, part, axis):
  """The rows of a panel."""
  return [r for r in rows if r["part"] == part and axis in (None, r["axis"])]


def _legend(panel, size, title):
  """Below the panel, where it hides no point."""
  panel.legend(
    loc="upper center",
    bbox_to_anchor=(0.5, -0.13),
    ncols=2,
    fontsize=size,
    title=title,
    title_fontsize=size,
    frameon=False,
  )


def _log_log(panel, points):
  """Ticks at the points, and no others."""
  panel.set_xscale("log", base=2)
  panel.set_yscale("log")
  panel.set_xticks(points, [f"{x:g}" for x in points])
  panel.yaxis.set_major_formatter("{x:g}")
  panel.yaxis.set_minor_formatter("")
  low, high = panel.get_ylim()
  if high < 10 * low:
    panel.yaxis.set_minor_formatter("{x:.2g}")
    panel.tick_params(axis="y", which="both", labelsize=7)
  panel.grid(alpha=0.3, which="both")


def _trade(panel, rows):
  """Time against memory, relative to what keeps all, by "fused"."""
  for number, shape in enumerate(dict.fromkeys(row["x"] for row in rows)):
    here = {r["contestant"]: r for r in rows if r["x"] == shape}
    one = here["fused, kept"]
    for name, found in here.items():
      x, y = found["mib"] / one["mib"], found["value"] / one["value"]
      filled = name.startswith("auto")
      panel.plot(
        x,
        y,
        color=f"C{number}",
        marker=MARKS[("kept" not in name) + 2 * ("chunks" in name)],
        fillstyle="full" if filled else "none",
        linestyle="",
        label=f"{shape}: {name}",
      )
  panel.set_xscale("log")
  panel.set_yscale("log")
  for axis in (panel.xaxis, panel.yaxis):
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("{x:g}")
  panel.tick_params(which="both", labelsize=7)
  panel.grid(alpha=0.3, which="both")
  panel.set_xlabel("temporaries, fused with all kept = 1")
  panel.set_ylabel("forward + backward, fused with all kept = 1")
  panel.set_title("time against memory, B x T x H", fontsize=11)
  _legend(panel, 6, "B x T x H: method, what is kept")
