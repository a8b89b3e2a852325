"""Datasets and batches as NumPy arrays, without JAX and without TensorFlow.

  text.py        loads a text in three splits: a file, or a TFDS dataset
  builders.py    TFDS builders of the texts that come with Python
  overlap.py     measures how much of a split occurs in another split
  store.py       finds and prepares TFDS datasets on disk
  tokenizers.py  text to ids and back: bytes, characters, words, pieces
  bptt.py        windows of a long text, for training and for scoring
  splits.py      train, valid and test of data that has no splits
  examples.py    batches of separate examples, for training and for scoring
  drawn.py       batches that are drawn, or changed, at random
  parallel.py    pairs of a source and a target text, and their vocabulary
  dates.py       dates of many languages, with their ISO 8601 form
  docstrings.py  bodies and summary lines of the installed packages' docstrings
  stored.py      tokens that stay on disk, for texts larger than the memory
  workers.py     batches that other processes read ahead
  records.py     rows of CSV files and of JSON lines
  series.py      time series: their files, calendar, splits and windows
  labelled.py    sequences with labels, and the files they are read from
  labelled_sets.py  labelled images, texts and sounds from scikit-learn and TFDS
  encoding.py    labelled sequences as examples: tokens, classes, values
  words.py       preparation of words, and word vectors trained before
  missing.py     fills missing values by statistics or by neighbours
  wav.py speech.py  WAV files; sounds with transcripts, and strings of them
  morse.py       messages in Morse code, as sounds
  curriculum.py  batches in stages, one after another
  synthetic.py   tasks that test memory: copy, adding, parity, recall, ...

`builders` and `store` import TFDS, so they are imported only when needed.
"""

from recurrent.data.bptt import ContiguousBatches, EvalStreams
from recurrent.data.curriculum import StagedBatches
from recurrent.data.drawn import (
  AugmentedBatches,
  DrawnBatches,
  OwnRows,
  rows_of,
)
from recurrent.data.examples import EvalBatches, ExampleBatches
from recurrent.data.stored import (
  FileTokens,
  RecordTokens,
  split_file,
  write_tokens,
)
from recurrent.data.text import Corpus, load_text, read_text
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
  "AugmentedBatches",
  "ByteTokenizer",
  "CharTokenizer",
  "ContiguousBatches",
  "Corpus",
  "DrawnBatches",
  "EvalBatches",
  "EvalStreams",
  "ExampleBatches",
  "FileTokens",
  "OwnRows",
  "RecordTokens",
  "SentencePieceTokenizer",
  "StagedBatches",
  "Tokenizer",
  "WordTokenizer",
  "load_text",
  "read_text",
  "rows_of",
  "split_file",
  "write_tokens",
]
