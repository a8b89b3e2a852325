"""Recurrences and loops over time on plain arrays, independent of cells."""

import importlib

from recurrent.kernels.block_scan import block_scan
from recurrent.kernels.linear_scan import associative_scan, linear_scan
from recurrent.kernels.matrix_scan import matrix_scan

__all__ = [
  "associative_scan",
  "block_scan",
  "linear_scan",
  "matrix_scan",
  "gpu",
  "tpu",
]


def __getattr__(name: str):
  # Importing Pallas takes as long as the rest of this package, so the kernels
  # for accelerators are imported on first access.
  if name in ("gpu", "tpu"):
    return importlib.import_module(f"recurrent.kernels.{name}")
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
