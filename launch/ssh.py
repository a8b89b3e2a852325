"""The back end `ssh`: hosts that can be reached by ssh, such as GPU machines.

There is one process on each host, which uses all its devices. Logins must work
without a password, by a key or an agent.
"""

from launch import common
from launch.job import Job
from launch.plan import Command, Step

PORT = 8476


def prepare(job: Job) -> Job:
  """Returns the job with what the back end adds to it."""
  hosts = job.options["hosts"]
  first = hosts[0].rpartition("@")[2]
  port = job.options.get("port") or PORT
  several = len(hosts) > 1
  return common.with_options(
    job, coordinator=f"{first}:{port}" if several else ""
  )


def submit(job: Job) -> list[Step]:
  """Copies the code to all hosts, sets them up, checks them, and starts."""
  here, there = common.state(job), common.folder(job)
  steps = common.pack(job)
  for host in job.options["hosts"]:
    files = (f"{here}/src.tar.gz", f"{here}/job.json")
    steps += [
      _ssh(host, common.remote_folder(job), why=f"sets up {host}"),
      Command(
        ("scp", "-q", "-o", "BatchMode=yes", "--", *files, f"{host}:{there}/")
      ),
      _ssh(host, common.remote_unpack(job)),
      _ssh(host, common.remote(job, "setup")),
    ]
  steps += [
    _ssh(
      host,
      common.remote(job, "preflight"),
      why=f"checks {host}",
      reports=True,
    )
    for host in job.options["hosts"]
  ]
  return steps + _each(job, "start", why="starts in the background")


def status(job: Job) -> list[Step]:
  """Prints the state on each host."""
  return _each(job, "status")


def logs(job: Job, follow: bool) -> list[Step]:
  """Shows the log of the first host."""
  first = job.options["hosts"][0]
  return [_ssh(first, common.remote(job, "logs", *["--follow"] * follow))]


def stop(job: Job) -> list[Step]:
  """Tells the run to save and to end."""
  return _each(job, "stop")


def delete(job: Job) -> list[Step]:
  """Ends the run; the hosts remain."""
  return stop(job)


def billed(job: Job) -> str:
  """What costs money until it is deleted."""
  del job
  return ""


def _each(job, command, why=""):
  """A command of `launch.host` on each host."""
  several = len(job.options["hosts"]) > 1 and command == "start"
  return [
    _ssh(
      host,
      common.remote(job, command, *[f"--process={number}"] * several),
      why=why,
    )
    for number, host in enumerate(job.options["hosts"])
  ]


def _ssh(host, command, **about):
  return Command(("ssh", "-o", "BatchMode=yes", "--", host, command), **about)
