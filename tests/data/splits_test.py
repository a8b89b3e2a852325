"""Division of data into train, valid and test."""

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurrent.data import splits
from recurrent.errors import ConfigError


def test_shares_are_given_in_percent():
  assert splits.parse_shares("80,10,10") == (0.8, 0.1, 0.1)
  assert splits.parse_shares("97.5,1.5,1") == (0.975, 0.015, 0.01)


@pytest.mark.parametrize(
  "text", ["", "80,20", "80,10,20", "110,-5,-5", "a,b,c"]
)
def test_other_shares_are_refused(text):
  with pytest.raises(ConfigError, match="`splits="):
    splits.parse_shares(text)


@given(
  st.integers(0, 10**9), st.sampled_from(["90,5,5", "80,10,10", "70,20,10"])
)
def test_in_order_no_item_is_lost_and_shares_are_exact(length, text):
  ends = splits.in_order(length, splits.parse_shares(text))
  percent = [int(part) for part in text.split(",")]
  assert ends == [
    length * percent[0] // 100,
    length * (percent[0] + percent[1]) // 100,
    length,
  ]


def test_a_row_keeps_its_split_whatever_the_other_rows_are():
  rows = [str(n).encode() for n in range(5000)]
  found = splits.by_hash(rows, splits.parse_shares("80,15,5"))
  assert found[::-1] == splits.by_hash(
    rows[::-1], splits.Shares(0.8, 0.15, 0.05)
  )
  counts = collections.Counter(found)
  # Five standard deviations of a binomial distribution.
  for name, share in (("train", 0.8), ("valid", 0.15), ("test", 0.05)):
    assert (
      abs(counts[name] - 5000 * share) < 5 * (5000 * share * (1 - share)) ** 0.5
    )
