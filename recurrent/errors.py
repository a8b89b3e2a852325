"""Errors a user can cause, each with its cause, its remedy and its exit code.

A library function raises `ValueError` for a wrong argument. These are for what
comes from outside: flags, files, a workdir, a learning rate. Scripts print
`cause` and `remedy`, one line each, and exit with `exit_code`.
"""


class UserError(Exception):
  """Something outside the program is wrong, and the user can mend it.

  Args:
    cause: one line: what is wrong, with the name and the value.
    remedy: one line: what to do about it.
  """

  exit_code = 1

  def __init__(self, cause: str, remedy: str):
    super().__init__(cause, remedy)
    self.cause = cause
    self.remedy = remedy

  def __str__(self) -> str:
    return f"{self.cause}\n{self.remedy}"


class ConfigError(UserError):
  """A bad flag or a bad combination of flags."""

  exit_code = 2


class DataError(UserError):
  """Data that is missing, unreadable, or too small for the job."""

  exit_code = 3


class CheckpointError(UserError):
  """A checkpoint that is missing, corrupt or of another model."""

  exit_code = 4


class WorkdirError(UserError):
  """A workdir that cannot be written to, or that a live run is using."""

  exit_code = 5


class DivergedError(UserError):
  """Training that left the finite numbers and did not come back."""

  exit_code = 6


class Preempted(UserError):  # noqa: N818 - nothing went wrong
  """The run was told to stop, and has saved: run the same command again."""

  exit_code = 75
