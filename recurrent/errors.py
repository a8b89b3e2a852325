"""Errors that a user can cause, with a cause, a remedy and an exit code.

Library functions raise `ValueError` for a wrong argument. The errors here are
for input of a program: values of a configuration, files, a workdir. Scripts
print `cause` and `remedy`, one line each, and exit with `exit_code`.

Messages name arguments in backticks, with or without a value: "`devices=9`, but
there are 8". Scripts print these as flags, `--devices=9`.
"""


class UserError(Exception):
  """Base class of the errors that a user can cause and correct.

  Args:
    cause: one line that says what is wrong, with the name and the value.
    remedy: one line that says what to do about it.
  """

  exit_code = 1

  def __init__(self, cause: str, remedy: str):
    super().__init__(cause, remedy)
    self.cause = cause
    self.remedy = remedy

  def __str__(self) -> str:
    return f"{self.cause}\n{self.remedy}"


class ConfigError(UserError):
  """A value or a combination of values is wrong."""

  exit_code = 2


class DataError(UserError):
  """Data is missing, unreadable, or too small for the task."""

  exit_code = 3


class CheckpointError(UserError):
  """A checkpoint is missing, damaged, or of another configuration."""

  exit_code = 4


class WorkdirError(UserError):
  """A workdir cannot be written to, or another run is using it."""

  exit_code = 5


class DivergedError(UserError):
  """Training diverged: its updates are not finite, or its loss grew."""

  exit_code = 6


class PeerError(UserError):
  """Another process of the run has ended or does not answer.

  Its exit code is also that of a process that makes no progress (see
  `recurrent.training.watchdog`): the same command, run again, continues both.
  """

  exit_code = 7


class Preempted(UserError):  # noqa: N818 - nothing went wrong
  """The run was stopped by a signal and has saved its state.

  The same command, run again, continues it.
  """

  exit_code = 75
