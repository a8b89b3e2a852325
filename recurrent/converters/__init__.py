"""Weights of other libraries as parameters of our cells, and back.

One file a library. All take and give NumPy arrays, need none of the libraries,
and name what is missing, left over or of another shape; nothing is padded or
guessed. Where a library has two biases that are only ever added, ours is their
sum, and the second is zero on the way back.
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
