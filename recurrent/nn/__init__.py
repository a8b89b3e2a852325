"""Flax NNX modules: recurrent layers, attention, pooling, dropout."""

from recurrent.nn.attention import (
  AdditiveAttention,
  Attention,
  Keys,
  LocalAttention,
  MultiHeadAttention,
  MultiplicativeAttention,
  Past,
  SelfAttention,
)
from recurrent.nn.bidirectional import Bidirectional, sequence_ends
from recurrent.nn.dropout import (
  drop_variables,
  dropout,
  embedding_dropout,
  word_dropout,
)
from recurrent.nn.imputation import Imputer
from recurrent.nn.layer import Layer, StepLayer
from recurrent.nn.pointwise import Affine, FeedForward, Norm
from recurrent.nn.pooling import (
  Pooling,
  pool_ends,
  pool_last,
  pool_max,
  pool_mean,
)
from recurrent.nn.recurrent import Recurrent
from recurrent.nn.residual import Residual
from recurrent.nn.stack import Stack
from recurrent.nn.transformer import (
  DecoderCarry,
  TransformerBlock,
  TransformerCarry,
  TransformerDecoderBlock,
  TransformerEncoderBlock,
)

__all__ = [
  "AdditiveAttention",
  "Affine",
  "Attention",
  "Bidirectional",
  "DecoderCarry",
  "FeedForward",
  "Imputer",
  "Keys",
  "Layer",
  "LocalAttention",
  "MultiHeadAttention",
  "MultiplicativeAttention",
  "Norm",
  "Past",
  "Pooling",
  "Recurrent",
  "Residual",
  "SelfAttention",
  "Stack",
  "StepLayer",
  "TransformerBlock",
  "TransformerCarry",
  "TransformerDecoderBlock",
  "TransformerEncoderBlock",
  "drop_variables",
  "dropout",
  "embedding_dropout",
  "pool_ends",
  "pool_last",
  "pool_max",
  "pool_mean",
  "sequence_ends",
  "word_dropout",
]
