"""The language model, from a command line to a result."""

import functools
import json
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import evaluate, generate, language_model, predict
from experiments.runner import read_config
from recurrent import cells, decoding
from recurrent.errors import ConfigError
from tests.experiments.scripts import TINY, call, refused, result, rows
from tests.models import build

STREAM = decoding.Stream


def train(capsys, workdir, *flags):
  assert call(language_model, f"--workdir={workdir}", *TINY, *flags) == 0
  return result(capsys.readouterr().out)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
  path = tmp_path_factory.mktemp("text") / "text.txt"
  path.write_text("the quick brown fox jumps over the lazy dog\n" * 200)
  return path


def test_a_run_leaves_what_the_contract_names(tmp_path, capsys):
  found = train(capsys, tmp_path / "run")
  assert found["step"] in (6, 12) and found["last_step"] == 12
  assert 0 < found["valid_bpc"] < 8 and 0 < found["test_bpc"] < 8
  assert len(found["params_sha256"]) == 64
  run = tmp_path / "run"
  assert json.loads((run / "config.json").read_text())["config"]["cell"]
  assert {row["step"] for row in rows(run)} == {3, 6, 9, 12}
  assert (run / "checkpoints" / "12").is_dir()
  assert (run / "figures" / "curves.png").read_bytes()[:4] == b"\x89PNG"
  assert list(run.glob("events.out.tfevents.*"))


def test_the_loss_falls(tmp_path, capsys, text_file):
  flags = (f"--text_file={text_file}", "--steps=60", "--eval_every=60")
  found = train(capsys, tmp_path, *flags, "--learning_rate=0.02")
  # 28 characters: log2 is 4.8 bits.
  assert found["valid_bpc"] < 3.5


# With `make laws` all of them; else one of each kind.
TRAINED = (
  cells.vector_cells()
  if os.environ.get("RECURRENT_ALL_LAWS")
  else ("rnn", "lstm_projected", "slstm", "mogrifier", "s5", "mlstm")
)


@pytest.mark.parametrize("cell", TRAINED)
def test_every_cell_trains(tmp_path, capsys, cell):
  found = train(capsys, tmp_path, f"--cell={cell}", "--steps=3")
  assert math.isfinite(found["valid_bpc"])


@pytest.mark.parametrize(
  "flags",
  [
    ("--layers=2", "--dropout=0.2", "--residual", "--tied"),
    ("--dtype=bfloat16", "--remat=5", "--method=scan"),
    ("--tokenizer=word", "--ema=0", "--accumulate=2", "--remat=gates"),
    ("--tokenizer=byte", "--optimizer=sgd"),
    ("--embedding_dropout=0.2", "--schedule=plateau", "--weight_decay=0.1"),
    ("--weight_drop=0.3", "--recurrent_dropout=0.2", "--cell=gru"),
    ("--zoneout=0.1", "--memory_zoneout=0.1", "--update_dropout=0.1"),
    ("--cell=transformer", "--heads=2", "--context=20", "--layers=2"),
    ("--cell=lstm", "--structure=low_rank:4", "--splits=80,10,10"),
    (
      "--activation_penalty=2",
      "--temporal_penalty=1",
      "--embedding_row_dropout=0.1",
    ),
  ],
  ids=lambda flags: flags[0][2:],
)
def test_flags_go_together(tmp_path, capsys, flags):
  if "--tied" in flags:
    args = [f for f in TINY if "embedding" not in f]
    assert call(language_model, f"--workdir={tmp_path}", *args, *flags) == 0
    found = result(capsys.readouterr().out)
  else:
    found = train(capsys, tmp_path, *flags)
  word = "--tokenizer=word" in flags
  assert math.isfinite(found["valid_perplexity" if word else "valid_bpc"])


def test_a_closed_vocabulary_has_a_perplexity_and_no_bits_a_character(
  tmp_path, capsys
):
  # Nearly all words are unknown, and cost nearly nothing.
  flags = ("--tokenizer=word", "--vocab_size=2", "--learning_rate=0.05")
  found = train(capsys, tmp_path, *flags)
  written = {name for row in rows(tmp_path) for name in row}
  assert not [name for name in {*found, *written} if "bpc" in name]
  assert {"train_perplexity", "valid_perplexity"} <= written
  for split in ("valid", "test"):
    assert found[f"{split}_perplexity"] == pytest.approx(
      math.exp(found[f"{split}_loss"])
    )
    assert 0.5 < found[f"{split}_unknown_share"] < 1
  # What was best was chosen by it, and evaluate tells the same.
  perplexities = [
    r["valid_perplexity"] for r in rows(tmp_path) if "valid_perplexity" in r
  ]
  assert found["valid_perplexity"] == pytest.approx(min(perplexities), rel=1e-6)
  assert call(evaluate, f"--workdir={tmp_path}") == 0
  again = result(capsys.readouterr().out)
  assert again["test_unknown_share"] == found["test_unknown_share"]
  assert "test_bpc" not in again


