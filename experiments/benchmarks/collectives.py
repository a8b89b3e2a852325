"""Reads the collectives of a compiled program."""

import math
import re
from typing import NamedTuple

KINDS = "all-reduce all-gather all-to-all reduce-scatter collective-permute"
_OPERATION = re.compile(
  r"= (.*?) ({})(?:-start)?\(".format("|".join(KINDS.split()))
)
_CALLED = re.compile(r"(?:body|condition|calls|to_apply|computations)=")


class Collective(NamedTuple):
  """A collective operation.

  Attributes:
    kind: its name in HLO, such as "all-reduce".
    numbers: elements of all its results, on one device.
    bytes: the bytes of these.
    in_loop: whether it is within a loop.
  """

  kind: str
  numbers: int
  bytes: int
  in_loop: bool


def find(text: str) -> list[Collective]:
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
        numbers = size = 0
        for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", operation[1]):
          number = math.prod(map(int, re.findall(r"\d+", shape)))
          bits = re.search(r"\d+", kind)  # "pred" has none
          numbers += number
          size += number * max(8, int(bits[0]) if bits else 8) // 8
        inner = name in inside
        found.append(Collective(operation[2], numbers, size, inner))
  return found
