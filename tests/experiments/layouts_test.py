"""Checkpoints go on with any devices, processes and division of the model.

  python -m tests.experiments.layouts_test

saves on every layout of 1, 2, 4 and 8 devices, in 1 and 2 processes, with and
without a divided model, and restores each checkpoint on each layout. The test
does so in one process.
"""

import argparse
import functools
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from experiments import language_model, runner
from launch import local
from recurrent.training import digest
from recurrent.training.checkpoint import Checkpoints
from tests.experiments.devices_test import begin

STEPS = 2


class Layout(NamedTuple):
  """How many devices a run has in all, and how it uses them."""

  devices: int
  model_parallel: int
  processes: int = 1

  @property
  def zero(self) -> bool:
    """Whether the state of the optimiser is divided, on some layouts."""
    return self.devices in (4, 8)

  @property
  def name(self) -> str:
    """The name of its folder."""
    return "x".join(map(str, self))


def layouts(devices: Sequence[int], processes: Sequence[int]) -> list[Layout]:
  """All layouts with the given numbers of devices and of processes."""
  return [
    Layout(*sizes)
    for sizes in itertools.product(devices, (1, 2), processes)
    if max(sizes[1:]) <= sizes[0]
  ]


class Run(NamedTuple):
  """A language model on a layout.

  Attributes:
    state: its state at the start.
    train_step: its train step.
    put: places the batch of a step on the devices.
    batches: the batches.
    template: shapes and shardings of its state.
  """

  state: Any
  train_step: Any
  put: Any
  batches: Any
  template: Any


@functools.cache
def make(layout: Layout, root: Path) -> Run:
  """Makes a run on this process's devices."""
  argv = ["", "--workdir=x", "--smoke", f"--text_file={root / 'text.txt'}"]
  argv += ["--features=8", "--batch_size=8", "--ema=0.9", "--cell=rnn"]
  config = runner.config_lib.parse(language_model.Config, argv)
  task = language_model.make_task(config)
  found = begin(config, task, *layout[:2], layout.zero)
  template = jax.tree.map(lambda x: runner._placed(x, x.sharding), found[0])
  return Run(*found, task.batches, template)


def goes_on(run: Run, state: Any, number: int) -> dict[str, Any]:
  """What tells whether a state is the same, and its next step.

  Args:
    run: the run.
    state: its state; it is donated.
    number: the step that the state is at.
  """
  found = {
    "step": int(state.step),
    "params_sha256": digest.tree_sha256(state.params),
    "ema_sha256": digest.tree_sha256(state.ema),
    "batch_sha256": hashlib.sha256(
      b"".join(x.tobytes() for x in run.batches[number].values())
    ).hexdigest(),
  }
  _, status = run.train_step(state, run.put(number))
  return {**found, "loss": float(status.loss)}


def save(layout: Layout, root: Path) -> dict[str, Any]:
  """Trains, saves, and says what comes next."""
  run = make(layout, root)
  state = run.state
  for number in range(STEPS):
    state, _ = run.train_step(state, run.put(number))
  with Checkpoints(root / layout.name, "print") as checkpoints:
    checkpoints.save(STEPS, state, {}, STEPS)
  return goes_on(run, state, STEPS)


def load(layout: Layout, root: Path, sources: list[Layout]) -> dict[str, Any]:
  """For each source, what its checkpoint says comes next, on this layout."""
  run = make(layout, root)
  found = {}
  for source in sources:
    with Checkpoints(root / source.name, "print") as checkpoints:
      restored = checkpoints.restore_latest(run.template)
    found[source.name] = goes_on(run, restored.state, STEPS)
  return found


def write_text(root: Path) -> None:
  """Writes the text that the runs read."""
  (root / "text.txt").write_text("the quick brown fox jumps\n" * 400)


def check(saved: dict[str, Any], loaded: dict[str, Any]) -> int:
  """Asserts that all goes on as it was saved; returns the number of pairs."""
  losses = [x["loss"] for x in saved.values()]
  np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
  pairs = 0
  for layout, sources in loaded.items():
    for source, found in sources.items():
      want = dict(saved[source])
      np.testing.assert_allclose(found.pop("loss"), want.pop("loss"), rtol=1e-5)
      assert found == want, (source, layout)
      pairs += 1
  return pairs


@pytest.mark.several_devices
@pytest.mark.usefixtures("standard_promotion")
def test_a_checkpoint_goes_on_with_any_devices_and_any_division(tmp_path):
  write_text(tmp_path)
  every = layouts((1, 2, 4, 8), (1,))
  saved = {layout.name: save(layout, tmp_path) for layout in every}
  loaded = {layout.name: load(layout, tmp_path, every) for layout in every}
  assert check(saved, loaded) == 7 * 7
  make.cache_clear()


def spawn(
  layout: Layout, root: Path, action: str, *flags: str
) -> dict[str, Any]:
  """Runs `save` or `load` in the processes of a layout."""
  port = local.free_port()
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(layout.devices // layout.processes),
  }
  command = [sys.executable, "-m", "tests.experiments.layouts_test"]
  command += [f"--layout={layout.name}", f"--root={root}", f"--do={action}"]
  command += [f"--port={port}", *flags]
  running = [
    subprocess.Popen(
      [*command, f"--process={number}"],
      env=environment,
      stdout=subprocess.PIPE,
      text=True,
    )
    for number in range(layout.processes)
  ]
  said = [process.communicate()[0] for process in running]
  assert not any(process.returncode for process in running), (layout, action)
  return json.loads(said[0].splitlines()[-1])


def main() -> None:
  """Runs one process of a layout, or else all layouts."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--devices", default="1,2,4,8")
  parser.add_argument("--layout", default="")
  parser.add_argument("--root", default="")
  parser.add_argument("--do", default="")
  parser.add_argument("--port", type=int, default=0)
  parser.add_argument("--process", type=int, default=0)
  args = parser.parse_args()
  every = layouts([*map(int, args.devices.split(","))], (1, 2))
  if args.layout:
    layout = Layout(*map(int, args.layout.split("x")))
    if layout.processes > 1:
      jax.distributed.initialize(
        f"127.0.0.1:{args.port}", layout.processes, args.process
      )
    root = Path(args.root)
    print(
      json.dumps(
        save(layout, root) if args.do == "save" else load(layout, root, every)
      )
    )
    return
  with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    write_text(root)
    more = f"--devices={args.devices}"
    saved = {x.name: spawn(x, root, "save", more) for x in every}
    loaded = {x.name: spawn(x, root, "load", more) for x in every}
    print(f"{check(saved, loaded)} pairs of layouts go on as they were saved")


if __name__ == "__main__":
  main()
