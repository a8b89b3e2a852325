"""Speech recognition, from a command line to transcripts."""

import json
import re

import jax
import numpy as np
import pytest
from scipy.io import wavfile

from experiments import (
  evaluate,
  generate,
  language_model,
  predict,
  speech_recognition,
)
from tests.experiments import scripts
from tests.experiments.scripts import call, refused, result, rows

pytest.importorskip("jiwer")

TINY = (
  "--cell=gru",
  "--layers=1",
  "--features=8",
  "--batch_size=4",
  "--steps=2",
  "--log_every=1",
  "--eval_every=2",
  "--warmup_steps=1",
  "--window_ms=20",
  "--bands=6",
  "--beams=2",
)
TONES = {"a": 300, "b": 900, "c": 1700}


def tones(text, random):
  """A sound in which every letter is a tone and a space is silence."""
  parts = [np.zeros(300)]
  for letter in text:
    time = np.arange(random.integers(500, 900)) / 4000
    parts.append(0.5 * np.sin(2 * np.pi * TONES.get(letter, 0) * time))
    parts.append(np.zeros(300))
  sound = np.concatenate(parts)
  return (32767 * (sound + random.normal(0, 0.01, len(sound)))).astype(np.int16)


@pytest.fixture(scope="session")
def manifest(tmp_path_factory):
  folder = tmp_path_factory.mktemp("sounds")
  random = np.random.default_rng(0)
  lines = ["path\ttext\tsplit\tspeaker"]
  for number in range(48):
    text = "".join(random.choice(["a", "b", "c"], random.integers(1, 4)))
    wavfile.write(folder / f"{number}.wav", 4000, tones(text, random))
    split = "test" if number < 4 else "valid" if number < 8 else "train"
    lines.append(f"{number}.wav\t{text}\t{split}\t{number % 2}")
  (folder / "all.tsv").write_text("\n".join([*lines, ""]))
  return folder / "all.tsv"


