"""The error of a launch that its user can correct."""


class LaunchError(Exception):
  """A value is wrong, or a machine is not as it must be.

  Args:
    cause: what is wrong, with the name and the value.
    remedy: what to do about it.
    code: exit code of the program.
  """

  def __init__(self, cause, remedy, code=2):
    super().__init__(f"{cause}\n{remedy}")
    self.code = code
