"""Dates written in many languages, with their ISO 8601 form.

The names of months and days and the patterns are those of the Unicode Common
Locale Data Repository (CLDR), which the package Babel contains.
"""

import datetime

import numpy as np

from recurrent.data.parallel import Pairs
from recurrent.data.splits import SHARES, Shares, by_hash

LOCALES = (
  "ar bg cs da de el en en_GB es fi fr hi hu it ja ko lt nl pl pt ro ru sv tr"
  " uk zh"
).split()
# The format "short" is left out: it has two digits of the year.
FORMATS = ("full", "long", "medium")


def load_dates(
  number: int = 24_000, *, seed: int = 0, shares: Shares = SHARES
) -> dict[str, Pairs]:
  """Draws dates from 1900 to 2099, each written in one language and format.

  A day is in one split only, so the dates of valid and test are never seen in
  training.

  Args:
    number: number of pairs of all splits together.
    seed: seed of the dates, languages and formats.
    shares: the expected shares of the splits.

  Returns:
    The pairs of "train", "valid" and "test": a date such as "5. März 1987", and
    "1987-03-05".
  """
  from babel import dates  # Its data take a while to import.

  rng = np.random.default_rng(seed)
  first = datetime.date(1900, 1, 1).toordinal()
  days = first + rng.integers(0, 200 * 365, number)
  locales = rng.integers(0, len(LOCALES), number)
  formats = rng.integers(0, len(FORMATS), number)
  pairs = []
  for day, locale, form in zip(days, locales, formats, strict=True):
    date = datetime.date.fromordinal(int(day))
    text = dates.format_date(date, FORMATS[form], locale=LOCALES[locale])
    pairs.append((text, date.isoformat()))
  splits = by_hash((iso.encode() for _, iso in pairs), shares)
  found = {}
  for name in ("train", "valid", "test"):
    kept = [
      pair for pair, its in zip(pairs, splits, strict=True) if its == name
    ]
    sources, targets = zip(*kept, strict=True)
    found[name] = Pairs([*sources], [*targets])
  return found
