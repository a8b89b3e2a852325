"""Decoders over `(carry, token) -> (carry, logits)`; they know no model."""

from recurrent.decoding.packing import Packed, pack_step
from recurrent.decoding.sampling import Sampled, Sampler, sample
from recurrent.kernels.packed import DTYPES

__all__ = ["DTYPES", "Packed", "Sampled", "Sampler", "pack_step", "sample"]
