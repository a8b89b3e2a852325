"""Words of texts: their preparation, and vectors that were trained before."""

import os
from collections.abc import Collection, Sequence

import numpy as np

from recurrent.data.text import read_text
from recurrent.errors import DataError

_AROUND = "\"'`.,;:!?()[]{}<>-\u2018\u2019\u201c\u201d\u2026"


def prepare(text: str, *, lower: bool, drop: Collection[str] = ()) -> str:
  """Lower-cases a text and leaves out words.

  Args:
    text: the text.
    lower: whether to lower-case it.
    drop: words to leave out, in lower case. A word is what stands between white
      space, without the punctuation around it.
  """
  text = text.lower() if lower else text
  if not drop:
    return text
  words = text.split()
  return " ".join(w for w in words if w.lower().strip(_AROUND) not in drop)


def stop_words() -> frozenset[str]:
  """The 318 English stop words of scikit-learn, in lower case."""
  from sklearn.feature_extraction import text

  return text.ENGLISH_STOP_WORDS


def read_vectors(
  path: str | os.PathLike,
  words: Sequence[str],
  *,
  flag: str = "embeddings",
  seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
  """Reads the vectors of a vocabulary from a text file of word vectors.

  A line is a word and its numbers with spaces between them (GloVe). A first
  line of two numbers, as word2vec writes it, is skipped. A word that the file
  lacks gets the vector of its lower case; if that is not there either, a normal
  one with the mean and the variance of those found.

  Args:
    path: path of the file, in UTF-8.
    words: the vocabulary of V words.
    flag: name of the flag that gave the path, for messages.
    seed: seed of the vectors that are drawn.

  Returns:
    Vectors, float32 [V, D], and bool [V], True where the file has the word.

  Raises:
    DataError: if the file is not of this format, or has none of the words.
  """
  lines = read_text(path, flag=flag).split("\n")
  header = lines[0].split()
  start = int(len(header) == 2 and all(x.isdigit() for x in header))
  wanted = {word.strip() for word in words}
  wanted |= {word.lower() for word in wanted}
  found: dict[str, np.ndarray] = {}
  width = 0
  for number, line in enumerate(lines[start:], start=start + 1):
    if not line.strip():
      continue
    width = width or len(line.split()) - 1
    # A word may have spaces, as some of GloVe's do.
    word, *numbers = line.rstrip().rsplit(" ", width)
    if len(numbers) != width or width < 1:
      raise DataError(
        f"{path}, line {number}: {len(numbers)} numbers, and the lines before"
        f" have {width}",
        "give word vectors as text: a word and its numbers a line",
      )
    if word not in wanted or word in found:
      continue
    try:
      found[word] = np.array(numbers, np.float32)
    except ValueError as error:
      raise DataError(
        f"{path}, line {number}: {error}", "give numbers after each word"
      ) from error
    if not np.isfinite(found[word]).all():
      raise DataError(
        f"{path}, line {number}: a number is not finite", "mend the line"
      )
  if not found:
    raise DataError(
      f"{path} has none of the {len(words)} words of the vocabulary",
      f"give `{flag}` vectors of this language",
    )
  known = np.stack(list(found.values()))
  drawn = np.random.default_rng(seed).normal(size=(len(words), width))
  vectors = (known.mean(0) + known.std() * drawn).astype(np.float32)
  has = np.zeros(len(words), bool)
  for i, word in enumerate(words):
    word = word.strip()
    vector = found.get(word, found.get(word.lower()))
    if vector is not None:
      vectors[i], has[i] = vector, True
  return vectors, has