def test_sentencepiece_trains(tmp_path, capsys, text_file):
  pytest.importorskip("sentencepiece")
  found = train(
    capsys,
    tmp_path,
    f"--text_file={text_file}",
    "--tokenizer=sentencepiece",
    "--vocab_size=300",
  )
  assert math.isfinite(found["valid_bpc"])


def test_the_same_command_twice_gives_the_same_bits(tmp_path, capsys):
  first = train(capsys, tmp_path / "a")
  second = train(capsys, tmp_path / "b")
  assert first == second
  assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_another_seed_gives_other_bits(tmp_path, capsys):
  first = train(capsys, tmp_path / "a")
  second = train(capsys, tmp_path / "b", "--seed=1")
  assert first["params_sha256"] != second["params_sha256"]


def test_a_finished_run_says_so_and_touches_nothing(tmp_path, capsys, caplog):
  first = train(capsys, tmp_path)
  before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.jsonl")}
  assert train(capsys, tmp_path) == first
  assert {f: f.stat().st_mtime_ns for f in before} == before


def test_more_steps_go_on_from_the_last(tmp_path, capsys):
  flags = ("--schedule=constant",)
  whole = train(capsys, tmp_path / "whole", *flags, "--steps=12")
  train(capsys, tmp_path / "parts", *flags, "--steps=6")
  parts = train(capsys, tmp_path / "parts", *flags, "--steps=12")
  assert parts == whole
  assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_bits_a_character_do_not_depend_on_the_batch_size(tmp_path, capsys):
  train(capsys, tmp_path)
  config = read_config(tmp_path, "language_model", language_model.Config)
  assert config.batch_size == 8
  # Not an argument of the evaluation, then: its rows are.
  assert call(evaluate, f"--workdir={tmp_path}", "--split=valid") == 0
  found = result(capsys.readouterr().out)
  best = min(r["valid_bpc"] for r in rows(tmp_path) if "valid_bpc" in r)
  assert found["valid_bpc"] == pytest.approx(best, rel=1e-6)


@pytest.mark.several_devices
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_any_number_of_devices_gives_the_same_curve(tmp_path, capsys, devices):
  flags = ("--output_dropout=0.1", "--steps=24")
  train(capsys, tmp_path / "1", "--devices=1", *flags)
  train(capsys, tmp_path / "n", f"--devices={devices}", *flags)
  for one, many in zip(rows(tmp_path / "1"), rows(tmp_path / "n"), strict=True):
    assert one == pytest.approx(many, rel=1e-5)


@pytest.mark.several_devices
def test_a_divided_model_gives_the_same_curve_and_resumes_as_a_whole_one(
  tmp_path, capsys
):
  whole = ("--ema=0.9", "--schedule=constant")
  divided = ("--devices=4", "--model_parallel=2", "--zero")
  one = train(capsys, tmp_path / "1", "--devices=1", *whole)
  train(capsys, tmp_path / "n", *divided, *whole, "--steps=6")
  many = train(capsys, tmp_path / "n", "--devices=2", *whole)
  for a, b in zip(rows(tmp_path / "1"), rows(tmp_path / "n"), strict=True):
    assert a == pytest.approx(b, rel=1e-5)
  assert one["test_bpc"] == pytest.approx(many["test_bpc"], rel=1e-5)


def test_generate_draws_what_was_asked_for(tmp_path, capsys):
  train(capsys, tmp_path)
  flags = (f"--workdir={tmp_path}", "--prompt=The", "--num_tokens=300")
  assert call(generate, *flags) == 0
  first = capsys.readouterr().out
  assert first.startswith("The")
  assert result(first)["tokens"] == 300
  # A token is a character, but where several spell one that train lacks.
  drawn = len("".join(first.splitlines(keepends=True)[:-1])) - 3 - 1
  assert 200 < drawn <= 300
  assert call(generate, *flags) == 0
  again = capsys.readouterr().out
  assert again.splitlines()[:-1] == first.splitlines()[:-1]
  assert call(generate, *flags, "--num_samples=3", "--top_k=5") == 0
  many = capsys.readouterr().out
  assert many.count("--- sample") == 3
  assert len(result(many)["log_probabilities"]) == 3


@pytest.fixture(scope="module")
def some_run(text_file, tmp_path_factory):
  """A workdir with a model of the characters of `text_file`."""
  workdir = tmp_path_factory.mktemp("run")
  with (
    jax.numpy_dtype_promotion("standard"),
    jax.numpy_rank_promotion("allow"),
  ):
    flags = (*TINY, "--steps=3", f"--text_file={text_file}")
    assert call(language_model, f"--workdir={workdir}", *flags) == 0
  return workdir


