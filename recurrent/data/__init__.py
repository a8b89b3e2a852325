"""Data as NumPy arrays; nothing here knows of JAX, and nothing of TensorFlow.

  text.py        a text in three splits, from a file, from Python, from TFDS
  builders.py    TFDS builders of the texts that come with Python
  overlap.py     what of a split occurs word for word in another
  store.py       where prepared TFDS datasets are: the cache, the catalogue
  tokenizers.py  text to ids and back: bytes, characters, words, pieces
  bptt.py        windows of a long text, for training and for scoring
  examples.py    batches of separate examples, likewise

`builders` and `store` import TFDS, so they are imported only when needed.
"""

from recurrent.data.bptt import ContiguousBatches, EvalStreams
from recurrent.data.examples import EvalBatches, ExampleBatches
from recurrent.data.text import Corpus, load_text
from recurrent.data.tokenizers import (
  TOKENIZERS,
  ByteTokenizer,
  CharTokenizer,
  SentencePieceTokenizer,
  Tokenizer,
  WordTokenizer,
)

__all__ = [
  "TOKENIZERS",
  "ByteTokenizer",
  "CharTokenizer",
  "ContiguousBatches",
  "Corpus",
  "EvalBatches",
  "EvalStreams",
  "ExampleBatches",
  "SentencePieceTokenizer",
  "Tokenizer",
  "WordTokenizer",
  "load_text",
]
