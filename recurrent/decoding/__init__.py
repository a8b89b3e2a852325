"""Decoders over `(carry, token) -> (carry, logits)`; they know no model."""

from recurrent.decoding.sampling import Sampled, Sampler, sample

__all__ = ["Sampled", "Sampler", "sample"]
