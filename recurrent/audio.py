"""Log-mel spectra of sounds in JAX, and changes of training sounds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from recurrent import rows
from recurrent.types import Array, Float, Int, Mask, PRNGKey

# Slaney's mel scale is linear up to 1 kHz and logarithmic above.
_BREAK = 1000.0  # Hz
_LINEAR = 200 / 3  # Hz a mel
_LOG_STEP = np.log(6.4) / 27
# Speeds are multiples of 1 / 1024, so that places between samples are exact.
_SPEEDS = 1024


@dataclasses.dataclass(frozen=True)
class LogMel:
  """Log-mel spectrum of a sound.

  Frame t holds the samples [t * hop, t * hop + window). With the Hann window w
  and the triangular mel filters F of Slaney's scale, each of unit area:

    outputs[t, m] = log(offset + sum_k F[k, m] |rfft(w * frame)[k]|^2)

  Without the logarithm it equals `librosa.feature.melspectrogram(y=samples,
  sr=rate, n_fft=window, hop_length=hop, n_mels=bands, center=False)`.

  Example:
    >>> import jax.numpy as jnp
    >>> from recurrent import audio
    >>> features = audio.LogMel(rate=8000, window=256, hop=80, bands=40)
    >>> features(jnp.zeros((2, 8000))).shape
    (2, 97, 40)

  Args:
    rate: samples per second.
    window: samples of a frame.
    hop: samples from the start of one frame to that of the next.
    bands: number M of mel bands, from 0 Hz to half the rate.
    offset: power that is added, so that silence has a finite logarithm.

  Raises:
    ValueError: if a number is out of range, or a band is so narrow that it has
      no frequency of the transform.

  Reference:
    Slaney, "Auditory toolbox", 1998.
  """

  rate: int
  window: int
  hop: int
  bands: int
  offset: float = 1e-6

  def __post_init__(self):
    for name in ("rate", "window", "hop", "bands"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
    if self.window < self.hop:
      raise ValueError(
        f"window must be as long as hop={self.hop} at least, got {self.window}"
      )
    if not self.offset > 0:
      raise ValueError(f"offset must be above 0, got {self.offset}")
    empty = np.flatnonzero(~self.filters.any(axis=0))
    if len(empty):
      raise ValueError(
        f"bands must be fewer, or window longer: band {empty[0]} of"
        f" {self.bands} has no frequency with a window of {self.window} samples"
      )

  @functools.cached_property
  def filters(self) -> np.ndarray:
    """The weights [window // 2 + 1, M] of each frequency in each band."""
    edges = _from_mel(np.linspace(0, _to_mel(self.rate / 2), self.bands + 2))
    frequencies = np.fft.rfftfreq(self.window, 1 / self.rate)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    area = (edges[2:] - edges[:-2]) / 2
    return np.maximum(0, np.minimum(rising, falling)) / area

  def frames(self, samples: int) -> int:
    """The number of whole frames in a number of samples."""
    return max(0, 1 + (samples - self.window) // self.hop)

  def mel(self, samples: Float[Array, "B N"]) -> Float[Array, "B T M"]:
    """Computes the mel spectrum without the logarithm.

    Args:
      samples: [batch, samples], from -1 to 1, at least one frame.
    """
    count = self.frames(samples.shape[1])
    if not count:
      raise ValueError(
        f"samples must be {self.window} or more, got {samples.shape[1]}"
      )
    # Blocks of one hop: a frame is some neighbouring blocks, cut to the window.
    parts = -(-self.window // self.hop)
    spare = (count + parts - 1) * self.hop - samples.shape[1]
    padded = jnp.pad(samples, ((0, 0), (0, max(0, spare))))
    blocks = padded[:, : (count + parts - 1) * self.hop]
    blocks = blocks.reshape(len(samples), -1, self.hop)
    shifted = [blocks[:, part : part + count] for part in range(parts)]
    frames = jnp.concatenate(shifted, axis=-1)[..., : self.window]
    phase = 2 * np.pi * np.arange(self.window) / self.window
    hann = jnp.asarray(0.5 - 0.5 * np.cos(phase), samples.dtype)
    spectrum = jnp.fft.rfft(frames * jnp.broadcast_to(hann, frames.shape))
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    return power @ jnp.asarray(self.filters, samples.dtype)

  def __call__(self, samples: Float[Array, "B N"]) -> Float[Array, "B T M"]:
    """Computes the log-mel spectrum; see `mel`."""
    return jnp.log(self.mel(samples) + self.offset)


def _to_mel(frequency):
  above = np.maximum(frequency, _BREAK)
  low = np.minimum(frequency, _BREAK) / _LINEAR
  return low + np.log(above / _BREAK) / _LOG_STEP


def _from_mel(mel):
  bend = _BREAK / _LINEAR
  low = np.minimum(mel, bend) * _LINEAR
  return low * np.exp(_LOG_STEP * np.maximum(mel - bend, 0))


def spec_augment(
  key: PRNGKey,
  spectrum: Float[Array, "B T M"],
  mask: Mask,
  *,
  time_masks: int = 2,
  time_width: int = 40,
  band_masks: int = 2,
  band_width: int = 8,
) -> Float[Array, "B T M"]:
  """Sets random stripes of time and of frequency to zero (SpecAugment).

  The spectrum should have mean zero, so that zero stands for nothing special.

  Args:
    key: PRNG key of all rows.
    spectrum: [batch, frames, M].
    mask: [batch, frames], True where a frame is real.
    time_masks: number of stripes of time in each row.
    time_width: a stripe covers 0 to this many frames, with equal probability,
      and half of the real ones at most.
    band_masks: number of stripes of frequency in each row.
    band_width: a stripe covers 0 to this many bands.

  Reference:
    Park et al., "SpecAugment: a simple data augmentation method for automatic
    speech recognition", 2019.
  """
  batch, frames, bands = spectrum.shape
  by_time, by_band = jax.random.split(key)
  real = mask.sum(axis=1).astype(jnp.int32)
  hidden = (
    _stripes(by_time, real, frames, time_masks, time_width)[:, :, None]
    | _stripes(
      by_band,
      jnp.full_like(real, bands),
      bands,
      band_masks,
      band_width,
    )[:, None, :]
  )
  return jnp.where(hidden, jnp.zeros_like(spectrum), spectrum)


def _stripes(key, lengths, size, number, width):
  """Whether each of `size` places is in a random stripe, [batch, size]."""
  keys = jax.random.split(key)
  draw = lambda key: rows.uniform(key, (len(lengths), number), lengths)
  lengths = jnp.broadcast_to(lengths[:, None], (len(lengths), number))
  below = lambda share, limit: jnp.minimum(
    (share * limit.astype(share.dtype)).astype(jnp.int32), limit - 1
  )
  widths = below(draw(keys[0]), jnp.full_like(lengths, width + 1))
  widths = jnp.minimum(widths, lengths // 2)
  starts = below(draw(keys[1]), lengths - widths + 1)
  places = jnp.arange(size)[None, None]
  after = places >= starts[..., None]
  return (after & (places < (starts + widths)[..., None])).any(axis=1)


def change_speed(
  samples: Float[Array, "B N"],
  lengths: Int[Array, "B"],
  speeds: Float[Array, "B"],
  size: int,
) -> tuple[Float[Array, "B M"], Int[Array, "B"]]:
  """Plays each sound faster or slower, which changes its pitch as well.

  New samples are interpolated between four old ones (a cubic polynomial).

  Args:
    samples: [batch, samples], zero after the length of a row.
    lengths: [batch], number of real samples.
    speeds: [batch], such as 1.1 for a tenth faster; rounded to 1 / 1024.
    size: number of samples of the result; the rest of a sound is left out.

  Returns:
    The sounds [batch, size], zero after their end, and their lengths.

  Reference:
    Ko et al., "Audio augmentation for speech recognition", 2015.
  """
  rates = jnp.round(speeds * _SPEEDS).astype(jnp.int32)
  lengths = jnp.minimum(lengths.astype(jnp.int32) * _SPEEDS // rates, size)
  places = jnp.arange(size, dtype=jnp.int32)[None] * rates[:, None]
  whole = places // _SPEEDS
  part = (places % _SPEEDS).astype(samples.dtype) / _SPEEDS
  padded = jnp.pad(samples, ((0, 0), (1, 2)))
  tap = lambda i: jnp.take_along_axis(
    padded, jnp.minimum(whole + i, padded.shape[1] - 1), axis=1
  )
  a, b, c, d = (tap(i) for i in range(4))
  slope = 0.5 * (c - a)
  square = a - 2.5 * b + 2 * c - 0.5 * d
  cube = 0.5 * (d - a) + 1.5 * (b - c)
  found = b + part * (slope + part * (square + part * cube))
  inside = jnp.arange(size)[None] < lengths[:, None]
  return jnp.where(inside, found, jnp.zeros_like(found)), lengths
