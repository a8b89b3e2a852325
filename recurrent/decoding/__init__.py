"""Sampling from any function `(carry, token) -> (carry, logits)`."""

from recurrent.decoding.packing import Packed, pack_step
from recurrent.decoding.sampling import Sampled, Sampler, sample
from recurrent.decoding.streaming import Block, read, stream
from recurrent.kernels.packed import DTYPES

__all__ = [
  "Block",
  "DTYPES",
  "Packed",
  "Sampled",
  "Sampler",
  "pack_step",
  "read",
  "sample",
  "stream",
]
