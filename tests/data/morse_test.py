"""Morse code: its text, timing, noise, and lessons."""

import numpy as np
import pytest

from recurrent.data import morse


def draw(seed=0, seconds=6.0, **options):
  return morse.draw_message(np.random.default_rng(seed), seconds, **options)


def test_a_message_is_a_function_of_its_seed_and_fits_its_sound():
  for seed in range(20):
    one, other = draw(seed), draw(seed)
    assert one.text == other.text
    np.testing.assert_array_equal(one.samples, other.samples)
    assert one.samples.shape == (6 * morse.RATE,)
    assert one.samples.dtype == np.float32
    assert np.abs(one.samples).max() <= 1
    assert 1 <= len(one.text) <= morse.most_symbols(6.0)
    assert set(one.text) <= set(morse.ALPHABET)
    assert one.text == " ".join(one.text.split())
    assert max(map(len, one.text.split())) <= morse.LONGEST_WORD


def test_a_message_can_be_read_from_its_envelope():
  """Without noise, runs of sound and silence spell the text."""
  codes = {code: symbol for symbol, code in morse.CODE.items()}
  for seed in range(10):
    message = draw(seed, snr=60.0, variety=0.2)
    level = np.abs(message.samples)
    # The largest of 12 samples: more than half a period of the lowest pitch.
    windows = np.lib.stride_tricks.sliding_window_view(level, 12).max(axis=1)
    down = windows > 0.3 * level.max()
    edges = np.flatnonzero(np.diff(down.astype(int)))
    begins, ends = edges[::2], edges[1::2]
    dot = np.min(ends - begins)
    text, code = "", ""
    for number, (begin, end) in enumerate(zip(begins, ends, strict=True)):
      gap = (begin - ends[number - 1]) / dot if number else 0
      if gap > 1.9:
        text += codes[code] + " " * int(gap > 4.5)
        code = ""
      code += "." if (end - begin) / dot < 1.9 else "-"
    assert text + codes[code] == message.text


def test_noise_has_the_power_that_the_ratio_says():
  quiet = draw(3, snr=100.0, limit=1)
  for snr in (0.0, 10.0):
    noisy = draw(3, snr=snr, limit=1)
    assert noisy.text == quiet.text and noisy.snr == snr
    # The end of the sound is noise only; both are scaled to some volume.
    key_down = np.abs(quiet.samples) > 0.5 * np.abs(quiet.samples).max()
    noise = np.square(noisy.samples[-morse.RATE :]).mean()
    first = np.argmax(key_down)
    both = noisy.samples[first : first + 90]
    ratio = np.square(both).mean() / noise
    assert ratio == pytest.approx(1 + 10 ** (snr / 10), rel=0.5)


def test_lessons_begin_with_few_symbols():
  early = "".join(draw(seed, variety=0.1).text for seed in range(20))
  assert set(early) <= set(morse.KOCH[:4] + " ")
  assert sorted(morse.KOCH) == sorted(morse.CODE)
  late = "".join(draw(seed).text for seed in range(60))
  assert set(late) == set(morse.ALPHABET)
  assert len(draw(limit=2).text.replace(" ", "")) == 2


def test_too_short_a_sound_is_refused():
  with pytest.raises(ValueError, match="seconds must be 3.0 or more, got 2"):
    draw(seconds=2)
  for seed in range(50):
    assert draw(seed, seconds=3.0).text
