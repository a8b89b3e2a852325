"""What a traced or compiled program costs, counted without running it."""

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import Literal

PRODUCTS = ("dot_general", "conv_general_dilated")
# Their outputs need no memory, since XLA makes them where they are used.
FREE = ("broadcast_in_dim", "iota", "convert_element_type", "reshape")


class Counts(NamedTuple):
  """What the products of a program cost.

  Attributes:
    narrow: FLOPs with factors of 16 bits.
    wide: FLOPs with wider factors.
    bytes: bytes that the products must read and write in main memory: each
      operand once, and the weights of a loop once a time step if they do not
      fit on the chip.
    unknown: loops whose number of iterations the program does not say; they
      count once.
  """

  narrow: float = 0.0
  wide: float = 0.0
  bytes: float = 0.0
  unknown: int = 0

  def plus(self, other: "Counts") -> "Counts":
    """The sum of two programs."""
    return Counts(
      self.narrow + other.narrow,
      self.wide + other.wide,
      self.bytes + other.bytes,
      self.unknown + other.unknown,
    )

  def times(self, number: float) -> "Counts":
    """A program that runs several times."""
    return Counts(
      number * self.narrow,
      number * self.wide,
      number * self.bytes,
      self.unknown,
    )


def count(
  jaxpr: Any, on_chip: float, weights: frozenset[Any] = frozenset()
) -> tuple[Counts, Counts]:
  """Counts the FLOPs and bytes of the products of a jaxpr.

  Args:
    jaxpr: an open jaxpr.
    on_chip: bytes that a loop can keep on the chip.
    weights: inputs that are the same in all iterations of the loop around it.

  Returns:
    The `Counts` of one run, and those of what an enclosing loop does only once:
    reading its weights, if they fit on the chip.
  """
  total, once = Counts(), Counts()
  constant = set(weights)
  for equation in live(jaxpr):
    operands = [x for x in equation.invars if not isinstance(x, Literal)]
    name = equation.primitive.name
    if name in PRODUCTS:
      found, kept = _product(equation, constant, on_chip)
      total, once = total.plus(found), once.plus(kept)
    elif name == "scan":
      body = equation.params["jaxpr"].jaxpr
      number = equation.params["num_consts"]
      found, kept = count(body, on_chip, frozenset(body.invars[:number]))
      total = total.plus(found.times(equation.params["length"])).plus(kept)
    else:
      for inner in _inner(equation):
        outside = equation.invars[len(equation.invars) - len(inner.invars) :]
        held = frozenset(
          mine
          for mine, theirs in zip(inner.invars, outside, strict=False)
          if not isinstance(theirs, Literal) and theirs in constant
        )
        found, kept = count(inner, on_chip, held)
        runs = 1.0
        if name == "pallas_call":
          runs = math.prod(equation.params["grid_mapping"].grid)
        total = total.plus(found.times(runs))
        once = once.plus(kept)
        if name == "while":
          total = total._replace(unknown=total.unknown + 1)
    if operands and all(x in constant for x in operands):
      constant.update(equation.outvars)
  return total, once


def _product(equation, constant, on_chip):
  """The `Counts` of a product, and what a loop around it needs once."""
  left, right = (x.aval for x in equation.invars[:2])
  out = equation.outvars[0].aval
  if equation.primitive.name == "dot_general":
    (contracted, _), _ = equation.params["dimension_numbers"]
    depth = math.prod(left.shape[axis] for axis in contracted)
  else:
    numbers = equation.params["dimension_numbers"]
    depth = math.prod(right.shape) / right.shape[numbers.rhs_spec[0]]
  flops = 2.0 * math.prod(out.shape) * depth
  narrow = max(left.dtype.itemsize, right.dtype.itemsize) <= 2
  found = Counts(narrow=flops) if narrow else Counts(wide=flops)
  once = Counts()
  moved = float(size(out))
  for operand in equation.invars[:2]:
    held = not isinstance(operand, Literal) and operand in constant
    if held and size(operand.aval) <= on_chip:
      once = once.plus(Counts(bytes=size(operand.aval)))
    else:
      moved += size(operand.aval)
  return found._replace(bytes=moved), once


