"""The table of back ends: one row each, with the options that it takes."""

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

from launch import here, slurm, ssh, tpu_vm, xpk
from launch.errors import LaunchError
from launch.job import Job
from launch.plan import Command, Step


class Backend(NamedTuple):
  """How runs are started in one kind of place.

  Attributes:
    module: `prepare`, `submit`, `status`, `logs`, `stop`, `delete`, `billed`,
      which take a job, and return steps.
    needs: options that must be given.
    takes: options that may be given.
    install: what JAX is installed for by default.
    away: whether the run is on other machines, where a relative path of a
      workdir would be lost with them.
    waits: whether the hosts report to `launch`, which waits for the end of the
      run; otherwise a scheduler runs it.
  """

  module: ModuleType
  needs: tuple[str, ...] = ()
  takes: tuple[str, ...] = ()
  install: str = "cpu"
  away: bool = True
  waits: bool = True


BACKENDS = {
  "local": Backend(here, takes=("processes",), away=False),
  "ssh": Backend(ssh, ("hosts",), ("port",), install="cuda13"),
  "tpu_vm": Backend(
    tpu_vm,
    ("zone",),
    ("project", "accelerator", "runtime_version", "spot", "node"),
    install="tpu",
  ),
  "slurm": Backend(
    slurm,
    (),
    ("nodes", "gpus_per_node", "partition", "account", "time"),
    install="cuda13",
    away=False,
    waits=False,
  ),
  "xpk": Backend(
    xpk,
    ("cluster", "image"),
    (
      *("project", "zone", "accelerator", "slices", "device_type", "nodes"),
      "restarts",
    ),
    waits=False,
  ),
}


def prepare(job: Job) -> Job:
  """Checks a job, and adds what its back end adds.

  Raises:
    LaunchError: if an option is missing, unknown to the back end, or wrong.
  """
  if job.backend not in BACKENDS:
    raise LaunchError(
      f"--backend={job.backend} is unknown", f"use one of {', '.join(BACKENDS)}"
    )
  backend = BACKENDS[job.backend]
  job.check()
  for name in backend.needs:
    if not job.options.get(name):
      raise LaunchError(
        f"--{name} is missing", f"--backend={job.backend} needs it"
      )
  known = {*backend.needs, *backend.takes}
  for name in job.options:
    if name not in known:
      takes = ", ".join(f"--{n}" for n in (*backend.needs, *backend.takes))
      raise LaunchError(
        f"--{name} does nothing with --backend={job.backend}",
        f"leave it out; it takes {takes}",
      )
  absolute = job.workdir.startswith("/") or "://" in job.workdir
  if backend.away and not absolute:
    raise LaunchError(
      f"--workdir={job.workdir!r} would be relative to a folder of the hosts",
      "give an absolute path that all hosts share, or an address gs://...",
    )
  return backend.module.prepare(job)


def acquire(job: Job, found: str = "") -> list[Step]:
  """The steps that get the machines, if they must be got."""
  module = BACKENDS[job.backend].module
  return module.acquire(job, found) if hasattr(module, "acquire") else []


def state(job: Job) -> Command | None:
  """The command that asks for the state of the machines, if there is one."""
  module = BACKENDS[job.backend].module
  ask: Callable = getattr(module, "state", lambda job: None)
  return ask(job)
