"""The back end `tpu_vm`: a slice of Cloud TPUs, as a queued resource.

With --node it uses a TPU VM that is there, and neither makes nor deletes it.
"""

from launch import common
from launch.errors import LaunchError
from launch.job import Job
from launch.plan import Command, Step

# By the beginning of the accelerator's type.
RUNTIMES = {
  "v5litepod": "v2-alpha-tpuv5-lite",
  "v5p": "v2-alpha-tpuv5",
  "v6e": "v2-alpha-tpuv6e",
  "v2": "tpu-ubuntu2204-base",
  "v3": "tpu-ubuntu2204-base",
  "v4": "tpu-ubuntu2204-base",
}
ACTIVE = "ACTIVE"
# These never become active again, and must be deleted.
ENDED = ("FAILED", "SUSPENDING", "SUSPENDED")


def prepare(job: Job) -> Job:
  """Returns the job with what the back end adds to it.

  Raises:
    LaunchError: if the kind of TPU is missing or unknown.
  """
  options = job.options
  if options.get("node"):
    for name in ("accelerator", "runtime_version", "spot"):
      if options.get(name):
        raise LaunchError(
          f"--{name} does nothing with --node={options['node']}",
          "leave it out: that TPU VM is there already",
        )
  elif not options.get("accelerator"):
    raise LaunchError(
      "--accelerator is missing",
      "name the kind of TPU, as in --accelerator=v5litepod-16, or a TPU VM that"
      " is there, as in --node=NAME",
    )
  elif not options.get("runtime_version"):
    kind = options["accelerator"].partition("-")[0]
    if kind not in RUNTIMES:
      raise LaunchError(
        f"--accelerator={options['accelerator']} has no known software",
        "add --runtime_version=NAME",
      )
    job = common.with_options(job, runtime_version=RUNTIMES[kind])
  return common.with_options(job, coordinator="auto")


def state(job: Job) -> Command | None:
  """Asks for the state of the queued resource; None: there is none."""
  if job.options.get("node"):
    return None
  return Command(
    (
      *_queued("describe", job),
      "--format=value(state.state)",
    )
  )


def acquire(job: Job, found: str) -> list[Step]:
  """Gets the machines.

  Args:
    job: the run.
    found: the state of the queued resource; empty if there is none.
  """
  if job.options.get("node") or found == ACTIVE:
    return []
  steps: list[Step] = []
  if found in ENDED:
    steps += delete(job)
  if not found or found in ENDED:
    options = job.options
    steps.append(
      Command(
        (
          *_queued("create", job),
          f"--node-id={job.run_id}",
          f"--accelerator-type={options['accelerator']}",
          f"--runtime-version={options['runtime_version']}",
          *["--spot"] * bool(options.get("spot")),
        ),
        "asks for the TPUs; from when they are active, they are billed",
      )
    )
  asked = state(job)
  assert asked is not None
  return [*steps, asked._replace(why="waits for them", until=ACTIVE)]


def submit(job: Job) -> list[Step]:
  """Copies the code to all workers, sets them up, checks them, and starts."""
  here = common.state(job)
  return [
    *common.pack(job),
    _ssh(job, common.remote_folder(job), why="copies the code"),
    Command(
      (
        *_vm("scp", f"{here}/src.tar.gz", f"{here}/job.json"),
        f"{_name(job)}:{common.folder(job)}/",
        *_where(job),
        "--worker=all",
        "--quiet",
      ),
    ),
    _ssh(job, common.remote_unpack(job)),
    _ssh(job, common.remote(job, "setup"), why="sets up all workers"),
    _ssh(job, common.remote(job, "preflight"), why="checks them", reports=True),
    _ssh(job, common.remote(job, "start"), why="starts in the background"),
  ]


def status(job: Job) -> list[Step]:
  """Prints the state on each worker."""
  return [_ssh(job, common.remote(job, "status"))]


def logs(job: Job, follow: bool) -> list[Step]:
  """Shows the log of worker 0."""
  command = common.remote(job, "logs", *["--follow"] * follow)
  return [_ssh(job, command, worker="0")]


def stop(job: Job) -> list[Step]:
  """Tells the run to save and to end; the TPUs stay, and are billed."""
  return [_ssh(job, common.remote(job, "stop"))]


def delete(job: Job) -> list[Step]:
  """Deletes the TPUs.

  Raises:
    LaunchError: if they were not made by this run.
  """
  if job.options.get("node"):
    raise LaunchError(
      f"{job.options['node']} was there before the run",
      "delete it as you have made it, or use `stop`",
    )
  return [
    Command(
      (*_queued("delete", job), "--force", "--quiet"),
      "deletes the TPUs and what is stored on them",
    )
  ]


def billed(job: Job) -> str:
  """What costs money until it is deleted."""
  options = job.options
  if options.get("node"):
    return ""
  spot = ", spot" * bool(options.get("spot"))
  return (
    f"the TPUs {options['accelerator']} of the queued resource {job.run_id} in"
    f" {options['zone']}{spot}"
  )


def _name(job):
  return job.options.get("node") or job.run_id


def _where(job):
  project = job.options.get("project")
  return (
    f"--zone={job.options['zone']}",
    *[f"--project={project}"] * bool(project),
  )


def _queued(command, job):
  group = ("gcloud", "compute", "tpus", "queued-resources", command)
  return (*group, job.run_id, *_where(job))


def _vm(command, *rest):
  return ("gcloud", "compute", "tpus", "tpu-vm", command, *rest)


def _ssh(job, command, worker="all", **about):
  return Command(
    (
      *_vm("ssh", _name(job), *_where(job)),
      *(f"--worker={worker}", "--quiet", f"--command={command}"),
    ),
    **about,
  )
