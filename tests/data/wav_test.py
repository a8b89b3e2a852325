"""WAV files of every width, and files that are none."""

import struct
import wave

import numpy as np
import pytest
from scipy.io import wavfile

from recurrent.data import wav
from recurrent.errors import DataError

WAVE = np.array([0.0, 0.25, -0.5, 0.75, -1.0])


def write_pcm(path, width, channels=1, values=WAVE, rate=8000):
  with wave.open(str(path), "wb") as file:
    file.setnchannels(channels)
    file.setsampwidth(width)
    file.setframerate(rate)
    scaled = (values * (2 ** (8 * width - 1) - 1)).round().astype(np.int64)
    scaled += 128 if width == 1 else 0
    low = [int(x).to_bytes(8, "little", signed=True)[:width] for x in scaled]
    file.writeframes(b"".join(low))


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_pcm_of_every_width_is_read(tmp_path, width):
  write_pcm(tmp_path / "a.wav", width)
  sound = wav.read_wav(tmp_path / "a.wav")
  assert sound.rate == 8000 and sound.samples.dtype == np.float32
  np.testing.assert_allclose(sound.samples, WAVE, atol=2.0 ** (2 - 8 * width))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_are_read(tmp_path, dtype):
  wavfile.write(tmp_path / "a.wav", 16000, WAVE.astype(dtype))
  sound = wav.read_wav(tmp_path / "a.wav")
  assert sound.rate == 16000 and sound.samples.dtype == np.float32
  np.testing.assert_array_equal(sound.samples, WAVE)


def test_chunks_that_are_not_known_are_skipped(tmp_path):
  path = tmp_path / "a.wav"
  write_pcm(path, 2)
  content = path.read_bytes() + b"LIST" + struct.pack("<I", 4) + b"abcd"
  path.write_bytes(content)
  assert len(wav.read_wav(path).samples) == 5


def with_format(path, code):
  """A WAV file whose header says another format."""
  write_pcm(path, 1)
  content = bytearray(path.read_bytes())
  content[20:22] = struct.pack("<H", code)
  path.write_bytes(content)


def with_nan(path):
  wavfile.write(path, 8000, np.array([0.1, np.nan], np.float32))


BAD = {
  "is empty": lambda path: path.write_bytes(b""),
  "begins with b'ID3": lambda path: path.write_bytes(b"ID3\x04" + bytes(99)),
  "begins with b'RIFF'": lambda path: path.write_bytes(b"RIFF    AVI " * 9),
  "MULAW": lambda path: with_format(path, 7),
  "ADPCM": lambda path: with_format(path, 2),
  "2 channels": lambda path: write_pcm(path, 2, 2, np.zeros(8)),
  "6 channels": lambda path: write_pcm(path, 2, 6, np.zeros(12)),
  "no samples": lambda path: write_pcm(path, 2, 1, np.zeros(0)),
  "sample 1 is no finite number": with_nan,
  "has 7 samples per second": lambda path: write_pcm(path, 2, rate=7),
  "a.tsv, line 3: .*bad.wav": lambda path: path.write_bytes(b"RIFF"),
  "is no file": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_file_is_refused_with_its_cause(tmp_path, message):
  path = tmp_path / "bad.wav"
  BAD[message](path)
  with pytest.raises(DataError, match=message) as caught:
    wav.read_wav(path, "a.tsv, line 3")
  assert "bad.wav" in caught.value.cause and caught.value.remedy


def test_a_damaged_file_is_never_a_traceback(tmp_path):
  path = tmp_path / "a.wav"
  write_pcm(path, 3)
  content = path.read_bytes()
  random = np.random.default_rng(0)
  for trial in range(300):
    damaged = bytearray(content[: random.integers(1, len(content) + 1)])
    for place in random.integers(0, len(damaged), trial % 4):
      damaged[place] = random.integers(256)
    path.write_bytes(damaged)
    try:
      assert np.isfinite(wav.read_wav(path).samples).all()
    except DataError:
      pass


def test_resampling_keeps_a_tone_and_removes_what_has_no_place():
  time = np.arange(4000) / 8000
  low, high = np.sin(2 * np.pi * 300 * time), np.sin(2 * np.pi * 3000 * time)
  found = wav.resample((low + high).astype(np.float32), 8000, 4000)
  assert found.shape == (2000,) and found.dtype == np.float32
  np.testing.assert_allclose(found[50:-50], low[::2][50:-50], atol=0.01)
  same = low.astype(np.float32)
  assert wav.resample(same, 8000, 8000) is same
  assert len(wav.resample(same, 8000, 11025)) == 5513