@pytest.fixture(scope="session")
def trained(manifest, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  flags = ("--steps=250", "--eval_every=250", "--log_every=250")
  more = ("--learning_rate=0.02", "--features=16", "--ema=0.9")
  more += ("--nobidirectional", "--cell=gru", "--delay=0")
  source = (f"--workdir={workdir}", f"--manifest={manifest}")
  with (
    jax.numpy_dtype_promotion("standard"),
    jax.numpy_rank_promotion("allow"),
  ):
    code = call(speech_recognition, *source, *TINY, *flags, *more)
  assert code == 0
  return workdir


def test_a_run_learns_tones_and_has_the_keys_of_the_contract(trained):
  found = json.loads((trained / "result.json").read_text())
  assert found["test_cer"] < 0.3 and found["test_wer"] <= 1
  assert "test_cer_by_snr" not in found
  assert (trained / "figures" / "transcript_test.png").stat().st_size > 10_000


def test_evaluate_finds_what_the_run_found(trained, capsys):
  assert call(evaluate, f"--workdir={trained}", "--split=test") == 0
  found = result(capsys.readouterr().out)
  whole = json.loads((trained / "result.json").read_text())
  for name in ("test_nats", "test_cer", "test_wer"):
    assert found[name] == pytest.approx(whole[name], rel=1e-4)


def test_sounds_without_transcripts_are_transcribed(
  trained, manifest, tmp_path, capsys
):
  new = manifest.parent / "new.tsv"
  names = [f"{number}.wav" for number in range(6)]
  new.write_text("\n".join(["path", *names, ""]))
  out = tmp_path / "out.jsonl"
  here = f"--workdir={trained}"
  assert call(predict, here, f"--input={new}", f"--output={out}") == 0
  found = [json.loads(line) for line in out.read_text().splitlines()]
  assert [row["source"].rpartition("/")[2] for row in found] == names
  for row in found:
    scores = [x["score"] for x in row["n_best"]]
    assert scores == sorted(scores, reverse=True) and len(scores) <= 2
    assert row["text"] == row["n_best"][0]["text"]
  one = manifest.parent / "0.wav"
  assert call(predict, here, f"--input={one}", f"--output={out}") == 0
  [alone] = out.read_text().splitlines()
  # The other sounds of a batch have no effect.
  assert json.loads(alone)["text"] == found[0]["text"]
  capsys.readouterr()
  assert call(generate, here, f"--prompt={one}") == 0
  assert result(capsys.readouterr().out)["texts"] == [found[0]["text"]]


@pytest.mark.parametrize(
  "flags",
  [
    ("--cell=transformer", "--heads=2", "--join=2,3", "--join_repeats=2"),
    ("--beams=1", "--sample_rate=3000"),
    (
      "--nobidirectional",
      "--delay=1",
      "--speed=0.1",
      "--gain=6",
      "--time_masks=1",
      "--band_masks=1",
      "--band_width=2",
    ),
  ],
  ids=str,
)
def test_flags_go_together(manifest, tmp_path, flags, capsys):
  here = (f"--workdir={tmp_path}", f"--manifest={manifest}")
  assert call(speech_recognition, *here, *TINY, *flags) == 0
  assert np.isfinite(result(capsys.readouterr().out)["test_nats"])


def test_a_language_model_takes_part_in_the_search(manifest, tmp_path, capsys):
  texts = tmp_path / "texts.txt"
  texts.write_text("abc\nab\n" * 200)
  lm = (f"--workdir={tmp_path / 'lm'}", f"--text_file={texts}")
  assert call(language_model, *lm, *scripts.TINY) == 0
  here = (f"--workdir={tmp_path / 'run'}", f"--manifest={manifest}", *TINY)
  fused = (f"--language_model={tmp_path / 'lm'}", "--lm_weight=2")
  assert call(speech_recognition, *here, *fused, "--length_bonus=3") == 0
  assert np.isfinite(result(capsys.readouterr().out)["test_cer"])
  texts.write_text("xy\nyx\n" * 200)
  lm = (f"--workdir={tmp_path / 'other'}", f"--text_file={texts}")
  assert call(language_model, *lm, *scripts.TINY) == 0
  capsys.readouterr()
  fused = f"--language_model={tmp_path / 'other'}"
  here = (f"--workdir={tmp_path / 'no'}", f"--manifest={manifest}", *TINY)
  printed = refused(capsys, 2, speech_recognition, *here, fused)
  assert "lacks symbols of the transcripts: 'a', 'b', 'c'" in printed


def test_morse_is_scored_by_noise_and_resumes_exactly(tmp_path, capsys):
  flags = (*TINY, "--message_seconds=3", "--test_examples=2", "--eval_every=1")
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  for workdir, steps in ((whole, 2), (cut, 1), (cut, 2)):
    here = (f"--workdir={workdir}", *flags, f"--steps={steps}")
    # Otherwise the learning rate would depend on --steps.
    constant = ("--schedule=constant", "--warmup_steps=0")
    assert call(speech_recognition, *here, *constant) == 0
  want, got = (
    json.loads((x / "result.json").read_text()) for x in (whole, cut)
  )
  assert got["params_sha256"] == want["params_sha256"]
  assert [*got["test_cer_by_snr"]] == ["-10", "-5", "0", "5", "10", "20"]
  for name in ("test_cer", "test_nats"):
    assert got[name] == want[name]
  assert rows(cut)[-1]["valid_cer"] == rows(whole)[-1]["valid_cer"]


@pytest.mark.several_devices
def test_numbers_do_not_depend_on_the_devices(manifest, tmp_path):
  noise = ("--speed=0.1", "--gain=6", "--time_masks=1", "--band_masks=1")
  source = (*TINY, f"--manifest={manifest}", *noise, "--batch_size=8")
  found = []
  for devices in (1, 8):
    here = (f"--workdir={tmp_path / str(devices)}", f"--devices={devices}")
    assert call(speech_recognition, *here, *source) == 0
    path = tmp_path / str(devices) / "result.json"
    found.append(json.loads(path.read_text()))
  for name in ("valid_nats", "test_nats"):
    assert found[0][name] == pytest.approx(found[1][name], rel=1e-4)


BAD = {
  "--beams=0": 2,
  "--join=3": 2,
  "--join=3,2": 2,
  "--splits=1,2,3": 2,
  "--message_seconds=1": 2,
  "--window_ms=1": 2,
  "--bands=200": 2,
  "--lm_weight=0.5": 2,
  "--delay=3": 2,
  "--language_model=none": 4,
  "--manifest=none.tsv": 3,
  "--manifest=none.wav": 3,
  "--dataset=mnist": 3,
}


@pytest.mark.parametrize("flag", BAD)
def test_what_cannot_be_is_refused(tmp_path, capsys, flag):
  here = (f"--workdir={tmp_path / 'run'}", *TINY)
  if "dataset" not in flag:
    here += ("--test_examples=1",)
  flags = (*here, *flag.split())
  printed = refused(capsys, BAD[flag], speech_recognition, *flags)
  name, _, value = flag.split()[0].strip("-").partition("=")
  assert name in printed or value in printed
  assert not (tmp_path / "run").exists()


def test_bad_sounds_are_refused_with_line_and_exit_code(
  manifest, tmp_path, capsys
):
  lines = manifest.read_text().splitlines()
  bad = manifest.parent / "bad.tsv"
  (manifest.parent / "empty.wav").write_bytes(b"")
  for cells, message in (
    ("empty.wav\ta\ttrain\t0", "line 50: .*empty.wav is empty"),
    ("0.wav\tx\ttest\t0", "line 50, column text: no transcript of train"),
    ("0.wav\t" + "ab" * 80 + "\ttrain\t0", "line 50.* time steps for CTC"),
  ):
    bad.write_text("\n".join([*lines, cells, ""]))
    here = (f"--workdir={tmp_path / 'run'}", f"--manifest={bad}")
    printed = refused(capsys, 3, speech_recognition, *here, *TINY)
    assert re.search(message, printed), printed
