"""The back end `xpk`: a workload on a GKE cluster, which a JobSet restarts.

xpk makes an image from the base image and the code, and Kubernetes runs it on
every host. The base image must contain the packages (launch/Dockerfile).
"""

from launch import common
from launch.errors import LaunchError
from launch.job import Job
from launch.plan import Command, Step, Write

GRACE = 120  # seconds in which a pod that must go may save
COMMAND = (
  "python3 -m launch.host preflight ."
  " && exec python3 -m launch.host supervise ."
)


def prepare(job: Job) -> Job:
  """Returns the job with what the back end adds to it.

  Raises:
    LaunchError: if not exactly one kind of device is given, or the job has
      secrets.
  """
  if bool(job.options.get("accelerator")) == bool(
    job.options.get("device_type")
  ):
    raise LaunchError(
      "one of --accelerator and --device_type is needed",
      "as in --accelerator=v5litepod-16 or --device_type=h100-80gb-8",
    )
  if job.secrets:
    raise LaunchError(
      "xpk would write the values of --secrets into a manifest",
      "store them as a secret of the cluster, and mount it",
    )
  return common.with_options(
    job,
    coordinator="auto",
    # The JobSet starts preempted pods again.
    rerun_preempted=False,
  )


def submit(job: Job) -> list[Step]:
  """Unpacks the code beside the description, and creates the workload."""
  here, options = common.state(job), job.options
  image = f"{here}/image"
  device = (
    (
      f"--tpu-type={options['accelerator']}",
      f"--num-slices={options.get('slices') or 1}",
    )
    if options.get("accelerator")
    else (
      f"--device-type={options['device_type']}",
      f"--num-nodes={options.get('nodes') or 1}",
    )
  )
  return [
    *common.pack(job),
    *common.unpack_here(job, image),
    Write(f"{image}/job.json", job.to_json()),
    Command(
      ("xpk", "config", "set", "send-telemetry", "false"),
      "xpk reports its use unless it is told not to",
    ),
    Command(
      (
        *("xpk", "workload", "create", *_where(job)),
        *device,
        f"--base-docker-image={options['image']}",
        f"--script-dir={image}",
        f"--max-restarts={options.get('restarts') or 50}",
        "--restart-on-exit-codes=75",
        f"--termination-grace-period-seconds={GRACE}",
        f"--command={COMMAND}",
      ),
      "creates the workload",
    ),
  ]


def status(job: Job) -> list[Step]:
  """Shows what the cluster knows about the workload."""
  return [
    Command(
      (
        *("xpk", "workload", "list", *_where(job, "--filter-by-job=")),
        "--filter-by-status=EVERYTHING",
      )
    )
  ]


def logs(job: Job, follow: bool) -> list[Step]:
  """Shows the logs of all pods; kubectl must be connected to the cluster."""
  return [
    Command(
      (
        *("kubectl", "logs", "--prefix", "--all-containers", "--tail=200"),
        # By default kubectl refuses to follow more than 5 containers.
        *["--follow", "--max-log-requests=1000"] * follow,
        f"--selector=jobset.sigs.k8s.io/jobset-name={job.run_id}",
      )
    )
  ]


def stop(job: Job) -> list[Step]:
  """Deletes the workload; its pods have some time to save."""
  return [
    Command(
      ("xpk", "workload", "delete", *_where(job), "--force"),
      f"the pods are told to save, and end {GRACE} s later",
    )
  ]


def delete(job: Job) -> list[Step]:
  """Deletes the workload."""
  return stop(job)


def billed(job: Job) -> str:
  """What costs money until it is deleted."""
  return (
    f"the pods of the workload {job.run_id}; the nodes of the cluster"
    f" {job.options['cluster']} are billed as long as they exist, and stay"
  )


def _where(job, name="--workload="):
  options = job.options
  return (
    f"{name}{job.run_id}",
    f"--cluster={options['cluster']}",
    *(f"--{k}={options[k]}" for k in ("project", "zone") if options.get(k)),
  )
