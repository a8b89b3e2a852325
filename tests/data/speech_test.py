"""Manifests of WAV files, strings of sounds, and examples for CTC."""

import numpy as np
import pytest
from scipy.io import wavfile

from recurrent.data import speech, tokenizers
from recurrent.errors import DataError

HEADER = "path\ttext\tsplit\tspeaker"


def sound(length, seed=0):
  random = np.random.default_rng(seed)
  return random.uniform(-1, 1, length).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "sounds").mkdir()
  for number in range(6):
    rate = 4000 if number == 5 else 8000
    path = tmp_path / "sounds" / f"{number}.wav"
    wavfile.write(path, rate, sound(100 + number, number))
  return tmp_path


def write(folder, *rows, header=HEADER):
  path = folder / "manifest.tsv"
  path.write_text("\n".join([header, *rows, ""]), encoding="utf-8")
  return path


def test_a_manifest_names_sounds_texts_splits_and_speakers(folder):
  path = write(
    folder,
    'sounds/0.wav\t a  "b" \ttrain\tann',
    "sounds/1.wav\tä\tvalid\tbob",
    "./sounds/2.wav\tc\ttest\tann",
  )
  found = speech.read_manifest(path)
  assert found.labels == ['a "b"', "ä", "c"] and found.rate == 8000
  assert found.splits.tolist() == ["train", "valid", "test"]
  assert found.speakers.tolist() == ["ann", "bob", "ann"]
  np.testing.assert_array_equal(found.inputs[1], sound(101, 1))
  assert found.place(1) == f"{path}, line 3"
  paths, place = speech.read_paths(path)
  assert [x.name for x in paths] == ["0.wav", "1.wav", "2.wav"]
  assert place(2).endswith("line 4")


def test_a_sound_of_another_rate_is_resampled_with_a_message(folder, caplog):
  rows = [f"sounds/{number}.wav\ta" for number in (0, 5)]
  path = write(folder, *rows, header="path\ttext")
  with caplog.at_level("INFO", "recurrent"):
    found = speech.read_manifest(path)
  assert [len(x) for x in found.inputs] == [100, 210]
  assert "1 of 2 sounds were resampled from 4000 to 8000" in caplog.text
  found = speech.read_manifest(path, rate=2000)
  assert found.rate == 2000 and [len(x) for x in found.inputs] == [25, 53]


def test_rows_without_a_split_are_divided_by_their_contents(folder):
  rows = [f"sounds/{number % 5}.wav\ttext {number}" for number in range(200)]
  found = speech.read_manifest(write(folder, *rows, header="path\ttext"))
  splits = found.divided().splits
  assert 0.8 < (splits == "train").mean() < 0.97
  again = speech.read_manifest(
    write(folder, *rows[::-1], header="path\ttext")
  ).divided()
  np.testing.assert_array_equal(again.splits[::-1], splits)


def link_outside(folder):
  outside = folder.parent / "outside.wav"
  wavfile.write(outside, 8000, sound(9))
  (folder / "link.wav").symlink_to(outside)


BAD = {
  "no column 'text', only 'path', 'words'": ("path\twords", "sounds/0.wav\ta"),
  "no column 'path'": ("text", "a"),
  "line 2: 1 cells, and the header has 2": ("path\ttext", "sounds/0.wav"),
  "line 2, column text: the transcript is empty": (
    "path\ttext",
    "sounds/0.wav\t ",
  ),
  "line 2, column split: 'dev' is no split": (
    HEADER,
    "sounds/0.wav\ta\tdev\tx",
  ),
  "line 2, column path: link.wav leads out": ("path\ttext", "link.wav\ta"),
  "line 2, column path: ../outside.wav leads out": (
    "path\ttext",
    "../outside.wav\ta",
  ),
  "line 2, column path: /etc/passwd leads out": (
    "path\ttext",
    "/etc/passwd\ta",
  ),
  "line 2: .*none.wav is no file": ("path\ttext", "none.wav\ta"),
  "has no rows": ("path\ttext",),
  "not UTF-8": ("path\ttext", "sounds/0.wav\tä"),
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_manifest_is_refused_with_its_cause(folder, message):
  link_outside(folder)
  path = folder / "manifest.tsv"
  text = "\n".join([*BAD[message], ""])
  path.write_text(text, "latin-1" if "UTF-8" in message else "utf-8")
  with pytest.raises(DataError, match=message) as caught:
    speech.read_manifest(path)
  assert "manifest.tsv" in caught.value.cause and caught.value.remedy


def test_a_manifest_is_a_tsv_file_within_the_limit(folder, monkeypatch):
  with pytest.raises(DataError, match="does not end in .tsv"):
    speech.read_manifest(folder / "manifest.csv")
  path = write(
    folder, "sounds/0.wav\ta", "sounds/1.wav\tb", header="path\ttext"
  )
  monkeypatch.setattr(speech, "LIMIT", 500)
  with pytest.raises(DataError, match="line 3: the sounds so far take more"):
    speech.read_manifest(path)


def test_examples_refuse_what_ctc_cannot_say(folder):
  rows = ["sounds/0.wav\taab", "sounds/1.wav\tba"]
  found = speech.read_manifest(write(folder, *rows, header="path\ttext"))
  tokenizer = tokenizers.CharTokenizer("ab")
  examples = speech.encode(found, tokenizer, 30)
  assert len(examples) == 2 and examples[0]["labels"].tolist() == [1, 1, 2]
  np.testing.assert_array_equal(examples[1]["samples"], found.inputs[1])
  # Three symbols, two of them equal, need four time steps.
  with pytest.raises(DataError, match=r"line 2.*3 symbols need 4.* has 2"):
    speech.encode(found, tokenizer, 50)
  with pytest.raises(DataError, match="line 2.*no transcript of train has 'b'"):
    speech.encode(found, tokenizers.CharTokenizer("a"), 10)


def test_every_sound_is_in_one_string_of_its_speaker(folder):
  speakers = ["ann"] * 4 + ["bob"]
  rows = [
    f"sounds/{i}.wav\t{i}\ttrain\t{who}" for i, who in enumerate(speakers)
  ]
  found = speech.read_manifest(write(folder, *rows))
  joined = speech.join(found, 2, 3, pause=(0.01, 0.02), seed=1)
  strings = [label.split() for label in joined.labels]
  assert len(joined) == len(strings) == len(joined.inputs)
  for number, string in enumerate(strings):
    assert 2 <= len(string) <= 3
    whose = {speakers[int(name)] for name in string}
    assert whose == {joined.speakers[number]}
    silence = len(joined.inputs[number]) - sum(
      len(found.inputs[int(name)]) for name in string
    )
    assert 80 * len(string) <= silence <= 160 * len(string)
  names = [name for string in strings for name in string]
  assert set(names) == set("01234")
  again = speech.join(found, 2, 3, pause=(0.01, 0.02), seed=1)
  assert again.labels == joined.labels
  np.testing.assert_array_equal(again.inputs[0], joined.inputs[0])
  more = speech.join(found, 2, 3, repeats=5)
  assert min(" ".join(more.labels).count(name) for name in "0123") >= 5
