"""Steps that several back ends share: the code of a commit, and host commands.

Names of machines and of runs are checked (`Job.check`), and all else that a
user has chosen travels in `job.json`. So the commands on other machines, which
their shells read, contain nothing else.
"""

import dataclasses
import shlex

from launch.job import Job
from launch.plan import Command, Step, Write

FOLDER = "recurrent-launch"  # in the home directory of a host


def state(job: Job) -> str:
  """Folder of the run on the machine that launches it."""
  return f"runs/launch/{job.run_id}"


def folder(job: Job) -> str:
  """Folder of the run on another host, from its home directory."""
  return f"{FOLDER}/{job.run_id}"


def source(job: Job) -> str:
  """Name of the folder of the code."""
  return f"src-{job.commit[:12]}"


def pack(job: Job) -> list[Step]:
  """Writes the code of the commit and the description of the run."""
  here = state(job)
  return [
    Command(("mkdir", "-p", here)),
    Command(
      (
        *("git", "archive", "--format=tar.gz"),
        *(f"--output={here}/src.tar.gz", job.commit),
      ),
      "the code, as it is in the commit",
    ),
    Write(f"{here}/job.json", job.to_json(), "the run"),
  ]


def unpack_here(job: Job, into: str) -> list[Step]:
  """Unpacks the code on this machine."""
  return [
    Command(("mkdir", "-p", into)),
    Command(("tar", "-xzf", f"{state(job)}/src.tar.gz", "-C", into)),
  ]


def here(job: Job, command: str, *options: str, **about) -> Command:
  """A command of `launch.host` on this machine."""
  return Command(
    (
      # Not the code in the current directory, which may have changed.
      *("env", "PYTHONSAFEPATH=1"),
      f"PYTHONPATH={state(job)}/{source(job)}",
      *(job.python or "python3", "-m", "launch.host", command),
      *(state(job), *options),
    ),
    **about,
  )


def remote(job: Job, command: str, *options: str) -> str:
  """A command of `launch.host`, for the shell of another host."""
  argv = ("python3", "-m", "launch.host", command, folder(job), *options)
  return f"PYTHONPATH={folder(job)}/{source(job)} {shlex.join(argv)}"


def remote_folder(job: Job) -> str:
  """Makes the folder of the run, for the shell of another host."""
  return f"mkdir -p {folder(job)}/{source(job)}"


def remote_unpack(job: Job) -> str:
  """Unpacks the code, for the shell of another host."""
  place = f"{folder(job)}/{source(job)}"
  return f"tar -xzf {folder(job)}/src.tar.gz -C {place}"


def with_options(job: Job, **options) -> Job:
  """Returns the job with more options."""
  return dataclasses.replace(job, options={**job.options, **options})
