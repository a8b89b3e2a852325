"""The rules by which "auto" chooses a method, for each kind of device.

The rules are tried in order, and the first that holds for a cell gives its
method. The measurements are in docs/methods.json, made on an idle machine by

  python -m experiments.benchmark --suite=methods

and a test compares the rules for the CPU with them. A method that was not timed
on a kind of device ("tpu_kernel", "cudnn") is not in the rules for that kind.
"""

from collections.abc import Callable
from typing import NamedTuple

from recurrent.cells.base import Cell, GatedCell, LinearCell, MatrixCell
from recurrent.cells.noise import unwrapped_cell
from recurrent.executors import cpu_kernel
from recurrent.kernels import cpu
from recurrent.setting import Setting


class Rule(NamedTuple):
  """A rule that assigns a method to some cells.

  Attributes:
    name: describes the cells that the rule is for.
    holds: returns whether the rule is for a cell in a setting.
    method: the method that runs these cells.
    why: the reason for the method, which `recurrent.explain` prints.
  """

  name: str
  holds: Callable[[Cell, Setting], bool]
  method: str
  why: str


def _is(kind: type) -> Callable[[Cell, Setting], bool]:
  return lambda cell, setting: isinstance(cell, kind)


def _in_cpp(cell, setting):
  why_not = cpu.why_not_here(setting) or cpu.why_slow_here(setting)
  return bool(cpu_kernel.kind(cell)) and not why_not


MATRIX = Rule(
  "matrix cells",
  _is(MatrixCell),
  "chunkwise",
  "attention within chunks: no matrix is written down for every time step",
)
LINEAR = Rule(
  "linear cells",
  _is(LinearCell),
  "linear_scan",
  "a reverse pass that is the same scan backwards, from the states alone",
)
CPU_KERNEL = Rule(
  "cells with a loop in C++, on one device",
  _in_cpp,
  "cpu_kernel",
  "the intermediate values of a time step stay in registers",
)
GATED = Rule(
  "gated cells",
  _is(GatedCell),
  "fused",
  "weight gradients are bulk products, outside the reverse loop",
)
OTHERS = Rule(
  "all other cells",
  _is(Cell),
  "scan",
  "nothing else runs them",
)


class Table(NamedTuple):
  """The rules for one kind of device.

  Attributes:
    about: whether the rules were measured, and where the results are.
    rules: the rules, in the order in which they are tried.
  """

  about: str
  rules: tuple[Rule, ...]


TABLES = {
  "cpu": Table(
    "measured on one device: docs/methods.json",
    (MATRIX, LINEAR, CPU_KERNEL, GATED, OTHERS),
  ),
  "gpu": Table("not timed", (MATRIX, LINEAR, GATED, OTHERS)),
  "tpu": Table("not timed", (MATRIX, LINEAR, GATED, OTHERS)),
}


def table(setting: Setting) -> Table:
  """Returns the rules for a setting's platform, or a GPU's if it is unknown."""
  return TABLES.get(setting.platform, TABLES["gpu"])


def choose(cell: Cell, setting: Setting) -> Rule:
  """Returns the first of the setting's rules that holds for a cell."""
  cell = unwrapped_cell(cell, noise=True)
  rules = table(setting).rules
  return next(rule for rule in rules if rule.holds(cell, setting))
