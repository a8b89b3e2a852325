"""Times every cell by every method: the data for the choice of method="auto".

  python -m experiments.benchmark --suite=methods

The methods take turns in this process. `recurrent.executors.choice` has the
rules of the choice; tests/executors/choice_test.py compares them with the
measurements in docs/methods.json.
"""

import functools
import re
import statistics
from typing import Any, NamedTuple

import jax

from experiments.benchmarks import programs, timing
from experiments.benchmarks.problems import BACKWARD, FORWARD
from recurrent import cells, memory
from recurrent.executors import EXECUTORS, Setting
from recurrent.unroll import resolve_method

# It needs a varying number of iterations. The suite newton measures it.
LEFT_OUT = ("newton",)
SHAPES = ((64, 100, 128, 128), (16, 64, 512, 512), (1, 256, 256, 256))
MORE_SHAPES = ((32, 10, 1, 64), (20, 35, 648, 648), (1, 4096, 64, 64))
WELL_KNOWN = ("rnn", "lstm", "gru", "slstm", "lru", "mlstm")


class Case(NamedTuple):
  """A cell and the shape of its inputs.

  Attributes:
    name: a key of `recurrent.cells.CELLS`.
    batch: rows.
    time: time steps.
    in_features: width of the inputs.
    features: width of the cell.
  """

  name: str
  batch: int
  time: int
  in_features: int
  features: int


def cases() -> list[Case]:
  """All cells at some shapes, and well-known cells at further shapes."""
  return [
    *(Case(n, *s) for s in SHAPES for n in cells.vector_cells()),
    *(Case(n, *s) for s in MORE_SHAPES for n in WELL_KNOWN),
  ]


def able(cell: cells.Cell, setting: Setting) -> list[str]:
  """All methods that can run a cell in a setting, without interpreted ones."""
  return [
    name
    for name, executor in EXECUTORS.items()
    if executor.platform in ("", setting.platform)
    and not executor.why_not(cell)
    and not executor.why_not_here(setting)
  ]


def candidates(cell: cells.Cell, setting: Setting) -> list[str]:
  """The methods to time."""
  return [name for name in able(cell, setting) if name not in LEFT_OUT]


def measure(config: Any, machine: Any) -> list[dict[str, Any]]:
  """Times all methods of all cases, in turn.

  Returns:
    One row per case and kind of work: `ms` has the best time of each method,
    `auto` is the method that `method="auto"` chooses.
  """
  del machine
  memory.keep_freed()
  rows = []
  for case in cases():
    cell = cells.get(case.name)(case.features)
    layers = [cell.init(jax.random.key(0), case.in_features)]
    inputs = jax.random.normal(
      jax.random.key(1), (case.batch, case.time, case.in_features)
    )
    able = candidates(cell, Setting.here())
    for work in (FORWARD, BACKWARD):
      compiled = {
        name: programs.lower(work, cell, layers, inputs, method=name).compile()
        for name in able
      }
      ms = _best_turns(compiled, (layers, inputs), config)
      auto = resolve_method(cell, "auto")
      row = {**case._asdict(), "work": work, "auto": auto, "ms": ms}
      rows.append(row)
      print(_line(row), flush=True)
  return rows


def exceptions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Rows in which "auto" takes over a tenth longer than the best method.

  Args:
    rows: as `measure` returns them.

  Returns:
    Those rows, with the `best` method and the `ratio` of the times; the
    greatest ratio first.
  """
  found = []
  for row in rows:
    best = min(row["ms"], key=row["ms"].__getitem__)
    ratio = row["ms"][row["auto"]] / row["ms"][best]
    if ratio > 1.1:
      found.append({**row, "best": best, "ratio": ratio})
  return sorted(found, key=lambda row: -row["ratio"])


def report(rows: list[dict[str, Any]]) -> str:
  """Formats measurements as the section of docs/performance.md on methods."""
  over = exceptions(rows)
  mean = statistics.geometric_mean(
    row["ms"][row["auto"]] / min(row["ms"].values()) for row in rows
  )
  lines = [
    f"In {len(rows) - len(over)} of {len(rows)} combinations of cell, shape and"
    " pass the chosen method takes at most a tenth longer than the best; in the"
    f" geometric mean over all, {100 * (mean - 1):.1f} % longer. The others:",
    "",
    "| cell | B x T x D x H | pass | chosen, ms | best, ms | ratio |",
    "|---|---|---|---|---|---|",
  ]
  for row in over:
    shape = " x ".join(str(row[k]) for k in Case._fields[1:])
    times = (
      f"{name} {row['ms'][name]:.2f}" for name in (row["auto"], row["best"])
    )
    cells = row["name"], shape, row["work"], *times, f"{row['ratio']:.2f}"
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def _best_turns(compiled, arguments, config):
  """The smallest of the medians of each method's turns, in milliseconds.

  Noise only adds time, hence the smallest. Methods that compile to the same
  program are measured once.
  """
  texts = {name: _program(method) for name, method in compiled.items()}
  first = {text: name for name, text in reversed(texts.items())}

  run = lambda name: jax.block_until_ready(compiled[name](*arguments))
  turns = timing.medians(
    {n: functools.partial(run, n) for n in texts if first[texts[n]] == n},
    config.repeats,
    config.seconds,
  )
  return {name: min(turns[first[text]]) for name, text in texts.items()}


def _program(compiled):
  """The text of a compiled program, without its source locations."""
  text = re.sub(r"metadata=\{[^}]*\}", "", compiled.as_text())
  return text[text.index("\n%") :]


def _line(row):
  best = min(row["ms"], key=row["ms"].__getitem__)
  times = ", ".join(f"{k} {v:.4g}" for k, v in row["ms"].items())
  shape = "x".join(str(row[k]) for k in Case._fields[1:])
  over = row["ms"][row["auto"]] / row["ms"][best]
  return (
    f"{row['name']} {shape}, {row['work']}, ms: {times};"
    f" auto is {row['auto']}, {over:.2f} of {best}"
  )
