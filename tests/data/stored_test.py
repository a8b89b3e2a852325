"""Tests of tokens that stay on disk."""

import pickle

import numpy as np
import pytest

from recurrent import data
from recurrent.data import splits, stored
from recurrent.errors import DataError

IDS = np.random.default_rng(0).integers(0, 1000, 150_000).astype(np.uint16)


@pytest.fixture
def tokens(tmp_path):
  path = tmp_path / "tokens.array_record"
  data.write_tokens(path, np.split(IDS, [10, 10, 70_000, 149_999]))
  return data.RecordTokens(path)


def test_records_hold_what_was_written(tokens):
  assert (len(tokens), tokens.dtype, tokens.shape) == (
    150_000,
    "u2",
    (150_000,),
  )
  np.testing.assert_array_equal(tokens[:], IDS)
  np.testing.assert_array_equal(tokens[-5:], IDS[-5:])
  index = np.array([[0, 65_535], [65_536, 149_999]])
  np.testing.assert_array_equal(tokens[index], IDS[index])
  with pytest.raises(IndexError):
    tokens[np.array([150_000])]


def test_batches_of_stored_tokens_are_those_of_an_array(tokens):
  make = lambda ids: data.ContiguousBatches(ids, 4, seq_len=100, seed=1)
  scored = lambda ids: data.EvalStreams(ids, rows=3, seq_len=500)
  again = pickle.loads(pickle.dumps(make(tokens)))
  for step in (0, 7, 1000):
    for found in (make(tokens)[step], again[step]):
      for key, want in make(IDS)[step].items():
        np.testing.assert_array_equal(found[key], want)
  for key, want in scored(IDS)[99].items():
    np.testing.assert_array_equal(scored(tokens)[99][key], want)


@pytest.mark.parametrize("content", [b"", b"no records"])
def test_another_file_is_refused(tmp_path, content):
  (tmp_path / "x").write_bytes(content)
  with pytest.raises(DataError, match="cannot read"):
    data.RecordTokens(tmp_path / "x")


def test_ids_that_do_not_fit_are_refused(tmp_path):
  with pytest.raises(DataError, match="token 300 does not fit into uint8"):
    data.write_tokens(tmp_path / "x", [np.array([300])], np.uint8)


def test_a_file_is_cut_between_characters(tmp_path):
  text = "aé漢😀" * 40
  (tmp_path / "text.txt").write_text(text, encoding="utf-8")
  parts = data.split_file(tmp_path / "text.txt", splits.Shares(0.5, 0.3, 0.2))
  found = [part[:].tobytes().decode() for part in parts.values()]
  assert "".join(found) == text and [*parts] == ["train", "valid", "test"]
  assert [part.characters() for part in parts.values()] == [*map(len, found)]
  with pytest.raises(DataError, match="too short"):
    data.split_file(tmp_path / "text.txt", splits.Shares(1.0, 0.0, 0.0))
  with pytest.raises(DataError, match="No such file"):
    data.split_file(tmp_path / "absent")


def test_the_hash_tells_texts_apart(tmp_path):
  content = bytearray(b"ab" * 50)
  hashes = set()
  for change in range(3):
    content[change] = 0
    (tmp_path / str(change)).write_bytes(content)
    hashes.add(data.FileTokens(tmp_path / str(change), 0, 100).sha256())
  assert len(hashes) == 3
  assert data.FileTokens(tmp_path / "0", 0, 99).sha256() not in hashes


def test_a_file_larger_than_the_memory_costs_what_its_batches_do(tmp_path):
  # 20 GB without a block on the disk, as `truncate` makes it.
  with (tmp_path / "large").open("wb") as file:
    file.truncate(20 * 10**9)
  parts = data.split_file(tmp_path / "large")
  batches = data.ContiguousBatches(parts["train"], 8, seq_len=64)
  before = _resident()
  for step in np.linspace(0, batches.windows_per_pass - 1, 200).astype(int):
    assert batches[int(step)]["inputs"].shape == (8, 64)
  assert _resident() - before < 100 * 2**20
  assert len(parts["train"].sha256()) == 64
  assert _resident() - before < 200 * 2**20


def _resident():
  """Bytes of this process that are in memory."""
  with open("/proc/self/statm") as file:
    return int(file.read().split()[1]) * 4096


def test_records_larger_than_the_memory_cost_what_is_kept(tmp_path):
  count = 4 * stored.RECORDS_KEPT
  piece = np.zeros(stored.RECORD, np.uint16)
  data.write_tokens(tmp_path / "x", (piece for _ in range(count)))
  tokens = data.RecordTokens(tmp_path / "x")
  for place in range(0, len(tokens), stored.RECORD // 2):
    tokens[place : place + 2]
  assert tokens._record.cache_info().currsize == stored.RECORDS_KEPT
