r"""Starts experiments on other machines, and looks after them.

  python -m launch run --backend=tpu_vm --run_id=big --zone=us-west4-a \
      --accelerator=v5litepod-16 --spot --workdir=gs://bucket/big \
      -- experiments.language_model --features=2048
  python -m launch status --run_id=big      # also: logs, stop, delete

`run --dry_run` prints every command, ready to paste, and runs none. The files
of a run are in runs/launch/RUN_ID. README.md has a command for each back end.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import app, flags

from launch import backends, common, job, local, plan, runner
from launch.errors import LaunchError

COMMANDS = ("run", "status", "logs", "stop", "delete")

RUN_ID = flags.DEFINE_string(
  "run_id", "", "name of the run; launched again, it is continued"
)
BACKEND = flags.DEFINE_enum(
  "backend", "local", [*backends.BACKENDS], "where to run"
)
WORKDIR = flags.DEFINE_string(
  "workdir", "", "directory of the run, or its address in an object store"
)
COMMIT = flags.DEFINE_string(
  "commit", "", "the commit to run; by default HEAD, without changes to it"
)
PYTHON = flags.DEFINE_string(
  "python",
  "",
  "Python of the hosts that has the packages; by default an environment is"
  " made; with --backend=local the present one",
)
INSTALL = flags.DEFINE_enum(
  "install",
  None,
  ["cpu", "tpu", "cuda12", "cuda13"],
  "what JAX is installed for; by default what the back end needs",
)
DEVICES = flags.DEFINE_integer(
  "devices_per_host", 0, "devices that each host must have; 0: any number"
)
SECRETS = flags.DEFINE_list(
  "secrets",
  [],
  "names of environment variables that the run needs; their values are taken"
  " from the hosts and never written",
)
DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "print the commands, and run none of them"
)
DETACH = flags.DEFINE_bool(
  "detach", False, "do not wait for the end of the run"
)
POLL = flags.DEFINE_float(
  "poll", runner.POLL, "seconds between two looks at the hosts", lower_bound=0
)
FOLLOW = flags.DEFINE_bool("follow", False, "logs: show what is added too")
YES = flags.DEFINE_bool("yes", False, "delete: do not ask")

# Options of the back ends, by name; `backends` says which takes which. The
# flags of `launch.local` have the same meaning here.
OPTIONS = {
  "processes": local.PROCESSES,
  "hosts": flags.DEFINE_list(
    "hosts", None, "hosts [USER@]HOST, separated by commas"
  ),
  "port": local.PORT,
  "zone": flags.DEFINE_string("zone", None, "zone of Google Cloud"),
  "project": flags.DEFINE_string("project", None, "project of Google Cloud"),
  "accelerator": flags.DEFINE_string(
    "accelerator", None, "kind of TPU, such as v5litepod-16"
  ),
  "runtime_version": flags.DEFINE_string(
    "runtime_version", None, "software of the TPU VM; by default by its kind"
  ),
  "spot": flags.DEFINE_bool(
    "spot", None, "cheaper machines, which may be taken away at any time"
  ),
  "node": flags.DEFINE_string("node", None, "a TPU VM that is there already"),
  "nodes": flags.DEFINE_integer("nodes", None, "number of nodes"),
  "gpus_per_node": flags.DEFINE_integer("gpus_per_node", None, "GPUs a node"),
  "partition": flags.DEFINE_string("partition", None, "partition of SLURM"),
  "account": flags.DEFINE_string("account", None, "account of SLURM"),
  "time": flags.DEFINE_string("time", None, "time limit of SLURM, 24:00:00"),
  "cluster": flags.DEFINE_string("cluster", None, "cluster of GKE"),
  "image": flags.DEFINE_string("image", None, "base image with the packages"),
  "device_type": flags.DEFINE_string(
    "device_type", None, "kind of machine for xpk, such as h100-80gb-8"
  ),
  "slices": flags.DEFINE_integer("slices", None, "number of TPU slices"),
  "restarts": flags.DEFINE_integer(
    "restarts", None, "how often the JobSet may restart; 50 by default"
  ),
}


def main(argv: list[str]) -> int:
  """Carries out a command.

  Returns:
    The exit code.
  """
  try:
    if len(argv) < 2 or argv[1] not in COMMANDS:
      raise LaunchError(
        f"unknown command {' '.join(argv[1:2]) or '(none)'}",
        f"use one of {', '.join(COMMANDS)}",
      )
    command = argv[1]
    if command == "run":
      return _run(make_job(argv[2:]))
    if len(argv) > 2:
      raise LaunchError(
        f"unexpected argument {argv[2]!r}", "flags look like --name=value"
      )
    return _manage(command, _known(RUN_ID.value))
  except LaunchError as error:
    print(error, file=sys.stderr)
    return error.code
  except KeyboardInterrupt:
    runner.say("no longer waiting; what was started goes on")
    return 130


def make_job(arguments: list[str]) -> job.Job:
  """Makes the job from the flags.

  Args:
    arguments: the experiment's module and flags.

  Raises:
    LaunchError: if something is wrong or missing.
  """
  if not arguments:
    raise LaunchError(
      "no experiment to run",
      "name one after --, as in: -- experiments.language_model --steps=1000",
    )
  module, *rest = arguments
  workdir, rest = _workdir(rest)
  backend = backends.BACKENDS[BACKEND.value]
  if not backend.away and workdir and "://" not in workdir:
    workdir = os.path.abspath(workdir)
  here = BACKEND.value == "local"
  made = job.Job(
    run_id=RUN_ID.value,
    module=module,
    flags=(*rest, f"--workdir={workdir}"),
    workdir=workdir,
    commit=_commit(),
    backend=BACKEND.value,
    options={
      name: flag.value
      for name, flag in OPTIONS.items()
      if flag.present and flag.value is not None
    },
    retries=local.RETRIES.value,
    python=PYTHON.value or (sys.executable if here else ""),
    install=INSTALL.value or backend.install,
    devices=DEVICES.value,
    secrets=tuple(SECRETS.value),
    cwd=os.getcwd() if here else "",
  )
  return backends.prepare(made)


def _workdir(rest):
  """The workdir, which may be among the flags of the experiment too."""
  found = [x for x in rest if re.match("--?workdir=", x)]
  if len(found) > 1 or (found and WORKDIR.value):
    raise LaunchError("--workdir is given twice", "give it once")
  value = found[0].partition("=")[2] if found else WORKDIR.value
  return value, [x for x in rest if x not in found]


def _commit():
  """The full hash of the commit to run.

  Raises:
    LaunchError: if there is none, or files differ from it.
  """
  call = lambda *argv: subprocess.run(
    ("git", *argv), capture_output=True, text=True, check=False
  )
  name = COMMIT.value or "HEAD"
  found = call(
    "rev-parse", "--verify", "--end-of-options", f"{name}^{{commit}}"
  )
  if found.returncode:
    raise LaunchError(
      f"--commit={name!r} is no commit", "launch from a clone with git"
    )
  if not COMMIT.value and call("status", "--porcelain").stdout:
    raise LaunchError(
      "there are changes that are not committed, and would not be run",
      "commit them, or say --commit=HEAD to run without them",
    )
  return found.stdout.strip()


def _known(run_id):
  """The job of a run that was launched from here.

  Raises:
    LaunchError: if there is none.
  """
  path = Path("runs/launch") / run_id / "job.json"
  if not job.RUN_ID.fullmatch(run_id) or not path.exists():
    raise LaunchError(
      f"--run_id={run_id!r} was not launched from here",
      "launch it with `run`, from this directory",
    )
  return job.from_json(path.read_text())


def _run(made: job.Job) -> int:
  """Launches a run, or prints how."""
  backend = backends.BACKENDS[made.backend]
  if DRY_RUN.value:
    steps = [*backends.acquire(made), *backend.module.submit(made)]
    print(plan.script(steps), end="")
    return 0
  before = Path(common.state(made)) / "job.json"
  if before.exists():
    check_same(job.from_json(before.read_text()), made)
  runner.launch(made)
  if DETACH.value or not backend.waits:
    runner.say(f"started; see python -m launch status --run_id={made.run_id}")
    return 0
  return runner.wait(made, POLL.value)


def check_same(old: job.Job, new: job.Job) -> None:
  """Raises LaunchError if a run id is used for another run.

  Retries, the commit and the machines may change.
  """
  for name in ("module", "workdir", "backend"):
    was, now = getattr(old, name), getattr(new, name)
    if was != now:
      raise LaunchError(
        f"--run_id={new.run_id} is taken by a run with {name} {was!r}, not"
        f" {now!r}",
        f"use another --run_id, or remove {common.state(new)}",
      )


def _manage(command: str, known: job.Job) -> int:
  """Carries out a command on a run that was launched."""
  backend = backends.BACKENDS[known.backend].module
  steps: Any
  if command == "logs":
    steps = backend.logs(known, FOLLOW.value)
  else:
    steps = getattr(backend, command)(known)
  if DRY_RUN.value:
    print(plan.script(steps), end="")
    return 0
  if command == "delete" and not YES.value:
    _confirm(known, backend.billed(known))
  runner.execute(steps)
  billed = backend.billed(known)
  if command == "stop" and billed:
    runner.say(f"still there, and billed until `delete`: {billed}")
  return 0


def _confirm(known, billed):
  """Raises LaunchError unless the user agrees."""
  print(f"delete ends the run {json.dumps(known.run_id)}", file=sys.stderr)
  print(f"billed until then: {billed or 'nothing'}", file=sys.stderr)
  try:
    answer = input("delete? [y/N] ") if sys.stdin.isatty() else ""
  except EOFError:
    answer = ""
  if answer.strip().lower() not in ("y", "yes"):
    raise LaunchError(
      "nothing was deleted", "answer y, or add --yes where nobody can answer"
    )


if __name__ == "__main__":
  app.run(main)
