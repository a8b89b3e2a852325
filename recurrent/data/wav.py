"""Reads WAV files: PCM of 8, 16, 24 or 32 bits, and floating-point numbers."""

import math
import os
import pathlib
import warnings
from typing import NamedTuple

import numpy as np

from recurrent.errors import DataError

# Samples per second of sounds; a damaged header may have others, to resample by
# which would take any amount of memory.
RATES = (1000, 1_000_000)
_CONVERT = (
  "convert it, for example: ffmpeg -i FILE -ac 1 -c:a pcm_s16le NEW.wav"
)


class Sound(NamedTuple):
  """A sound of one channel.

  Attributes:
    samples: float32 [samples], from -1 to 1.
    rate: samples per second.
  """

  samples: np.ndarray
  rate: int


def read_wav(path: str | os.PathLike, place: str = "") -> Sound:
  """Reads a WAV file of one channel.

  Args:
    path: path of the file.
    place: where the path was named, such as "a.tsv, line 3", for messages.

  Raises:
    DataError: if the file cannot be read, is no WAV file, is compressed, has
      several channels or no samples, or has a sample that is no number.
  """
  from scipy.io import wavfile  # noqa: PLC0415 - only sounds need SciPy

  where = f"{place}: {path}" if place else f"{path}"
  try:
    if not pathlib.Path(path).is_file():
      raise DataError(f"{where} is no file", "mend the path")
    with open(path, "rb") as file:
      begins = file.read(12)
    if begins[:4] not in (b"RIFF", b"RIFX", b"RF64") or begins[8:] != b"WAVE":
      raise DataError(
        f"{where} is empty"
        if not begins
        else f"{where} is no WAV file: it begins with {begins[:4]!r}",
        _CONVERT,
      )
    with warnings.catch_warnings():
      # SciPy warns of chunks that it does not know, such as titles.
      warnings.simplefilter("ignore", wavfile.WavFileWarning)
      rate, samples = wavfile.read(path)
  except OSError as error:
    raise DataError(
      f"cannot read {where}: {error.strerror}", "give a file that you can read"
    ) from error
  except DataError:
    raise
  except Exception as error:  # SciPy raises many types for damaged files.
    reason = str(error).splitlines()[0] if str(error) else "it is damaged"
    raise DataError(f"{where}: {reason}", _CONVERT) from error
  if samples.ndim != 1:
    raise DataError(
      f"{where} has {samples.shape[1]} channels, and one is wanted", _CONVERT
    )
  if not len(samples) or not RATES[0] <= rate <= RATES[1]:
    what = f"{rate} samples per second" if len(samples) else "no samples"
    raise DataError(f"{where} has {what}", "record it again, or leave it out")
  samples = _scaled(samples)
  if not np.isfinite(samples).all():
    first = int(np.argmin(np.isfinite(samples)))
    raise DataError(f"{where}: sample {first} is no finite number", _CONVERT)
  return Sound(samples, rate)


def _scaled(samples: np.ndarray) -> np.ndarray:
  """Scales samples of any dtype to float32 from -1 to 1."""
  if samples.dtype.kind == "f":
    return samples.astype(np.float32)
  if samples.dtype == np.uint8:
    return (samples.astype(np.float32) - 128) / 128
  # 24-bit samples come as 32-bit ones whose last byte is zero.
  return (samples / float(2 ** (8 * samples.dtype.itemsize - 1))).astype(
    np.float32
  )


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
  """Resamples a sound, with a low-pass filter against aliasing.

  Args:
    samples: [samples].
    rate: their number per second.
    new_rate: the number per second that is wanted.

  Returns:
    float32 [ceil(samples * new_rate / rate)].
  """
  from scipy import signal  # noqa: PLC0415 - only sounds need SciPy

  if rate == new_rate:
    return samples
  common = math.gcd(rate, new_rate)
  found = signal.resample_poly(samples, new_rate // common, rate // common)
  return found.astype(np.float32)
