"""The train step of every experiment on several devices and on one."""

import functools
import re

import jax
import numpy as np
import pytest

from experiments import (
  classification,
  forecasting,
  language_model,
  memory,
  programs,
  runner,
  translation,
)
from recurrent import optim, sharding
from recurrent.training import digest, step
from tests.experiments.classification_test import write_arrays, write_tags

pytestmark = [
  pytest.mark.several_devices,
  pytest.mark.usefixtures("standard_promotion"),
]
STEPS = 3

# A small run of each experiment, with what its loss may contain: penalties,
# several means, masks, and noise of every kind.
CASES = {
  "language model": (language_model, "output_dropout=0.4 ema=0.9"),
  "language model, penalties": (
    language_model,
    "activation_penalty=2 temporal_penalty=1 embedding_dropout=0.2"
    " embedding_row_dropout=0.1 recurrent_dropout=0.2 weight_drop=0.2 layers=2",
  ),
  "language model, zoneout": (
    language_model,
    "cell=lstm zoneout=0.1 memory_zoneout=0.1 update_dropout=0.1 accumulate=2",
  ),
  "language model, linear": (language_model, "cell=min_gru"),
  "language model, transformer": (
    language_model,
    "cell=transformer heads=2 dropout=0.1",
  ),
  "classification of series": (
    classification,
    "missing=model imputation_weight=0.5 label_smoothing=0.1 data_file={npz}",
  ),
  "classification by decay": (
    classification,
    "missing=decay nobidirectional data_file={npz}",
  ),
  "labels of every word": (
    classification,
    "tokenizer=word data_file={tags} output_dropout=0.2",
  ),
  "forecasting": (
    forecasting,
    "csv_file={csv} context=12 horizon=6 missing=model",
  ),
  "forecasting, step by step": (
    forecasting,
    "csv_file={csv} context=12 horizon=6 decoding=recursive",
  ),
  "memory": (memory, "task=mqar length=20"),
  "translation": (
    translation,
    "label_smoothing=0.1 output_dropout=0.2 {files} max_length=4 beams=2"
    " layers=1",
  ),
  "translation, coverage": (
    translation,
    "{files} max_length=4 beams=2 joint copying coverage coverage_loss=1"
    " scheduled_sampling=0.3",
  ),
  "translation, feeding": (
    translation,
    "{files} max_length=4 beams=2 feeding attention=local_p",
  ),
}


@pytest.fixture(scope="session")
def places(tmp_path_factory):
  """The files that the flags of the cases name."""
  folder = tmp_path_factory.mktemp("devices")
  series = (
    np.sin(np.arange(120) / 2) + np.random.default_rng(0).normal(size=120) / 9
  )
  lines = [f"{t},{'' if t % 7 == 3 else x}" for t, x in enumerate(series)]
  (folder / "days.csv").write_text("\n".join(["t,a", *lines]) + "\n")
  flags = []
  for split, times in (("train", 8), ("valid", 2), ("test", 2)):
    files = [folder / f"{split}.{side}" for side in ("src", "tgt")]
    for file in files:
      file.write_text("a b\nb c a\nc\na a b c\nb\n" * times)
    flags.append(f"{split}_files={files[0]},{files[1]}")
  return {
    "npz": write_arrays(folder / "a.npz"),
    "tags": write_tags(folder / "tags.jsonl"),
    "csv": folder / "days.csv",
    "files": " ".join(flags),
  }


def make(name, places):
  module, flags = CASES[name]
  flags = flags.format(**places).split()
  common = "--workdir=x", "--smoke", "--features=8", "--batch_size=16"
  argv = ["", *common, *(f"--{flag}" for flag in flags)]
  config = runner.config_lib.parse(module.Config, argv)
  return config, module.make_task(config)


def begin(config, task, devices, model_parallel=1, zero=False):
  """The initial state on a mesh, its step, and what places a batch there."""
  mesh = sharding.make_mesh(devices, model_parallel)
  optimizer = optim.make_optimizer(config, STEPS)
  init, graphdef = runner.initialiser(config, task, optimizer)
  where = step.state_sharding(mesh, jax.eval_shape(init), zero=zero)
  state = jax.jit(init, out_shardings=where)()
  train_step = step.make_train_step(
    graphdef,
    task.loss,
    optimizer,
    mesh,
    seed=0,
    ema_decay=config.ema,
    zero=zero,
  )
  rows = sharding.split_batch(mesh)
  return state, train_step, lambda n: sharding.put(task.batches[n], rows)


