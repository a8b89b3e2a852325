"""Makes every call of one save that changes a file fail, or kill the process.

  python -m tests.training.disk --every=1

A save of step 3, beside steps 1 and 2, makes some hundred such calls: files
and folders are created, written, renamed and removed. One after another each of
them kills the process, finds the disk full, or gets an error of the disk. After
each, the newest step that loads must be step 3 or step 2, with exactly its
bits, and the next save must succeed.

The calls are intercepted by a library that is loaded before libc (disk.c), so
it takes Linux and a C compiler. Each trial runs in a fork of a process that has
imported everything and has not used JAX yet.
"""

import argparse
import ctypes
import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

SOURCE = pathlib.Path(__file__).with_name("disk.c")
MODES = {
  "kill": 0,
  "disk full": errno.ENOSPC,
  "disk error": errno.EIO,
  "read-only": errno.EROFS,
}
# Exit codes of a trial's process.
SAVED, REFUSED, WRONG = 0, 10, 11


def build(folder: pathlib.Path) -> pathlib.Path:
  """Compiles the library that intercepts the calls."""
  library = folder / "disk.so"
  if not library.exists():
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"]
    subprocess.run(command, check=True)
  return library


def environment(library: pathlib.Path) -> dict[str, str]:
  """Variables for a process whose calls are intercepted."""
  threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
  return {**os.environ, **threads, "LD_PRELOAD": str(library)}


def in_a_fork(function, *args) -> tuple[int, str]:
  """Calls a function in a process of its own.

  Returns:
    The exit code, or minus the signal, and what the function wrote to a pipe.
  """
  read, write = os.pipe()
  pid = os.fork()
  if not pid:
    code = WRONG
    try:
      os.close(read)
      null = os.open(os.devnull, os.O_WRONLY)
      os.dup2(null, 1)
      code = function(*args, lambda text: os.write(write, text.encode()))
    except BaseException as error:
      os.write(write, f"{type(error).__name__}: {error}"[:300].encode())
    finally:
      os._exit(code)
  os.close(write)
  with os.fdopen(read) as pipe:
    said = pipe.read()
  return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


def save(folder, steps, k, error, say):
  """Saves steps; at the last one, call k fails or kills. Says the calls."""
  from recurrent.errors import WorkdirError
  from recurrent.training.checkpoint import Checkpoints
  from tests.training.checkpoint_test import state_at

  disk = ctypes.CDLL(None)
  try:
    with Checkpoints(folder, "fingerprint") as checkpoints:
      for step in steps:
        checkpoints.wait()
        state = state_at(step)
        if step == steps[-1] and k is not None:
          disk.disk_arm(str(folder).encode(), k, error)
        checkpoints.save(step, state, {"seen": step}, best_step=2)
  except WorkdirError:
    return REFUSED
  finally:
    say(str(disk.disk_calls()))
    disk.disk_disarm()
  return SAVED


def look(folder, say):
  """Says which step is restored; fails unless it has exactly its bits."""
  from tests.training.checkpoint_test import restore, state_at, tree_sha256

  found = restore(folder)
  say(str(found.step))
  same = tree_sha256(found.state) == tree_sha256(state_at(found.step))
  return SAVED if same and found.progress == {"seen": found.step} else WRONG


def trial(start, folder, k, error):
  """Saves step 3 with a fault at call k; returns what is wrong, or the step."""
  shutil.rmtree(folder, ignore_errors=True)
  shutil.copytree(start, folder)
  place = folder / "checkpoints"
  code, said = in_a_fork(save, place, [3], k, error)
  if code not in ((-9, SAVED) if not error else (SAVED, REFUSED)):
    return f"the save ended with {code}: {said}"
  seen, step = in_a_fork(look, place)
  if seen != SAVED or step not in ("2", "3"):
    return f"the restore ended with {seen}: {step}"
  if code == SAVED and step != "3":
    return "the save said nothing, and its step is lost"
  if in_a_fork(save, place, [4], None, 0)[0] != SAVED:
    return "the next save fails"
  if in_a_fork(look, place) != (SAVED, "4"):
    return "the next save cannot be read"
  if left := [p.name for p in place.iterdir() if not p.name.isdecimal()]:
    return f"left behind: {left}"
  return int(step)


def sweep(folder, every, modes):
  """Tries every so many calls in each mode; yields a row for each mode."""
  import jax  # noqa: F401

  import tests.training.checkpoint_test  # noqa: F401

  start = folder / "start"
  code, said = in_a_fork(save, start / "checkpoints", [1, 2], None, 0)
  assert code == SAVED, said
  shutil.copytree(start, folder / "count")
  _, said = in_a_fork(save, folder / "count" / "checkpoints", [3], 0, 0)
  calls = int(said)
  for mode in modes:
    found = {"mode": mode, "calls": calls, "tried": 0, "2": 0, "3": 0}
    begun, wrong = time.monotonic(), {}
    for k in range(1, calls + 1, every):
      outcome = trial(start, folder / "trial", k, MODES[mode])
      found["tried"] += 1
      if isinstance(outcome, int):
        found[str(outcome)] += 1
      else:
        wrong[k] = outcome
    yield {**found, "wrong": wrong, "seconds": round(time.monotonic() - begun)}


def main():
  """Prints one JSON object for each mode; fails if anything was wrong."""
  parser = argparse.ArgumentParser(description=main.__doc__)
  parser.add_argument("--every", type=int, default=1)
  parser.add_argument("--modes", default=",".join(MODES))
  args = parser.parse_args()
  if "disk.so" not in os.environ.get("LD_PRELOAD", ""):
    with tempfile.TemporaryDirectory() as folder:
      command = [sys.executable, "-m", "tests.training.disk", *sys.argv[1:]]
      library = build(pathlib.Path(folder))
      return subprocess.run(command, env=environment(library)).returncode
  good = True
  with tempfile.TemporaryDirectory() as folder:
    for row in sweep(pathlib.Path(folder), args.every, args.modes.split(",")):
      print(json.dumps(row), flush=True)
      good &= not row["wrong"]
  return not good


if __name__ == "__main__":
  raise SystemExit(main())
