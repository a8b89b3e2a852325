"""What "auto" stands for: a table for each kind of device.

The rows of a table are tried from the top; the first that holds is taken. What
is measured stands in docs/methods.json, made on an idle machine by

  python -m experiments.benchmark --suite=methods

and a test holds the table of the CPU against it. A method that was not timed on
a kind of device ("tpu_kernel", "cudnn") is not in its table.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from recurrent.cells.base import Cell, GatedCell, LinearCell, MatrixCell
from recurrent.executors import cpu_kernel


class Setting(NamedTuple):
  """Where and on what a cell is to run.

  Attributes:
    dtype: to compute in.
    carry_dtype: of the carry.
    platform: JAX's default backend.
    devices: how many there are.
  """

  dtype: Any
  carry_dtype: Any
  platform: str
  devices: int

  @property
  def widths(self) -> str:
    """The dtypes, in words."""
    return f"{self.dtype} with a carry of {self.carry_dtype}"

  @classmethod
  def here(cls, dtype=jnp.float32, carry_dtype=jnp.float32) -> "Setting":
    """That of this machine."""
    dtype, carry_dtype = map(jnp.dtype, (dtype, carry_dtype))
    return cls(dtype, carry_dtype, jax.default_backend(), jax.device_count())


class Row(NamedTuple):
  """One line of a table.

  Attributes:
    name: which cells, where.
    holds: whether it is about a cell in a setting.
    method: what to run it by.
    why: what is known of it.
  """

  name: str
  holds: Callable[[Cell, Setting], bool]
  method: str
  why: str


def _is(kind: type) -> Callable[[Cell, Setting], bool]:
  return lambda cell, setting: isinstance(cell, kind)


def _in_cpp(cell, setting):
  # A call in C++ is one device's: what is sharded would be gathered for it.
  alone = setting.devices == 1
  return (
    bool(cpu_kernel.kind(cell))
    and alone
    and not cpu_kernel.why_not_here(setting)
  )


MATRIX = Row(
  "matrix cells",
  _is(MatrixCell),
  "chunkwise",
  "attention within chunks: no matrix is written down for every time step",
)
LINEAR = Row(
  "linear cells",
  _is(LinearCell),
  "linear_scan",
  "a reverse pass that is the same scan backwards, from the states alone",
)
NATIVE = Row(
  "cells with a loop in C++, on one device",
  _in_cpp,
  "cpu_kernel",
  "a time step stays in registers",
)
GATED = Row(
  "gated cells",
  _is(GatedCell),
  "fused",
  "weight gradients are bulk products, outside the reverse loop",
)
OTHERS = Row(
  "all other cells",
  _is(Cell),
  "scan",
  "nothing else runs them",
)


class Table(NamedTuple):
  """What a kind of device runs by what.

  Attributes:
    about: where its rows come from.
    rows: tried in order.
  """

  about: str
  rows: tuple[Row, ...]


TABLES = {
  "cpu": Table(
    "measured: docs/methods.json", (MATRIX, LINEAR, NATIVE, GATED, OTHERS)
  ),
  "gpu": Table("not timed", (MATRIX, LINEAR, GATED, OTHERS)),
  "tpu": Table("not timed", (MATRIX, LINEAR, GATED, OTHERS)),
}


def table(setting: Setting) -> Table:
  """The table of a setting's kind of device; an unknown kind is a GPU."""
  return TABLES.get(setting.platform, TABLES["gpu"])


def choose(cell: Cell, setting: Setting) -> Row:
  """The first row of the setting's table that holds for a cell."""
  rows = table(setting).rows
  return next(row for row in rows if row.holds(cell, setting))
