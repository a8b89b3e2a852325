"""Metrics of texts that a model wrote: exact match, BLEU, chrF and ROUGE.

BLEU and chrF are those of the package sacrebleu, and ROUGE that of rouge-score.
All are in percent except exact match, which is a share.
"""

import collections
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from recurrent.errors import ConfigError

ROUGES = "rouge1", "rouge2", "rougeL"


def translation(found: Sequence[str], wanted: Sequence[str]) -> dict[str, Any]:
  """Exact match, BLEU and chrF of translations, with their signatures.

  Args:
    found: the translations.
    wanted: the reference of each.

  Returns:
    `exact_match`, `bleu`, `chrf`, `bleu_signature` and `chrf_signature`.

  Raises:
    ConfigError: if sacrebleu is not installed.

  Reference:
    Papineni et al., "BLEU", 2002; Popovic, "chrF", 2015; Post, "A call for
    clarity in reporting BLEU scores", 2018 (signatures).
  """
  sacrebleu = check_sacrebleu()
  bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
  pairs = list(found), [list(wanted)]
  same = [a == b for a, b in zip(found, wanted, strict=True)]
  return {
    "exact_match": float(np.mean(same)),
    "bleu": bleu.corpus_score(*pairs).score,
    "chrf": chrf.corpus_score(*pairs).score,
    "bleu_signature": str(bleu.get_signature()),
    "chrf_signature": str(chrf.get_signature()),
  }


def rouge(found: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
  """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L, in percent, with stemming.

  Args:
    found: the summaries.
    wanted: the reference of each.

  Returns:
    `rouge1`, `rouge2` and `rougeL`.

  Raises:
    ConfigError: if rouge-score is not installed.

  Reference:
    Lin, "ROUGE: a package for automatic evaluation of summaries", 2004.
  """
  scorer = check_rouge()(ROUGES, use_stemmer=True)
  scores = [scorer.score(b, a) for a, b in zip(found, wanted, strict=True)]
  return {
    name: 100 * float(np.mean([row[name].fmeasure for row in scores]))
    for name in ROUGES
  }


def repeated_share(texts: Sequence[str], n: int = 3) -> float:
  """The share of the n-grams of words that occur earlier in the same text.

  Args:
    texts: the texts; those of fewer than n words have no n-grams.
    n: number of words in an n-gram.
  """
  again = total = 0
  for text in texts:
    words = _words(text)
    shifted = (words[i:] for i in range(n))
    grams = collections.Counter(zip(*shifted, strict=False))
    total += grams.total()
    again += grams.total() - len(grams)
  return again / max(total, 1)


def copied_share(texts: Sequence[str], sources: Sequence[str]) -> float:
  """The share of the words of all texts that occur in the source of the text.

  Args:
    texts: the texts.
    sources: the source of each.
  """
  copied = total = 0
  for text, source in zip(texts, sources, strict=True):
    words, known = _words(text), set(_words(source))
    total += len(words)
    copied += sum(word in known for word in words)
  return copied / max(total, 1)


def first_sentence(document: str) -> str:
  """The first sentence of a document, the baseline that is called lead.

  A sentence ends at a full stop, a question mark or an exclamation mark before
  white space, or where the document ends.
  """
  match = re.match(r".*?[.!?](?=\s|$)", document, re.DOTALL)
  return match[0] if match else document


def check_sacrebleu() -> Any:
  """Imports sacrebleu; ConfigError if it is not installed."""
  try:
    import sacrebleu
  except ImportError as error:
    raise ConfigError(
      "BLEU needs the package sacrebleu, which is not installed",
      "pip install 'recurrent[translation]'",
    ) from error
  return sacrebleu


def check_rouge() -> Callable[..., Any]:
  """Returns the scorer of rouge-score; ConfigError if it is not installed."""
  try:
    from rouge_score.rouge_scorer import RougeScorer
  except ImportError as error:
    raise ConfigError(
      "ROUGE needs the package rouge-score, which is not installed",
      "pip install 'recurrent[summarization]'",
    ) from error
  return RougeScorer


def _words(text: str) -> list[str]:
  return re.findall(r"\w+", text.lower())