def temporary(jaxpr: Any) -> float:
  """The most bytes that a jaxpr holds at a time beside its inputs.

  Every array exists from its equation to its last use, as if XLA fused nothing
  but copies, so that this is rather too much.
  """
  last = {}
  equations = live(jaxpr)
  for number, equation in enumerate(equations):
    for operand in equation.invars:
      if not isinstance(operand, Literal):
        last[operand] = number
  for operand in jaxpr.outvars:
    if not isinstance(operand, Literal):
      last[operand] = len(equations)
  now = most = 0.0
  alive = {}
  for number, equation in enumerate(equations):
    inside = max(map(temporary, _inner(equation)), default=0.0)
    most = max(most, now + inside)
    if equation.primitive.name not in FREE:
      for out in equation.outvars:
        if last.get(out, -1) > number:
          alive[out] = size(out.aval)
          now += alive[out]
    most = max(most, now)
    for operand in equation.invars:
      if not isinstance(operand, Literal) and last[operand] == number:
        now -= alive.pop(operand, 0.0)
  return most


def live(jaxpr: Any) -> list[Any]:
  """The equations that the outputs of a jaxpr need; XLA drops the others."""
  needed = {x for x in jaxpr.outvars if not isinstance(x, Literal)}
  kept = []
  for equation in reversed(jaxpr.eqns):
    if needed.intersection(equation.outvars) or equation.effects:
      kept.append(equation)
      needed.update(x for x in equation.invars if not isinstance(x, Literal))
  return kept[::-1]


def _inner(equation) -> Iterable[Any]:
  """The jaxprs that an equation runs."""
  if equation.primitive.name == "cond":
    # One of them runs: the largest is counted.
    branches = [branch.jaxpr for branch in equation.params["branches"]]
    return [max(branches, key=lambda b: len(b.eqns))]
  found = []
  for name, value in equation.params.items():
    # A custom rule is not run beside what it replaces.
    if name in ("jaxpr", "call_jaxpr", "fun_jaxpr", "body_jaxpr"):
      found.append(getattr(value, "jaxpr", value))
  return found


def size(shape: Any) -> int:
  """Bytes of an array with a shape and a dtype."""
  dtype = shape.dtype
  width = dtype.itemsize if hasattr(dtype, "itemsize") else 4
  return math.prod(shape.shape) * width


_WIDTHS = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "c64": 8}
COLLECTIVES = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)


class Collective(NamedTuple):
  """A kind of communication in a compiled program.

  Attributes:
    kind: such as all-reduce.
    in_loop: whether it is inside a loop, and so runs more often than once.
    number: how many there are.
    bytes: bytes of their results on a device.
  """

  kind: str
  in_loop: bool
  number: int
  bytes: float


def collectives(text: str) -> list[Collective]:
  """Finds the communication of a compiled program.

  Args:
    text: the program in XLA's language HLO, from `compiled.as_text()`.
  """
  bodies: dict[str, list[str]] = {}
  name = ""
  for line in text.splitlines():
    head = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{", line)
    if head:
      name = head[1]
      bodies[name] = []
    elif name:
      bodies[name].append(line)
  calls = {
    key: set(
      re.findall(
        r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", "\n".join(lines)
      )
    )
    | {
      name.strip().removeprefix("%")
      for branches in re.findall(r"computations=\{(.*?)\}", "\n".join(lines))
      for name in branches.split(",")
    }
    for key, lines in bodies.items()
  }
  looped = set(re.findall(r"body=%?([\w.\-]+)", text))
  todo = list(looped)
  while todo:
    for inner in calls.get(todo.pop(), ()):
      if inner not in looped:
        looped.add(inner)
        todo.append(inner)
  sums: dict[tuple[str, bool], list[float]] = {}
  kinds = "|".join(COLLECTIVES)
  pattern = re.compile(rf" = (.*?) ({kinds})(?:-start)?\(")
  for key, lines in bodies.items():
    for line in lines:
      if found := pattern.search(line):
        entry = sums.setdefault((found[2], key in looped), [0, 0.0])
        entry[0] += 1
        entry[1] += _bytes(found[1])
  return [
    Collective(kind, in_loop, int(number), total)
    for (kind, in_loop), (number, total) in sorted(sums.items())
  ]


def _bytes(shapes: str) -> float:
  """Bytes of the arrays of an HLO type such as (f32[8,2]{1,0}, u32[])."""
  total = 0.0
  for kind, sides in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shapes):
    width = _WIDTHS.get(kind)
    if width is None:
      digits = re.sub(r"\D", "", kind)
      width = int(digits) / 8 if digits else 4
    total += width * float(np.prod([int(x) for x in sides.split(",") if x]))
  return total
