"""Figures from what a run has written down."""

from pathlib import Path


def curves(metrics: Path, figures: Path) -> Path:
  """Draws every metric of a `metrics.jsonl` over the steps.

  Metrics of one kind, such as train_bpc and valid_bpc, share a panel.

  Args:
    metrics: the file.
    figures: folder for `curves.png`; created if it is missing.

  Returns:
    The path of the figure.
  """
  import matplotlib  # noqa: PLC0415 - slow, and only wanted at the end

  matplotlib.use("agg")
  from matplotlib import pyplot as plt

  from recurrent.training import writers

  series: dict[str, dict[str, tuple[list, list]]] = {}
  for row in writers.read(metrics):
    for name, value in row.items():
      split, _, kind = name.rpartition("_")
      if split not in ("train", "valid", "test"):
        split, kind = "", name
      if name == "step" or value is None:
        continue
      steps, values = series.setdefault(kind, {}).setdefault(split, ([], []))
      steps.append(row["step"])
      values.append(value)
  panels = [
    kind
    for kind, lines in series.items()
    if any(any(values) for _, values in lines.values())
  ]
  if not panels:
    panels = list(series)
  figure, axes = plt.subplots(
    1, len(panels), figsize=(4 * len(panels), 3.2), squeeze=False
  )
  for axis, kind in zip(axes[0], panels, strict=True):
    for split, (steps, values) in series[kind].items():
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
    axis.set_title(kind.replace("_", " "))
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
    if any(series[kind]):
      axis.legend()
  figure.tight_layout()
  figures.mkdir(exist_ok=True)
  path = figures / "curves.png"
  figure.savefig(path, dpi=120)
  plt.close(figure)
  return path
