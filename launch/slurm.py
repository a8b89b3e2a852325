"""The back end `slurm`: a batch job that requeues itself after a preemption.

The folder of the run (below runs/launch) must be on a file system that all
nodes share, so launch from a clone on one.
"""

import shlex

from launch import common
from launch.errors import LaunchError
from launch.job import Job
from launch.plan import Command, Step, Write

# Seconds before the time limit at which the processes are told to save.
NOTICE = 120

SCRIPT = """\
#!/bin/bash
# Runs on the first node of the job. Exit code 75 means that the run was told to
# stop and has saved its state: then the job is queued again.
set -u -o pipefail
cd {folder} || exit 1
export PYTHONPATH="$PWD/{source}"
srun {python} -m launch.host preflight . | tee /dev/stderr |
  {python} -m launch.host agree || exit 1
srun --wait=600 {python} -m launch.host supervise .
code=$?
if [ "$code" -eq 75 ] && [ ! -e stop ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def prepare(job: Job) -> Job:
  """Returns the job with what the back end adds to it."""
  nodes = job.options.get("nodes") or 1
  if nodes < 1:
    raise LaunchError(f"--nodes={nodes} is out of range", "use at least 1")
  return common.with_options(
    job,
    nodes=nodes,
    coordinator="auto" if nodes > 1 else "",
    # SLURM starts preempted jobs again.
    rerun_preempted=False,
  )


def submit(job: Job) -> list[Step]:
  """Unpacks the code, makes the environment, and submits the job."""
  here = common.state(job)
  text = SCRIPT.format(
    folder=shlex.quote(here),
    source=common.source(job),
    python=shlex.quote(job.python or "python3"),
  )
  options = job.options
  optional = {
    name: options.get(name.replace("-", "_"))
    for name in ("gpus-per-node", "partition", "account", "time")
  }
  return [
    *common.pack(job),
    *common.unpack_here(job, f"{here}/{common.source(job)}"),
    common.here(job, "setup", why="makes the environment"),
    Write(f"{here}/job.sh", text),
    Command(("rm", "-f", f"{here}/stop")),
    Command(
      (
        *("sbatch", "--parsable", f"--job-name={job.run_id}"),
        *(f"--nodes={options['nodes']}", "--ntasks-per-node=1"),
        *(f"--{name}={value}" for name, value in optional.items() if value),
        *("--requeue", f"--signal=TERM@{NOTICE}", "--open-mode=append"),
        *(f"--output={here}/log.txt", f"{here}/job.sh"),
      ),
      "submits the job",
    ),
  ]


def status(job: Job) -> list[Step]:
  """Shows what SLURM knows about the job."""
  columns = "JobID,State,ExitCode,Elapsed,NodeList"
  return [
    Command(("squeue", "--me", f"--name={job.run_id}")),
    Command(("sacct", "-X", f"--name={job.run_id}", f"--format={columns}")),
  ]


def logs(job: Job, follow: bool) -> list[Step]:
  """Shows the log."""
  rest = ["-F"] * follow
  return [Command(("tail", "-n", "200", *rest, f"{common.state(job)}/log.txt"))]


def stop(job: Job) -> list[Step]:
  """Tells the run to save and to end, and not to be queued again."""
  return [
    Command(("touch", f"{common.state(job)}/stop")),
    Command(("scancel", "--signal=TERM", "--me", f"--name={job.run_id}")),
  ]


def delete(job: Job) -> list[Step]:
  """Cancels the job, whether it runs or waits, without saving."""
  return [Command(("scancel", "--me", f"--name={job.run_id}"))]


def billed(job: Job) -> str:
  """What costs money until it is deleted."""
  nodes = job.options.get("nodes", 1)
  return f"the allocation of {nodes} node(s) of the SLURM job {job.run_id}"
