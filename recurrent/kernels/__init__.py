"""Loops worth writing by hand: functions of arrays that know no cell."""

import importlib

from recurrent.kernels import pallas
from recurrent.kernels.block_scan import block_scan
from recurrent.kernels.linear_scan import associative_scan, linear_scan
from recurrent.kernels.matrix_scan import matrix_scan

__all__ = [
  "associative_scan",
  "block_scan",
  "linear_scan",
  "matrix_scan",
  "mosaic_gpu",
  "pallas",
]


def __getattr__(name: str):
  # Pallas's Mosaic GPU takes a third of the time of `import recurrent`.
  if name == "mosaic_gpu":
    return importlib.import_module("recurrent.kernels.mosaic_gpu")
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
