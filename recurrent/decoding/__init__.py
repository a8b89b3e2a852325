"""Decoding with any function `(carry, token) -> (carry, logits)`."""

from recurrent.decoding import ctc
from recurrent.decoding.beam import NEVER, Beams, beam_search
from recurrent.decoding.packing import Packed, pack_model, pack_step
from recurrent.decoding.sampling import Sampled, Sampler, sample
from recurrent.decoding.scoring import score, score_tokens
from recurrent.decoding.streaming import BLOCK, Block, Stream, read, stream
from recurrent.kernels.packed import DTYPES

__all__ = [
  "BLOCK",
  "Beams",
  "Block",
  "DTYPES",
  "NEVER",
  "Packed",
  "Sampled",
  "Sampler",
  "Stream",
  "beam_search",
  "ctc",
  "pack_model",
  "pack_step",
  "read",
  "sample",
  "score",
  "score_tokens",
  "stream",
]