def printed_text(capsys):
  """What a script printed before the JSON object, and that object."""
  out = capsys.readouterr().out
  return out.rpartition("\n{")[0], result(out)


@pytest.mark.parametrize("samples", [1, 2])
def test_a_character_is_whole_where_two_blocks_meet(
  tmp_path, capsys, monkeypatch, samples
):
  text = tmp_path / "text.txt"
  text.write_text("日本語の文字😀" * 400)
  flags = (f"--text_file={text}", "--tokenizer=byte", "--steps=3")
  train(capsys, tmp_path / "run", *flags)
  flags = (f"--workdir={tmp_path / 'run'}", f"--num_samples={samples}")
  printed = []
  for block in (256, 5):
    made = functools.partial(STREAM, block=block)
    monkeypatch.setattr(decoding, "Stream", made)
    assert call(generate, *flags, "--num_tokens=60") == 0
    printed.append(printed_text(capsys)[0])
  assert printed[0] == printed[1]


def test_a_text_ends_before_its_stop_token(some_run, capsys):
  flags = (f"--workdir={some_run}", "--prompt=the ", "--num_tokens=300")
  assert call(generate, *flags) == 0
  whole, _ = printed_text(capsys)
  stop = next(letter for letter in whole[30:] if letter != "\ufffd")
  expected = whole[: whole.index(stop, 4)]
  assert call(generate, *flags, f"--stop={stop}") == 0
  text, found = printed_text(capsys)
  assert text == expected and found["texts"] == [expected]
  tokenizer = language_model.load(some_run)[1]
  assert found["tokens"] == len(tokenizer.encode(expected)) - 4


@pytest.mark.parametrize("num_tokens", [1, 256, 300, 512])
def test_the_speed_is_that_of_decoding_alone(
  some_run, capsys, monkeypatch, num_tokens
):
  # A clock that stands still between two looks at it, but for compilations.
  now = [0.0]

  def compiled(event, seconds, **kwargs):
    del seconds, kwargs
    now[0] += 1e6 * ("compile" in event)

  def look():
    now[0] += 1
    return now[0]

  jax.monitoring.register_event_duration_secs_listener(compiled)
  monkeypatch.setattr(generate.time, "perf_counter", look)
  flags = ("--prompt=the ", f"--num_tokens={num_tokens}")
  assert call(generate, f"--workdir={some_run}", *flags) == 0
  found = result(capsys.readouterr().out)
  assert now[0] > 1e6  # It was compiled, but before.
  assert found["tokens_per_second"] == 256
  assert found["tokens"] == num_tokens


def test_generate_refuses_from_a_notebook_too(some_run):
  for wrong in ({"num_tokens": 0}, {"prompt": ""}, {"prompt": "日"}):
    with pytest.raises(ConfigError, match="--" + next(iter(wrong))):
      generate.run(generate.Config(str(some_run), **wrong))


def test_narrow_weights_draw_and_are_scored_near_float32(tmp_path, capsys):
  trained = train(capsys, tmp_path)
  here = f"--workdir={tmp_path}"
  for weights, bound in (("bfloat16", 2e-3), ("int8", 1e-2)):
    assert call(evaluate, here, f"--weights={weights}") == 0
    found = result(capsys.readouterr().out)["test_bpc"]
    # float32 was scored by the model itself, these are by the packed step.
    assert found == pytest.approx(trained["test_bpc"], rel=bound)
    assert found != trained["test_bpc"]
  sizes = {}
  for weights in ("float32", "int8"):
    flags = (f"--weights={weights}", "--num_tokens=300", "--num_samples=2")
    assert call(generate, here, *flags) == 0
    drawn = result(capsys.readouterr().out)
    assert drawn["tokens"] == 600
    sizes[weights] = drawn["weight_bytes"]
  assert sizes["int8"] < sizes["float32"]


def test_weights_that_cannot_be_are_refused(tmp_path, capsys):
  train(capsys, tmp_path)
  here = f"--workdir={tmp_path}"
  for module in (evaluate, generate):
    said = refused(capsys, 2, module, here, "--weights=int4")
    assert "--weights=int4 is unknown" in said and "int8" in said
  said = refused(capsys, 2, evaluate, here, "--weights=int8", "--dynamic=1e-3")
  assert "cannot learn" in said


def test_generate_refuses_what_it_cannot_do(tmp_path, capsys):
  train(capsys, tmp_path)
  here = f"--workdir={tmp_path}"
  said = refused(capsys, 2, generate, here, "--prompt=日本")
  assert "'日', '本'" in said
  refused(capsys, 2, generate, here, "--prompt=")
  refused(capsys, 2, generate, here, "--temperature=-1")
  refused(capsys, 2, generate, here, "--top_p=0")
  refused(capsys, 2, generate, here, "--num_tokens=0")
  refused(capsys, 2, generate, here, "--stop=xyz")
  assert "--stop has" in refused(capsys, 2, generate, here, "--stop=日")
  refused(capsys, 4, generate, f"--workdir={tmp_path / 'nothing'}")
  refused(capsys, 2, evaluate, here, "--split=validation")


