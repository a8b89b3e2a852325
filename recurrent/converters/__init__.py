"""Converts weights of other libraries to parameters of cells, and back.

There is one file per library. The functions take and return NumPy arrays and
import none of the libraries. An array that is missing, left over or of another
shape is an error that names it; nothing is padded or guessed. Where a library
has two biases that are only ever added, a cell has their sum; the functions
that convert back put it into the first bias and make the second zero.
"""

from recurrent.converters.flax import from_flax, from_nnx, to_flax, to_nnx
from recurrent.converters.haiku import from_haiku, to_haiku
from recurrent.converters.keras import from_keras, to_keras
from recurrent.converters.torch import (
  from_cudnn,
  from_torch,
  to_cudnn,
  to_torch,
)

__all__ = [
  "from_cudnn",
  "from_flax",
  "from_haiku",
  "from_keras",
  "from_nnx",
  "from_torch",
  "to_cudnn",
  "to_flax",
  "to_haiku",
  "to_keras",
  "to_nnx",
  "to_torch",
]
