"""The description of a run: what is run, of which code, with which retries."""

import dataclasses
import json
import re
from typing import Any

from launch.errors import LaunchError

# Also the names that Kubernetes and Google Cloud accept.
RUN_ID = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
# Options that name machines and become parts of commands on them.
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:/+=\-\[\]]*", re.ASCII)

_SECRET_NAME = re.compile(
  r"(^|_)(password|passwd|secret|credentials?|(api|access|private)_?key"
  r"|(auth|access|api)_?token)(_|$)",
  re.I,
)
_SECRET_VALUE = re.compile(
  r"ghp_\w{20}|github_pat_\w{20}|hf_\w{20}|AKIA[0-9A-Z]{16}|AIza[\w-]{30}"
  r"|\bsk-[\w-]{20}|-----BEGIN|://[^/@\s]*:[^/@\s]+@",
)


@dataclasses.dataclass(frozen=True)
class Job:
  """A run of an experiment.

  Attributes:
    run_id: name of the run; a run that is launched again under its name is
      continued.
    module: the experiment's module, such as experiments.language_model.
    flags: flags of the experiment, with --workdir.
    workdir: directory of the run, or its address in an object store.
    commit: full hash of the commit whose files are run.
    backend: name of the back end.
    options: options of the back end, by name.
    retries: how often to start again after failures without a new checkpoint.
    python: Python of the hosts to use; empty: an environment is made.
    install: what JAX is installed for in it: tpu, cuda12, cuda13 or cpu.
    devices: number of devices that each host must have; 0: any.
    secrets: names of environment variables that the run needs. Their values are
      never written by `launch`.
    cwd: directory to run in; empty: that of the code.
  """

  run_id: str
  module: str
  flags: tuple[str, ...]
  workdir: str
  commit: str
  backend: str
  options: dict[str, Any]
  retries: int = 3
  python: str = ""
  install: str = "cpu"
  devices: int = 0
  secrets: tuple[str, ...] = ()
  cwd: str = ""

  def check(self) -> None:
    """Raises LaunchError if a value is wrong."""
    if not RUN_ID.fullmatch(self.run_id):
      raise LaunchError(
        f"--run_id={self.run_id!r} is no name for a run",
        "use up to 40 small letters, digits and dashes, a letter first",
      )
    if not MODULE.fullmatch(self.module):
      raise LaunchError(
        f"{self.module!r} is no name of a module",
        "name the experiment after --, as in: -- experiments.language_model",
      )
    if not re.fullmatch("[0-9a-f]{40,64}", self.commit):
      raise LaunchError(
        f"--commit={self.commit!r} is no hash of a commit",
        "name a commit that git knows",
      )
    if not self.workdir:
      raise LaunchError(
        "--workdir is missing",
        "give a directory that all hosts can access, or an address gs://...",
      )
    for value in (*self.flags, self.workdir, self.python):
      if "\0" in value:
        raise LaunchError(
          f"{value!r} contains a null character", "no program can be given that"
        )
    for name, value in self.options.items():
      texts = value if isinstance(value, list | tuple) else [value]
      for text in texts:
        if text == "" and text is value:
          continue  # as if it were not given
        if isinstance(text, str) and not PLAIN.fullmatch(text):
          raise LaunchError(
            f"--{name}={text!r} is no name of a machine or of its kind",
            "use letters, digits and . _ - @ : / + = [ ], no dash first",
          )
    for name in self.secrets:
      if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise LaunchError(
          "--secrets takes names of environment variables, not values",
          "as in --secrets=WANDB_API_KEY,HF_TOKEN",
        )
    self._check_secrets()

  def _check_secrets(self):
    """Refuses values that anyone could read in the list of processes."""
    for flag in self.flags:
      name = flag.lstrip("-").partition("=")[0]
      if _SECRET_NAME.search(name) or _SECRET_VALUE.search(flag):
        # The value is not shown.
        raise LaunchError(
          f"the flag {name[:40]!r} seems to hold a secret, which all users of"
          " the hosts could read in the list of processes",
          "put it into an environment variable, and name that in --secrets",
        )

  def to_json(self) -> str:
    """Returns the job as JSON, with a newline at the end."""
    return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def from_json(text: str) -> Job:
  """Returns the job that `Job.to_json` has written.

  Raises:
    LaunchError: if the text is no such job.
  """
  try:
    values = json.loads(text)
    values.update({k: tuple(values[k]) for k in ("flags", "secrets")})
    return Job(**values)
  except (ValueError, TypeError, KeyError) as error:
    raise LaunchError(
      f"the description of the job is damaged: {error}", "launch it again"
    ) from error
