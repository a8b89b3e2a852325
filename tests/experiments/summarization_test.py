"""The summariser, from a command line to a summary."""

import io
import json
import logging

import jax
import pytest

from experiments import config, evaluate, generate, predict, summarization
from recurrent.errors import ConfigError
from tests.experiments.scripts import call, result, rows

pytest.importorskip("rouge_score")

TINY = (
  "--tokenizer=char",
  "--features=16",
  "--embedding_features=8",
  "--batch_size=8",
  "--steps=4",
  "--log_every=2",
  "--eval_every=2",
  "--max_length=16",
  "--max_target_length=6",
  "--beams=2",
  "--warmup_steps=1",
)
TEXTS = ["A cat. It naps", "A dog. It runs! ", "A hen? It sits."]


def write(path, columns=("document", "summary"), times=9):
  with path.open("w") as file:
    for text in TEXTS * times:
      values = dict(zip(columns, (text, text[2:5]), strict=False))
      file.write(json.dumps(values | {"number": 1}) + "\n")
  return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp("summaries")
  file = folder / "all.jsonl"
  with file.open("w") as lines:
    for i, text in enumerate(TEXTS * 9):
      split = ("train", "train", "valid", "test")[i % 4]
      row = {"document": text, "summary": text[2:5], "split": split}
      lines.write(json.dumps(row) + "\n")
  flags = (f"--workdir={folder}/run", *TINY, f"--data_file={file}")
  with (
    jax.numpy_dtype_promotion("standard"),
    jax.numpy_rank_promotion("allow"),
  ):
    assert call(summarization, *flags, "--coverage", "--coverage_loss=1") == 0
  return folder / "run"


def test_a_run_has_the_keys_of_the_contract_and_the_lead_beside_them(trained):
  found = json.loads((trained / "result.json").read_text())
  for name in ("rouge1", "rouge2", "rougeL"):
    assert 0 <= found[f"test_{name}"] <= 100
    assert 0 <= found[f"lead_{name}"] <= 100
  # Of "A cat." and "cat" one word of two is common.
  assert found["lead_rouge1"] == pytest.approx(200 / 3)
  assert {"test_copied", "test_repeated", "test_coverage_loss"} <= found.keys()
  assert (trained / "figures" / "attention.png").stat().st_size > 5000


def test_each_evaluation_shows_examples_and_a_table(trained, caplog, capsys):
  with caplog.at_level(logging.INFO, "recurrent"):
    assert call(evaluate, f"--workdir={trained}", "--split=valid") == 0
  said = capsys.readouterr()
  assert "A cat. It naps -> " in said.err
  assert [line.split()[0] for line in said.err.splitlines()[-4:]] == [
    *("valid", "model", "lead", "reference")
  ]
  last = [row for row in rows(trained) if "valid_nats" in row][-1]
  for name in ("valid_nats", "valid_rouge1", "valid_copied"):
    assert result(said.out)[name] == pytest.approx(last[name], rel=1e-5)


def test_documents_of_a_file_and_of_stdin_have_the_same_summaries(
  trained, tmp_path, capsys, monkeypatch
):
  (tmp_path / "new.txt").write_text("\n".join(TEXTS))
  write(tmp_path / "new.jsonl", ("document",), times=1)
  found = []
  for name in ("new.txt", "new.jsonl"):
    files = f"--input={tmp_path / name}", f"--output={tmp_path / 'out'}"
    assert call(predict, f"--workdir={trained}", *files) == 0
    lines = (tmp_path / "out").read_text().splitlines()
    found.append([json.loads(line) for line in lines])
  assert found[0] == found[1]
  assert [row["source"] for row in found[0]] == [x.strip() for x in TEXTS]
  for row in found[0]:
    scores = [beam["score"] for beam in row["n_best"]]
    assert scores == sorted(scores, reverse=True) and 1 <= len(scores) <= 2
    assert row["text"] == row["n_best"][0]["text"]
  capsys.readouterr()
  monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(TEXTS)))
  assert call(generate, f"--workdir={trained}") == 0
  printed = result(capsys.readouterr().out)
  assert printed["texts"] == [row["text"] for row in found[0]]
  for mine, row in zip(printed["n_best"], found[0], strict=True):
    assert [x["text"] for x in mine] == [x["text"] for x in row["n_best"]]


@pytest.mark.parametrize("flag", ["--cell=transformer", "--attention=none"])
def test_without_attention_nothing_is_copied_unless_asked_for(flag):
  flags = ["", "--workdir=x", flag]
  assert not config.parse(summarization.Config, flags).copying
  with pytest.raises(ConfigError, match="copying needs attention"):
    config.parse(summarization.Config, [*flags, "--copying"])
  assert config.parse(summarization.Config, flags[:2]).copying


def test_without_a_split_rows_are_divided_by_hash(tmp_path):
  path = tmp_path / "a.jsonl"
  with path.open("w") as file:
    for i in range(200):
      print(json.dumps({"document": f"no {i}", "summary": str(i)}), file=file)
  found = summarization.load_pairs(
    summarization.Config(workdir="x", data_file=str(path), splits="60,20,20")
  )
  sizes = {name: len(pairs.sources) for name, pairs in found.items()}
  assert sum(sizes.values()) == 200
  assert 90 < sizes["train"] < 150 and min(sizes.values()) > 15
  for sources, targets in found.values():
    assert sources == [f"no {target}" for target in targets]
