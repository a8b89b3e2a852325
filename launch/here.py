"""The back end `local`: processes of this machine, in the background."""

from launch import common
from launch.job import Job
from launch.plan import Step


def prepare(job: Job) -> Job:
  """Returns the job with what the back end adds to it."""
  return job


def submit(job: Job) -> list[Step]:
  """Unpacks the code, checks this machine, and starts the run."""
  return [
    *common.pack(job),
    *common.unpack_here(job, f"{common.state(job)}/{common.source(job)}"),
    common.here(job, "preflight", why="checks", reports=True),
    common.here(job, "start", why="starts in the background"),
  ]


def status(job: Job) -> list[Step]:
  """Prints the state."""
  return [common.here(job, "status")]


def logs(job: Job, follow: bool) -> list[Step]:
  """Shows the log."""
  return [common.here(job, "logs", *["--follow"] * follow)]


def stop(job: Job) -> list[Step]:
  """Tells the run to save and to end."""
  return [common.here(job, "stop")]


def delete(job: Job) -> list[Step]:
  """Ends the run; there is nothing to delete."""
  return stop(job)


def billed(job: Job) -> str:
  """What costs money until it is deleted."""
  del job
  return ""
