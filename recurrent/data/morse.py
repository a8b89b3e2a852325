"""Morse code as sound: random messages, keyed by an unsteady hand, in noise."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from recurrent.data.labelled import Labelled

CODE = dict(
  zip(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?/=",
    (
      ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- "
      ".-. ... - ..- ...- .-- -..- -.-- --.. ----- .---- ..--- ...-- ....- "
      "..... -.... --... ---.. ----. .-.-.- --..-- ..--.. -..-. -...-"
    ).split(),
    strict=True,
  )
)
ALPHABET = " " + "".join(sorted(CODE))
# The order in which people learn the symbols by Koch's method.
KOCH = "KMURESNAPTLWI.JZ=FOY,VG5/Q92H38B?47C1D60X"
RATE = 4000  # samples per second
SPEEDS = (12.0, 30.0)  # words per minute; a word is 50 dots long
PITCHES = (400.0, 900.0)  # Hz
SNRS = (-10.0, 20.0)  # dB
TEST_SNRS = (-10, -5, 0, 5, 10, 20)
LONGEST_WORD = 7
SHORTEST = 3.0  # seconds in which any symbol can be keyed
_RISE = 20  # samples from silence to full strength


def most_symbols(seconds: float) -> int:
  """More symbols than a message of that length can have.

  The fastest are dots with gaps of three dots, a tenth too short, at the
  highest speed and the largest drift.
  """
  return int(seconds / (4 * 0.9 * 0.8 * 1.2 / SPEEDS[1])) + 1


class Message(NamedTuple):
  """A message in Morse code.

  Attributes:
    samples: float32 [samples], from -1 to 1.
    text: symbols of `ALPHABET`.
    snr: mean power of the tone while the key is down over that of the noise
      between 0 Hz and half the rate, in dB.
  """

  samples: np.ndarray
  text: str
  snr: float


def draw_message(
  rng: np.random.Generator,
  seconds: float,
  snr: float | None = None,
  limit: int | None = None,
  variety: float = 1.0,
) -> Message:
  """Draws a message of random groups of 1 to 7 random symbols.

  No symbol can be told from those before it, so that a reader has to hear it.
  The speed is that of the first word, 12 to 30 words per minute; it drifts by
  up to a fifth in the course of the message, and each element is up to a tenth
  too long or too short. The pitch, 400 to 900 Hz, drifts by up to 20 Hz. The
  volume is random, too.

  Args:
    rng: source of random numbers.
    seconds: length of the sound; the message ends before it.
    snr: see `Message`; None: drawn from -10 to 20 dB.
    limit: largest number of symbols; None: as many as fit.
    variety: the share of the symbols, in the order of Koch's method, and of
      the ranges above from which is drawn, for lessons that begin easy: around
      20 words per minute and 650 Hz, loud, and with little noise. 1 for all.

  Raises:
    ValueError: if a symbol may need more than `seconds`.
  """
  if seconds < SHORTEST:
    raise ValueError(f"seconds must be {SHORTEST} or more, got {seconds}")
  within = lambda low, high, centre: rng.uniform(
    centre + variety * (low - centre), centre + variety * (high - centre)
  )
  snr = within(*SNRS, SNRS[1]) if snr is None else snr
  dot = 1.2 / within(*SPEEDS, 20.0)
  start = rng.uniform(0.1, 0.5)
  text, keyed = _key(rng, seconds - start - 0.1, dot, limit, variety)
  size = int(seconds * RATE)
  rise = 0.5 - 0.5 * np.cos(np.pi * np.arange(_RISE) / _RISE).astype(np.float32)
  down = np.zeros(size, np.float32)
  for begin, end in ((start + keyed) * RATE).astype(int):
    down[begin : begin + _RISE] = rise
    down[begin + _RISE : end] = 1
    down[end : end + _RISE] = rise[::-1]
  time = np.arange(size, dtype=np.float32) / RATE
  slow, phase = 2 * np.pi * rng.uniform(0.05, 0.3), rng.uniform(0, 2 * np.pi)
  # The integral of the pitch, a sine around its mean.
  turns = within(*PITCHES, 650.0) * time
  turns += rng.uniform(0, 20) / slow * np.cos(slow * time + phase)
  tone = np.sqrt(np.float32(2)) * np.sin(2 * np.pi * turns)
  noise = rng.standard_normal(size, np.float32) * 10 ** (-snr / 20)
  sound = down * tone + noise
  sound *= 10 ** (variety * rng.uniform(-20, 0) / 20) / np.abs(sound).max()
  return Message(sound, text, snr)


def draw_messages(
  rng: np.random.Generator,
  seconds: float,
  snrs: Sequence[float | None],
  variety: float = 1.0,
) -> Labelled:
  """Draws a message for each signal-to-noise ratio; see `draw_message`."""
  found = [draw_message(rng, seconds, x, variety=variety) for x in snrs]
  return Labelled(
    kind="sound",
    inputs=[message.samples for message in found],
    labels=[message.text for message in found],
    rate=RATE,
    place="message {}".format,
  )


def _key(rng, seconds, dot, limit, variety) -> tuple[str, np.ndarray]:
  """Text for a time, and when the key is down: [marks, 2] in seconds."""
  symbols = KOCH[: max(2, round(variety * len(KOCH)))]
  text, marks = "", []
  now = 0.0
  drift = variety * rng.uniform(-0.2, 0.2)
  left, count = 0, 0
  while count != limit:
    word = not left
    left = int(rng.integers(1, LONGEST_WORD + 1)) if word else left
    symbol = symbols[rng.integers(len(symbols))]
    code = CODE[symbol]
    # Gap before the symbol, then its marks and the gaps between them, in dots.
    gap = 0 if not text else 7 if word else 3
    units = [gap, *(x for c in code for x in (1 if c == "." else 3, 1))][:-1]
    hand = 1 + variety * rng.uniform(-0.1, 0.1, len(units))
    lengths = units * hand * dot * (1 + drift * now / seconds)
    ends = now + np.cumsum(lengths)
    if ends[-1] > seconds:
      break
    text += " " * (word and bool(text)) + symbol
    marks += [*zip(ends[:-1:2], ends[1::2], strict=True)]
    now, left, count = ends[-1], left - 1, count + 1
  return text, np.reshape(marks, (-1, 2))
