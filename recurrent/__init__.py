"""Recurrent networks in JAX: write a cell, get everything else.

`cells` holds the cells and `unroll` runs one over time; `nn` makes Flax NNX
modules of them. docs/architecture.md shows the levels of the house.
"""

from recurrent import cells
from recurrent.masking import length_mask, restart
from recurrent.setting import compile_for
from recurrent.trace import trace
from recurrent.unroll import METHODS, explain, newton, unroll
from recurrent.version import __version__

__all__ = [
  "METHODS",
  "__version__",
  "cells",
  "compile_for",
  "explain",
  "length_mask",
  "newton",
  "restart",
  "trace",
  "unroll",
]
