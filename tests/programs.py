"""Reads the collectives of a compiled program, for tests."""

import math
import re
from typing import NamedTuple

KINDS = "all-reduce all-gather all-to-all reduce-scatter collective-permute"
_OPERATION = re.compile(
  r"= (.*?) ({})(?:-start)?\(".format("|".join(KINDS.split()))
)
_CALLED = re.compile(r"(?:body|condition|calls|to_apply|computations)=")


class Collective(NamedTuple):
  """A collective operation: its kind, its size, and whether a loop has it."""

  kind: str
  numbers: int  # elements of all its results
  in_loop: bool


def collectives(text: str) -> list[Collective]:
  """Finds the collectives of a program, from its text in HLO.

  Args:
    text: `compiled.as_text()`.
  """
  computations: dict[str, list[str]] = {}
  lines: list[str] = []
  for line in text.splitlines():
    if header := re.match(r"(?:ENTRY )?(%[\w.-]+) .*\{$", line):
      lines = computations.setdefault(header[1], [])
    lines.append(line)

  def called(lines):
    mentioned = {
      name
      for line in lines
      if _CALLED.search(line)
      for name in re.findall(r"%[\w.-]+", line.partition("(")[2])
    }
    return mentioned & computations.keys()

  inside, found = set(), []
  loops = [x for body in computations.values() for x in body if " while(" in x]
  waiting = called(loops)
  while waiting:
    name = waiting.pop()
    inside.add(name)
    waiting |= called(computations[name][1:]) - inside
  for name, body in computations.items():
    for line in body:
      if operation := _OPERATION.search(line):
        shapes = re.findall(r"\w+\[([\d,]*)\]", operation[1])
        numbers = [
          math.prod(map(int, filter(None, s.split(",")))) for s in shapes
        ]
        found.append(Collective(operation[2], sum(numbers), name in inside))
  return found
