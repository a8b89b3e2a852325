"""Loops worth writing by hand: functions of arrays that know no cell."""

from recurrent.kernels import mosaic_gpu, pallas
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