def trained(config, task, *layout):
  """All numbers of the state after some steps, and the losses."""
  state, train_step, batch = begin(config, task, *layout)
  losses = []
  for number in range(STEPS):
    state, status = train_step(state, batch(number))
    losses.append(status.loss)
  return jax.device_get({**digest.flatten(state), "losses": np.array(losses)})


@pytest.mark.parametrize("name", CASES)
def test_several_devices_compute_what_one_does(name, places, caplog):
  config, task = make(name, places)
  run = functools.partial(trained, config, task)
  want = run(1)
  for devices in (2, 4, 8) if name == "language model" else (8,):
    found = run(devices)
    assert found.keys() == want.keys()
    for path, array in want.items():
      np.testing.assert_allclose(
        found[path], array, rtol=1e-5, atol=1e-5, err_msg=path
      )
  # Each device has run on its own rows.
  assert "compiler divides" not in caplog.text


@pytest.mark.parametrize(
  "layout", [(2, 2), (8, 2), (8, 4), (8, 1, True), (4, 2, True)]
)
@pytest.mark.parametrize(
  "name", ["language model", "language model, penalties"]
)
def test_parameters_may_be_divided(name, layout, places):
  config, task = make(name, places)
  want, found = trained(config, task, 1), trained(config, task, *layout)
  for path, array in want.items():
    np.testing.assert_allclose(
      found[path], array, rtol=1e-5, atol=1e-5, err_msg=path
    )


@pytest.mark.parametrize("name", CASES)
def test_several_devices_score_what_one_does(name, places, caplog):
  config, task = make(name, places)
  init, _ = runner.initialiser(config, task, optim.make_optimizer(config, 1))
  state = jax.jit(init)()
  graphdef = runner._evaluated_graphdef(config, task.make_model)
  found = []
  for devices in (1, 8):
    mesh = sharding.make_mesh(devices)
    params = sharding.put(state.evaluated, sharding.replicated(mesh))
    evaluate = runner.make_evaluate(task, graphdef, mesh)
    found.append(evaluate(params, "valid", lambda: False))
  for key, value in found[0].items():
    if isinstance(value, float):
      value = pytest.approx(value, rel=1e-5, abs=1e-5)
    assert found[1][key] == value
  assert "compiler divides" not in caplog.text


def compiled(devices, *flags):
  """The number of parameters of a language model, and its compiled step."""
  flags = [f"--{flag}" for flag in ("features=8", "batch_size=16", *flags)]
  argv = ["", "--workdir=x", "--smoke", *flags]
  config = runner.config_lib.parse(language_model.Config, argv)
  task = language_model.make_task(config)
  state, train_step, batch = begin(config, task, devices)
  text = train_step.lower(state, batch(0)).compile().as_text()
  return sum(x.size for x in jax.tree.leaves(state.params)), text


@pytest.mark.parametrize(
  ("devices", "flags"),
  [
    (2, ["method=auto"]),
    (4, ["method=scan"]),
    (8, ["method=fused", "activation_penalty=1"]),
    (8, ["method=auto", "layers=2", "clip_norm=1"]),
    (8, ["cell=min_gru", "remat=4"]),
  ],
)
def test_a_step_has_one_all_reduce_after_its_loops(devices, flags):
  size, text = compiled(devices, *flags)
  [found] = programs.collectives(text)
  assert found[:3] == ("all-reduce", False, 1)
  # The gradients, and some sums of the loss and of its metrics.
  assert size < found.bytes / 4 <= size + 8


def test_a_collective_within_a_loop_is_seen():
  mesh = sharding.make_mesh(2)

  def run(x):
    each = lambda x, _: (jax.lax.psum(x, "data") / 3, None)
    return jax.lax.scan(each, x, length=5)[0]

  sharded = jax.shard_map(
    run,
    mesh=mesh,
    in_specs=sharding.ROWS,
    out_specs=sharding.ROWS,
    check_vma=False,
  )
  text = jax.jit(sharded).lower(np.ones((4, 3), np.float32)).compile().as_text()
  [found] = programs.collectives(text)
  assert found == ("all-reduce", True, 1, 24)


def test_the_loop_in_cpp_runs_on_the_rows_of_each_device():
  size, text = compiled(8)
  loops = re.findall(r"custom-call\(.*recurrent_lstm\w*", text)
  assert len(loops) == 2, "forward and backward"
