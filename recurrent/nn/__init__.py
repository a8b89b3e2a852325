"""Flax NNX modules: cells with parameters, layers, dropout."""

from recurrent.nn.bidirectional import Bidirectional, sequence_ends
from recurrent.nn.dropout import dropout
from recurrent.nn.recurrent import Recurrent
from recurrent.nn.stack import Stack

__all__ = ["Bidirectional", "Recurrent", "Stack", "dropout", "sequence_ends"]