def test_generate_falls_back_or_says_that_no_checkpoint_is_good(
  tmp_path, capsys
):
  train(capsys, tmp_path, "--checkpoint_every=3")
  folder = tmp_path / "checkpoints"
  steps = sorted(int(d.name) for d in folder.iterdir())
  here = f"--workdir={tmp_path}"
  for step in steps[1:]:
    (folder / str(step) / "about" / "metadata").write_text("{")
  assert call(generate, here, "--num_tokens=5") == 0
  assert result(capsys.readouterr().out)["step"] == steps[0]
  (folder / str(steps[0]) / "about" / "metadata").unlink()
  refused(capsys, 4, generate, here, "--num_tokens=5")


@pytest.mark.parametrize(
  "flags", [(), ("--cell=transformer", "--heads=2")], ids=str
)
def test_lines_of_a_file_have_the_scores_of_evaluate(tmp_path, capsys, flags):
  text = tmp_path / "text.txt"
  text.write_text("".join(f"{n}: to be or not to be\n" for n in range(400)))
  source = (f"--text_file={text}", "--splits=60,20,20", "--eval_rows=1")
  train(capsys, tmp_path / "run", *source, "--eval_warm_up=0", *flags)
  here = f"--workdir={tmp_path / 'run'}"
  assert call(evaluate, here, "--split=test") == 0
  loss = result(capsys.readouterr().out)["test_loss"]
  new, found = tmp_path / "new.txt", tmp_path / "found.jsonl"
  test = text.read_text()[int(0.8 * len(text.read_text())) :]
  new.write_text(test)
  assert call(predict, here, f"--input={new}", f"--output={found}") == 0
  lines = [json.loads(line) for line in found.read_text().splitlines()]
  assert result(capsys.readouterr().out)["rows"] == len(lines)
  assert [line["text"] for line in lines] == test.splitlines()
  total = sum(line["nats"] for line in lines)
  assert total == pytest.approx(loss * (len(test) - 1), rel=1e-4)


def test_predict_refuses_what_it_cannot_do(some_run, tmp_path, capsys):
  here, out = f"--workdir={some_run}", f"--output={tmp_path / 'out'}"
  new = tmp_path / "new.txt"
  new.write_text("to be")
  refused(capsys, 2, predict, here, out)
  refused(capsys, 3, predict, here, out, f"--input={tmp_path / 'none'}")
  refused(capsys, 4, predict, f"--workdir={tmp_path}", f"--input={new}", out)
  where = f"--output={tmp_path / 'no' / 'out'}"
  refused(capsys, 2, predict, here, f"--input={new}", where)
  new.write_bytes(b"\xff")
  refused(capsys, 3, predict, here, f"--input={new}", out)
  assert os.listdir(tmp_path) == ["new.txt"]


def test_penalties_are_added_with_their_weights():
  model = build.language_model(7, features=4, rngs=nnx.Rngs(0))
  tokens, key = jnp.arange(6).reshape(2, 3), jax.random.key(0)
  batch = {"inputs": tokens, "targets": tokens}
  plain, (_, metrics) = language_model.loss(model, None, batch, key)
  raw, dropped = model.activations(None, batch["inputs"], key=key)[1:]
  want = (
    plain
    + 2 * jnp.mean(dropped**2)
    + 3 * jnp.mean(jnp.square(jnp.diff(raw, axis=1)))
  )
  penalised, (_, same) = language_model.loss(
    model, None, batch, key, activation_penalty=2.0, temporal_penalty=3.0
  )
  np.testing.assert_allclose(penalised, want, rtol=1e-6)
  assert same["nats"] == metrics["nats"]


def test_the_rows_have_the_learning_rate_that_was_used(tmp_path, capsys):
  # A loss that a rate of 1e-9 leaves where it is: a plateau at every window.
  flags = (
    "--learning_rate=1e-9",
    "--schedule=plateau",
    "--plateau_window=1",
    "--plateau_patience=1",
    "--plateau_factor=0.1",
    "--plateau_min=0.01",
    "--warmup_steps=0",
    "--log_every=1",
  )
  train(capsys, tmp_path, *flags)
  rates = [r["learning_rate"] for r in rows(tmp_path) if "train_loss" in r]
  assert all(a >= b for a, b in zip(rates, rates[1:], strict=False))
  assert rates[0] == pytest.approx(1e-9) and rates[-1] == pytest.approx(1e-11)
