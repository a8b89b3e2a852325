"""Tests that interrupted and resumed runs give the results of unbroken ones.

The program `python -m tests.experiments.interruption_test --trials=20` kills
that many runs at random times and counts those that end with the same bits.
"""

import argparse
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import pytest

from recurrent.training.workdir import Workdir
from tests.experiments.scripts import TINY, result, rows, start

# A save at nearly every step, so that many kills fall into one.
FLAGS = (*TINY, "--steps=40", "--eval_every=10", "--checkpoint_every=2")
PREEMPTED = 75

pytestmark = pytest.mark.processes


def begin(workdir):
  return start("experiments.language_model", f"--workdir={workdir}", *FLAGS)


def finish(workdir):
  """Runs the command to its end, through any number of preemptions."""
  process = begin(workdir)
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  return result(out), rows(workdir), err


def wait_for(process, workdir, checkpoint):
  """Waits until a checkpoint is there, or the run has ended."""
  while process.poll() is None:
    if (workdir / "checkpoints" / str(checkpoint)).is_dir():
      return
    time.sleep(0.01)


def kill_at_random(workdir, seconds, rng):
  """Starts a run, kills it within so many seconds; True if it still ran."""
  process = begin(workdir)
  time.sleep(rng.uniform(0, seconds))
  alive = process.poll() is None
  process.kill()
  process.communicate()
  return alive


def kill_while_saving(workdir, rng):
  """Kills a run just when a save has begun."""
  process = begin(workdir)
  wanted = rng.randrange(2, 40, 2)
  while process.poll() is None:
    folder = workdir / "checkpoints"
    if list(folder.glob(f"{wanted}.orbax*")):
      time.sleep(rng.uniform(0, 0.05))
      break
    time.sleep(0.001)
  process.kill()
  process.communicate()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
  begun = time.monotonic()
  found = finish(tmp_path_factory.mktemp("unbroken"))[:2]
  return *found, time.monotonic() - begun


@pytest.mark.parametrize("when", ["while it saves", "at random"])
def test_a_killed_run_ends_with_the_same_bits(tmp_path, unbroken, when):
  rng = random.Random(0)
  if when == "at random":
    kill_at_random(tmp_path, unbroken[2], rng)
  else:
    kill_while_saving(tmp_path, rng)
  assert finish(tmp_path)[:2] == unbroken[:2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_told_to_stop_saves_and_says_run_me_again(
  tmp_path, unbroken, number
):
  process = begin(tmp_path)
  wait_for(process, tmp_path, 6)
  process.send_signal(number)
  out, err = process.communicate(timeout=60)
  assert process.returncode == PREEMPTED, err
  assert out == "" and "Traceback" not in err
  assert "run the same command again" in err
  found = finish(tmp_path)
  assert found[:2] == unbroken[:2]
  assert "Resuming at step" in found[2]


def test_a_second_run_on_a_live_workdir_is_refused(tmp_path):
  first = begin(tmp_path)
  wait_for(first, tmp_path, 2)
  second = begin(tmp_path)
  _, err = second.communicate(timeout=60)
  first.kill()
  first.communicate()
  assert second.returncode == 5
  assert f"in use by the run with pid {first.pid}" in err


def test_two_processes_give_the_curve_of_one(tmp_path, unbroken):
  flags = ("experiments.language_model", f"--workdir={tmp_path}", *FLAGS)
  process = start("launch.local", "--processes=2", "--", *flags)
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  # Process 0 alone prints the result and writes the metrics.
  assert result(out)["last_step"] == 40 and out.count("{") == 1
  for one, two in zip(unbroken[1], rows(tmp_path), strict=True):
    assert one == pytest.approx(two, rel=1e-5)


def children(process):
  """Ids of the processes that a process has started."""
  path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
  return [int(pid) for pid in path.read_text().split()]


def wait_for_a_row(process, workdir):
  """Waits for a row of metrics."""
  path = workdir / "metrics.jsonl"
  while process.poll() is None and not (path.exists() and path.read_text()):
    time.sleep(0.01)


@pytest.mark.parametrize(
  ("number", "flags"),
  [
    # The row is written just before the evaluation of many windows begins.
    (signal.SIGINT, ("--log_every=2", "--eval_every=2", "--eval_rows=1")),
    (signal.SIGTERM, ("--log_every=2", "--eval_every=1000", "--steps=1000")),
  ],
  ids=["evaluation", "training"],
)
def test_one_process_that_is_told_to_stop_takes_the_other_along(
  tmp_path, number, flags
):
  flags = (f"--workdir={tmp_path}", *TINY, *flags)
  process = start(
    "launch.local", "--processes=2", "--", "experiments.language_model", *flags
  )
  wait_for_a_row(process, tmp_path)
  os.kill(children(process)[1], number)
  out, err = process.communicate(timeout=120)
  assert process.returncode == PREEMPTED, err
  assert "Traceback" not in err and "run the same command again" in err
  assert list((tmp_path / "checkpoints").iterdir())


def test_processes_that_meet_a_locked_workdir_all_end_at_once(tmp_path):
  flags = ("experiments.language_model", f"--workdir={tmp_path}", *FLAGS)
  with Workdir(tmp_path):
    process = start("launch.local", "--processes=2", "--", *flags)
    out, err = process.communicate(timeout=120)
  assert process.returncode == 5
  assert err.count(f"in use by the run with pid {os.getpid()}") == 2
  assert "Traceback" not in err and "step 3/40" not in err


def main():
  """Kills runs at random instants, half of them during a save."""
  parser = argparse.ArgumentParser(description=main.__doc__)
  parser.add_argument("--trials", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  rng = random.Random(args.seed)
  good = 0
  with tempfile.TemporaryDirectory() as folder:
    begun = time.monotonic()
    want = finish(Path(folder) / "unbroken")[:2]
    seconds = time.monotonic() - begun
    for trial in range(args.trials):
      workdir = Path(folder) / str(trial)
      kills = rng.randint(1, 3)
      for _ in range(kills):
        if trial % 2:
          kill_while_saving(workdir, rng)
        else:
          kill_at_random(workdir, seconds, rng)
      same = finish(workdir)[:2] == want
      good += same
      print(
        f"trial {trial + 1}: {kills} kills, {'same' if same else 'OTHER'} bits",
        flush=True,
      )
  print(f"{good} of {args.trials} ended with the same bits")
  return good != args.trials


if __name__ == "__main__":
  raise SystemExit(main())
