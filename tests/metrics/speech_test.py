"""Error rates of transcripts."""

import pytest

from recurrent.metrics.speech import error_rates

pytest.importorskip("jiwer")


def test_error_rates_count_edits_over_what_is_wanted():
  found = ["one two", "", "four five six"]
  wanted = ["one too", "a", "four six"]
  rates = error_rates(found, wanted)
  assert rates["wer"] == pytest.approx((1 + 1 + 1) / 5)
  assert rates["cer"] == pytest.approx((1 + 1 + 5) / 16)
  assert error_rates(wanted, wanted) == {"cer": 0, "wer": 0}
