"""Log-mel spectra against NumPy in float64, and changes of training sounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recurrent import audio


def hz(mel):
  """Slaney's mel scale, one value at a time."""
  if mel < 15:
    return 200 / 3 * mel
  return 1000 * 6.4 ** ((mel - 15) / 27)


def mel_spectrum(samples, rate, window, hop, bands):
  """The mel spectrum by its definition: frames, DFT and triangles."""
  top = 15 + 27 * np.log(rate / 2 / 1000) / np.log(6.4)
  top = top if rate > 2000 else rate / 2 * 3 / 200
  edges = [hz(top * i / (bands + 1)) for i in range(bands + 2)]
  time = np.arange(window)
  hann = np.sin(np.pi * time / window) ** 2
  found = []
  for start in range(0, len(samples) - window + 1, hop):
    frame = hann * samples[start : start + window].astype(np.float64)
    row = np.zeros(bands)
    for k in range(window // 2 + 1):
      wave = np.exp(-2j * np.pi * k * time / window)
      power, frequency = abs((frame * wave).sum()) ** 2, k * rate / window
      for m in range(bands):
        low, centre, high = edges[m : m + 3]
        height = np.interp(frequency, (low, centre, high), (0, 1, 0))
        row[m] += power * height * 2 / (high - low)
    found.append(row)
  return np.array(found)


@pytest.mark.parametrize(
  ("rate", "window", "hop", "bands"),
  [
    (4000, 96, 40, 8),
    (8000, 65, 65, 5),
    (16000, 160, 48, 12),
    (1500, 32, 7, 4),
  ],
)
def test_the_spectrum_is_that_of_its_definition(rate, window, hop, bands):
  random = np.random.default_rng(0)
  samples = random.normal(size=(2, 700)).astype(np.float32)
  features = audio.LogMel(rate, window, hop, bands)
  got = features(jnp.asarray(samples))
  assert got.shape == (2, features.frames(700), bands)
  for row, sound in zip(got, samples, strict=True):
    want = mel_spectrum(sound, rate, window, hop, bands)
    np.testing.assert_allclose(row, np.log(want + 1e-6), rtol=0, atol=1e-4)


def test_silence_is_finite_and_short_sounds_are_refused():
  features = audio.LogMel(8000, 256, 80, 40)
  found = features(jnp.zeros((1, 256)))
  np.testing.assert_allclose(
    found, np.full((1, 1, 40), np.log(1e-6)), rtol=1e-6
  )
  assert features.frames(255) == 0
  with pytest.raises(ValueError, match="samples must be 256 or more, got 255"):
    features(jnp.zeros((1, 255)))


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ((0, 9, 4, 2), "rate must be 1 or more"),
    ((8000, 9, 0, 2), "hop must be 1 or more"),
    ((8000, 9, 10, 2), "window must be as long as hop=10"),
    ((8000, 64, 10, 40), "band 0 of 40 has no frequency"),
  ],
)
def test_a_spectrum_that_cannot_be_is_refused(values, message):
  with pytest.raises(ValueError, match=message):
    audio.LogMel(*values)


def test_spec_augment_hides_whole_stripes_and_nothing_else():
  spectrum = jnp.ones((40, 30, 12))
  lengths = np.array([30, 10] * 20)
  mask = jnp.asarray(np.arange(30)[None] < lengths[:, None])
  hide = jax.jit(
    lambda key: audio.spec_augment(
      key,
      spectrum,
      mask,
      time_masks=2,
      time_width=6,
      band_masks=1,
      band_width=4,
    )
  )
  found = np.asarray(hide(jax.random.key(0)))
  by_time, by_band = (found == 0).all(axis=2), (found == 0).all(axis=1)
  np.testing.assert_array_equal(
    found == 0, by_time[:, :, None] | by_band[:, None, :]
  )
  counts = by_time.sum(axis=1)
  assert counts.max() <= 12 and 1 < counts.mean() < 8
  assert by_band.sum(axis=1).max() == 4
  # Stripes of time lie within the real frames, and hide half of them at most.
  assert not (by_time & ~np.asarray(mask)).any()
  np.testing.assert_array_equal(found, hide(jax.random.key(0)))
  assert (found != np.asarray(hide(jax.random.key(1)))).any()
  none = audio.spec_augment(
    jax.random.key(0), spectrum, mask, time_masks=0, band_masks=0
  )
  np.testing.assert_array_equal(none, spectrum)


def test_a_changed_speed_scales_length_and_pitch():
  time = np.arange(400)
  samples = np.stack([np.sin(0.1 * time), np.sin(0.2 * time) * (time < 300)])
  speeds = jnp.asarray([0.875, 1.25], jnp.float32)
  found, lengths = audio.change_speed(
    jnp.asarray(samples, jnp.float32), jnp.array([400, 300]), speeds, 460
  )
  assert lengths.tolist() == [457, 240]
  for row, (speed, pitch) in enumerate([(0.875, 0.1), (1.25, 0.2)]):
    real = int(lengths[row])
    want = np.sin(pitch * speed * np.arange(real))
    np.testing.assert_allclose(found[row, 1 : real - 3], want[1:-3], atol=1e-3)
    assert not np.asarray(found[row, real:]).any()
  same, lengths = audio.change_speed(found, lengths, jnp.ones(2), 460)
  np.testing.assert_allclose(same, found, atol=1e-6)
