"""Error rates of transcripts."""

from collections.abc import Sequence

from recurrent.errors import ConfigError


def error_rates(
  found: Sequence[str], wanted: Sequence[str]
) -> dict[str, float]:
  """Character and word error rate of transcripts, by jiwer.

  Both are the number of insertions, deletions and substitutions of all
  transcripts over the number of wanted characters or words, and may exceed 1.

  Args:
    found: transcripts.
    wanted: true transcripts, of one word or more each.

  Returns:
    `cer` and `wer`.

  Raises:
    ConfigError: if jiwer is not installed.
  """
  jiwer = check_jiwer()
  pairs = [*wanted], [*found]
  return {"cer": float(jiwer.cer(*pairs)), "wer": float(jiwer.wer(*pairs))}


def check_jiwer():
  """Returns the package jiwer; raises ConfigError if it is not installed."""
  try:
    import jiwer
  except ImportError as error:
    raise ConfigError(
      "error rates need the package jiwer, which is not installed",
      "pip install 'recurrent[speech]'",
    ) from error
  return jiwer
