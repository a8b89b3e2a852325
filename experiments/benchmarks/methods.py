"""Every cell by every method that runs it: what the table of "auto" rests on.

  python -m experiments.benchmark --suite=methods

In this process, methods in turn. `recurrent.executors.choice` has the table;
tests/executors/choice_test.py holds it against docs/methods.json.
"""

import re
import statistics
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmarks.problems import BACKWARD, FORWARD
from recurrent import cells, memory, unroll
from recurrent.cells.base import Cell
from recurrent.executors import EXECUTORS, Setting
from recurrent.unroll import resolve_method

# Solved in rounds, or interpreted: the suites newton and cells are for those.
LEFT_OUT = ("newton", "pallas")
SHAPES = ((64, 100, 128, 128), (16, 64, 512, 512), (1, 256, 256, 256))
MORE_SHAPES = ((32, 10, 1, 64), (20, 35, 648, 648), (1, 4096, 64, 64))
TURN = 0.02  # seconds, at least
WELL_KNOWN = ("rnn", "lstm", "gru", "slstm", "lru", "mlstm")


class Case(NamedTuple):
  """A cell at a shape.

  Attributes:
    name: key of `recurrent.cells.CELLS`.
    batch: rows.
    time: ticks.
    in_features: width of the inputs.
    features: width of the cell.
  """

  name: str
  batch: int
  time: int
  in_features: int
  features: int

  def cell(self) -> Cell:
    """The cell, built."""
    return cells.get(self.name)(self.features)


def cases() -> list[Case]:
  """All cells at some shapes, well-known ones at some more."""
  return [
    *(Case(n, *s) for s in SHAPES for n in cells.vector_cells()),
    *(Case(n, *s) for s in MORE_SHAPES for n in WELL_KNOWN),
  ]


def measure(
  wanted: Iterable[Case], rounds: int, seconds: float
) -> list[dict[str, Any]]:
  """Times all methods of some cases, in turn.

  Args:
    wanted: the cases.
    rounds: calls of each method, at most.
    seconds: that the turns at one case and work may take; 3 rounds even so.

  Returns:
    One row a case and work: `ms` has each method's best turn, `auto` what
    `method="auto"` takes.
  """
  memory.keep_freed()
  rows = []
  for case in wanted:
    cell = case.cell()
    params = cell.init(jax.random.key(0), case.in_features)
    inputs = jax.random.normal(
      jax.random.key(1), (case.batch, case.time, case.in_features)
    )
    setting = Setting.here()
    runners = {
      name: _works(cell, name)
      for name, executor in EXECUTORS.items()
      if name not in LEFT_OUT
      and not executor.why_not(cell)
      and not executor.why_not_here(setting)
    }
    for work in (FORWARD, BACKWARD):
      calls = {
        name: jax.jit(works[work]).lower(params, inputs).compile()
        for name, works in runners.items()
      }
      rows.append(
        {
          **case._asdict(),
          "work": work,
          "auto": resolve_method(cell, "auto"),
          "ms": _best_turns(calls, (params, inputs), rounds, seconds),
        }
      )
      print(_line(rows[-1]), flush=True)
  return rows


def _works(cell, method):
  def forward(params, inputs):
    return unroll(cell, params, None, inputs, method=method)[1]

  def loss(params, inputs):
    return jnp.mean(forward(params, inputs) ** 2)

  return {FORWARD: forward, BACKWARD: jax.grad(loss, argnums=(0, 1))}


def _best_turns(calls, arguments, rounds, seconds):
  """Of each call, the least of its turns' medians: noise only adds.

  What compiled to the same program has the same time.
  """
  programs = {name: _program(call) for name, call in calls.items()}
  first = {program: name for name, program in reversed(list(programs.items()))}
  same = {name: first[program] for name, program in programs.items()}
  calls = {name: call for name, call in calls.items() if same[name] == name}
  turns: dict[str, list[float]] = {name: [] for name in calls}
  begun = time.perf_counter()
  for turn in range(rounds + 1):
    if turn > 3 and time.perf_counter() - begun > seconds:
      break
    for name, call in calls.items():
      median = 1e3 * statistics.median(_turn(call, arguments))
      if turn:  # the first is to warm up
        turns[name].append(median)
  return {name: min(turns[other]) for name, other in same.items()}


def _program(call):
  """What was compiled, without where in the source it came from."""
  text = re.sub(r"metadata=\{[^}]*\}", "", call.as_text())
  return text[text.index("\n%") :]


def _turn(call, arguments):
  """Seconds of each call in a turn of at least `TURN` seconds.

  The first is not counted: it finds the memory as the method before left it.
  """
  taken: list[float] = []
  jax.block_until_ready(call(*arguments))
  while sum(taken) < TURN:
    start = time.perf_counter()
    jax.block_until_ready(call(*arguments))
    taken.append(time.perf_counter() - start)
  return taken


def _line(row):
  best = min(row["ms"], key=row["ms"].__getitem__)
  times = ", ".join(f"{k} {v:.4g}" for k, v in row["ms"].items())
  shape = "x".join(str(row[k]) for k in Case._fields[1:])
  over = row["ms"][row["auto"]] / row["ms"][best]
  return (
    f"{row['name']} {shape}, {row['work']}, ms: {times};"
    f" auto is {row['auto']}, {over:.2f} of {best}"
  )
