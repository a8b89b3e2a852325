"""Plans: lists of steps that a shell or `runner` carries out.

Every value that comes from a user is an item of `argv` or the text of a file.
`script` quotes them in one place, so that no value is ever read as code.
"""

import itertools
import shlex
from collections.abc import Sequence
from typing import NamedTuple


class Command(NamedTuple):
  """A command to run.

  Attributes:
    argv: the program and its arguments.
    why: what it is for, in a few words.
    until: if not empty, the command is repeated until its output is this.
    reports: whether its output contains reports of `host preflight`, which
      must agree with those of all other hosts.
  """

  argv: tuple[str, ...]
  why: str = ""
  until: str = ""
  reports: bool = False


class Write(NamedTuple):
  """A file to write.

  Attributes:
    path: its path.
    text: its contents.
    why: what it is for, in a few words.
  """

  path: str
  text: str
  why: str = ""


Step = Command | Write
AGREE = "tee /dev/stderr | python3 -m launch.host agree"
PAUSE = 30  # seconds between two repetitions of a command


def line(step: Step) -> str:
  """Returns a step as a command of a POSIX shell."""
  if isinstance(step, Write):
    return f"printf %s {shlex.quote(step.text)} > {shlex.quote(step.path)}"
  text = shlex.join(step.argv)
  if not step.until:
    return text
  wanted = shlex.quote(step.until)
  return f'until test "$({text})" = {wanted}; do sleep {PAUSE}; done'


def script(steps: Sequence[Step]) -> str:
  """Returns the steps as lines that can be pasted into a shell."""
  lines = []
  for reports, found in itertools.groupby(steps, _reports):
    group = list(found)
    told = [line(step) for step in group]
    if reports:
      lines.append(f"# {' '.join(group[0].why.split())}\n")
      lines.append(f"{{ {' && '.join(told)}; }} | {AGREE}\n")
      continue
    for step, text in zip(group, told, strict=True):
      # A comment must remain one line, whatever it says.
      about = f"# {' '.join(step.why.split())}\n" if step.why else ""
      lines.append(f"{about}{text}\n")
  return "".join(lines)


def _reports(step):
  return isinstance(step, Command) and step.reports
