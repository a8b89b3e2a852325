"""Synthetic tasks that test what a network can keep in its carry, and compute.

A task draws batches `{inputs, targets, weights}` with a NumPy generator:

  inputs   [batch, time] int32 tokens, or [batch, time, channels] float32
  targets  [batch, time] int32 classes, or [batch, time] float32 values
  weights  [batch, time] float32: 1 where a target is scored, 0 elsewhere

`TASKS` lists them by name. The baseline of a task is the lowest expected loss
of a predictor that knows the task and the time step but no inputs: nats per
scored target for classes, the mean squared error for values.
"""

import dataclasses
import functools
import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from recurrent.data.bptt import check_least

Batch = dict[str, np.ndarray]
Generator = np.random.Generator

BLANK = 0


def copy(
  rng: Generator, batch: int, length: int, *, symbols: int = 8, items: int = 10
) -> Batch:
  """Draws sequences to reproduce after a delay.

  The inputs are `items` symbols, `length - 1` blanks, a marker, and `items`
  blanks, during which the targets are the symbols in their order. Tokens: 0 is
  the blank, 1 to `symbols` are the symbols, and symbols + 1 is the marker.
  The time steps before are not scored. (Papers that average the loss over all
  length + 2 items time steps report ours times items / (length + 2 items).)

  Baseline: ln(symbols).

  Args:
    rng: source of random numbers.
    batch: number of sequences.
    length: delay in time steps, T in the literature.
    symbols: number of symbols.
    items: number of symbols to reproduce.

  Reference:
    Hochreiter & Schmidhuber, 1997; in this form: Arjovsky, Shah & Bengio,
    "Unitary evolution recurrent neural networks", 2016.
  """
  drawn = _symbols(rng, (batch, items), symbols)
  inputs = _blanks(batch, length + 2 * items)
  inputs[:, :items] = drawn
  inputs[:, items + length - 1] = symbols + 1
  return _scored_at_end(inputs, drawn - 1)


def selective_copy(
  rng: Generator, batch: int, length: int, *, symbols: int = 8, items: int = 10
) -> Batch:
  """Draws sequences with symbols to reproduce among blanks to ignore.

  Of the first `length` inputs, `items` at random places are symbols and the
  others are blanks. Then come `items` markers, during which the targets are the
  symbols in their order. Tokens are those of `copy`.

  Baseline: ln(symbols).

  Args:
    rng: source of random numbers.
    batch: number of sequences.
    length: number of time steps among which the symbols lie.
    symbols: number of symbols.
    items: number of symbols to reproduce.

  Reference:
    Jing et al., "Gated orthogonal recurrent units", 2019 (denoise task); Gu &
    Dao, "Mamba", 2023.
  """
  drawn = _symbols(rng, (batch, items), symbols)
  inputs = _blanks(batch, length + items)
  places = np.sort(_distinct(rng, batch, length, items), axis=1)
  np.put_along_axis(inputs, places, drawn, axis=1)
  inputs[:, length:] = symbols + 1
  return _scored_at_end(inputs, drawn - 1)


def adding(rng: Generator, batch: int, length: int) -> Batch:
  """Draws sequences of numbers, two of which are to be added.

  The inputs have two channels: numbers uniform in [0, 1), and a marker, which
  is 1 at one time step of the first half and one of the second half, and 0
  elsewhere. The target of the last time step is the sum of the two marked
  numbers; nothing else is scored.

  Baseline: 1/6, the variance of that sum, by predicting 1.

  Args:
    rng: source of random numbers.
    batch: number of sequences.
    length: number of time steps T.

  Reference:
    Hochreiter & Schmidhuber, "Long short-term memory", 1997; in this form: Le,
    Jaitly & Hinton, "A simple way to initialize recurrent networks of rectified
    linear units", 2015.
  """
  numbers = rng.random((batch, length), np.float32)
  half = length // 2
  places = np.stack(
    [rng.integers(0, half, batch), rng.integers(half, length, batch)], axis=1
  )
  markers = np.zeros_like(numbers)
  np.put_along_axis(markers, places, np.float32(1), axis=1)
  sums = np.take_along_axis(numbers, places, axis=1).sum(axis=1)
  return _scored_at_end(np.stack([numbers, markers], axis=-1), sums[:, None])


def parity(rng: Generator, batch: int, length: int) -> Batch:
  """Draws random bits; each target is the parity of the bits so far.

  Baseline: ln 2.

  Args:
    rng: source of random numbers.
    batch: number of sequences.
    length: number of bits.

  Reference:
    Hochreiter & Schmidhuber, 1997; as a test of length generalisation:
    Deletang et al., "Neural networks and the Chomsky hierarchy", 2023.
  """
  bits = rng.integers(0, 2, (batch, length), np.int32)
  return _scored_everywhere(bits, np.cumsum(bits, axis=1) % 2)


def mqar(
  rng: Generator, batch: int, length: int, *, symbols: int = 64, items: int = 4
) -> Batch:
  """Draws multi-query associative recall: keys, their values, and queries.

  The inputs begin with `items` pairs of a key and a value. The keys of a
  sequence are distinct. Each key then occurs once more, among blanks, at a
  random time step, where its value is the target. The number of time steps g
  after the pairs has a probability proportional to (g + 1)^-0.99, so that most
  queries come soon. Tokens: 0 is the blank, 1 to `symbols` are keys, symbols +
  1 to 2 symbols are values.

  Baseline: ln(symbols).

  Args:
    rng: source of random numbers.
    batch: number of sequences.
    length: number of time steps, at least 3 `items`.
    symbols: number of keys, and number of values.
    items: number of pairs.

  Reference:
    Arora et al., "Zoology: measuring and improving recall in efficient language
    models", 2023, whose vocabulary has 8,192 tokens. There, a query is also
    followed by its value, and it falls on even time steps only.
  """
  keys = _distinct(rng, batch, symbols, items).astype(np.int32)
  values = rng.integers(0, symbols, (batch, items), np.int32)
  inputs, targets = _blanks(batch, length), _blanks(batch, length)
  inputs[:, 0 : 2 * items : 2] = keys + 1
  inputs[:, 1 : 2 * items : 2] = values + symbols + 1
  space = length - 2 * items
  likely = np.arange(1, space + 1, dtype=np.float64) ** -0.99
  places = 2 * items + _distinct(rng, batch, space, items, likely)
  np.put_along_axis(inputs, places, keys + 1, axis=1)
  np.put_along_axis(targets, places, values, axis=1)
  weights = np.zeros((batch, length), np.float32)
  np.put_along_axis(weights, places, np.float32(1), axis=1)
  return {"inputs": inputs, "targets": targets, "weights": weights}


def induction(
  rng: Generator, batch: int, length: int, *, symbols: int = 16
) -> Batch:
  """Draws random symbols with a marker; recall the symbol that followed it.

  The marker stands at a random time step, and again at the end, where the
  target is the symbol that followed the first marker. Tokens: 0 to symbols - 1
  are symbols, and `symbols` is the marker.

  Baseline: ln(symbols).

  Args:
    rng: source of random numbers.
    batch: number of sequences.
    length: number of time steps, at least 3.
    symbols: number of symbols.

  Reference:
    Olsson et al., "In-context learning and induction heads", 2022; in this
    form: Dao et al., "Hungry hungry hippos", 2023, and Gu & Dao, 2023.
  """
  inputs = rng.integers(0, symbols, (batch, length), np.int32)
  places = rng.integers(0, length - 2, (batch, 1))
  np.put_along_axis(inputs, places, symbols, axis=1)
  inputs[:, -1] = symbols
  return _scored_at_end(inputs, np.take_along_axis(inputs, places + 1, axis=1))


@functools.cache
def permutations(name: str) -> np.ndarray:
  """The elements of a permutation group, [elements, points].

  Args:
    name: "s" or "a", for the symmetric or the alternating group, and the number
      of points, such as "s5" or "a5".

  Returns:
    Each row maps a point to a point; the first is the identity.
  """
  kind, points = name[0], int(name[1:])
  found = np.array(list(itertools.permutations(range(points))))
  if kind == "a":
    i, j = np.triu_indices(points, 1)
    inversions = (found[:, i] > found[:, j]).sum(axis=1)
    found = found[inversions % 2 == 0]
  return found


@functools.cache
def multiplication_table(name: str) -> np.ndarray:
  """The product of each two elements of `permutations`, as int32 indices.

  Entry [a, b] is the element that maps a point x to a(b(x)).
  """
  elements = permutations(name)
  base = elements.shape[1] ** np.arange(elements.shape[1])
  index = np.empty(base[-1] * elements.shape[1], np.int32)
  index[elements @ base] = np.arange(len(elements))
  # [a, b, x] = elements[a, elements[b, x]]
  return index[elements[:, elements] @ base]


@functools.cache
def generators(name: str, symbols: int) -> np.ndarray:
  """The elements of a group that the inputs of `word_problem` stand for.

  Args:
    name: name of the group.
    symbols: number of elements, at least 2; 0: all.

  Returns:
    Indices in `permutations`, [symbols]. The first two generate the group: a
    cycle of two points (in alternating groups of three), and one of all points,
    of which there must be an odd number.

  Raises:
    ValueError: if there are fewer elements.
  """
  elements = permutations(name)
  if symbols > len(elements):
    raise ValueError(
      f"symbols must be at most the {len(elements)} elements, got {symbols}"
    )
  if not symbols:
    return np.arange(len(elements), dtype=np.int32)
  points = np.arange(elements.shape[1])
  short = points.copy()
  moved = 2 if name[0] == "s" else 3
  short[:moved] = np.roll(points[:moved], 1)
  first = [
    int((elements == cycle).all(axis=1).argmax())
    for cycle in (short, np.roll(points, 1))
  ]
  others = [i for i in range(len(elements)) if i not in first]
  return np.array((first + others)[:symbols], np.int32)


def entropy_of_products(length: int, group: str, symbols: int) -> float:
  """The mean entropy in nats of the first `length` products of elements."""
  # Row i of the table of products maps each product to the next one.
  chosen = multiplication_table(group)[generators(group, symbols)]
  share = np.zeros(chosen.shape[1])
  share[0] = 1.0
  total = 0.0
  for _ in range(length):
    now = np.zeros_like(share)
    for following in chosen:
      now[following] += share / len(chosen)
    share = now
    some = share[share > 0]
    total -= float((some * np.log(some)).sum())
  return total / length


def word_problem(
  rng: Generator,
  batch: int,
  length: int,
  *,
  symbols: int = 0,
  group: str = "s5",
) -> Batch:
  """Draws elements of a group; each target is the product of those so far.

  The product of g1, ..., gt is gt ... g1: first g1 is applied, then g2, and so
  on. Targets are indices in `permutations`, and inputs in `generators`.

  The word problems of A5 and S5 are complete for NC1, as those of all groups
  that are not solvable. A recurrent network can solve them with one layer;
  transformers and linear cells with diagonal decays, of a fixed number of
  layers, cannot for all lengths, unless TC0 = NC1.

  Baseline: ln(number of elements) if `symbols` is 0; else the mean entropy of
  the products so far, which are a random walk on the group.

  Args:
    rng: source of random numbers.
    batch: number of sequences.
    length: number of elements of a sequence, k in the literature.
    symbols: number of elements that occur in the inputs; 0: all. With 2, which
      generate the group, the problem is as hard for long sequences, but there
      are fewer products to learn.
    group: name of the group, such as "s5" (120 elements) or "a5" (60).

  Reference:
    Barrington, 1989; Merrill, Petty & Sabharwal, "The illusion of state in
    state-space models", 2024.
  """
  table = multiplication_table(group)
  chosen = generators(group, symbols)
  inputs = rng.integers(0, len(chosen), (batch, length), np.int32)
  targets = chosen[inputs]
  for t in range(1, length):
    targets[:, t] = table[targets[:, t], targets[:, t - 1]]
  return _scored_everywhere(inputs, targets)


def dyck(
  rng: Generator, batch: int, length: int, *, symbols: int = 2, items: int = 8
) -> Batch:
  """Draws well-nested brackets; name the innermost one that is still open.

  At each time step a bracket opens or closes with equal probability; at depth
  zero it always opens, and at depth `items` it always closes. The types of
  opening brackets are uniform. Wherever a bracket closes and leaves others
  open, the target is the type of the innermost open one, which is the one that
  may close next. Tokens: type i opens with i and closes with symbols + i.

  Baseline: ln(symbols).

  Args:
    rng: source of random numbers.
    batch: number of sequences.
    length: number of time steps, at least 3.
    symbols: number of bracket types, k of Dyck-k.
    items: greatest depth, m of Dyck-(k, m).

  Reference:
    Suzgun et al., "Memory-augmented recurrent neural networks can learn
    generalized Dyck languages", 2019; with bounded depth: Hewitt et al., "RNNs
    can generate bounded hierarchical languages with optimal memory", 2020.
  """
  opens = rng.random((batch, length)) < 0.5
  types = rng.integers(0, symbols, (batch, length), np.int32)
  stack = np.zeros((batch, items), np.int32)
  depth, rows = np.zeros(batch, np.int64), np.arange(batch)
  inputs, targets = _blanks(batch, length), _blanks(batch, length)
  weights = np.zeros((batch, length), np.float32)
  for t in range(length):
    up = (opens[:, t] | (depth == 0)) & (depth < items)
    closing = stack[rows, depth - 1]
    stack[rows[up], depth[up]] = types[up, t]
    inputs[:, t] = np.where(up, types[:, t], symbols + closing)
    depth += np.where(up, 1, -1)
    targets[:, t] = stack[rows, depth - 1]
    weights[:, t] = ~up & (depth > 0)
  return {
    "inputs": inputs,
    "targets": np.where(weights > 0, targets, 0),
    "weights": weights,
  }


def reverse(
  rng: Generator, batch: int, length: int, *, symbols: int = 8
) -> Batch:
  """Draws sequences to reproduce in reversed order.

  The inputs are `length` symbols and then `length` blanks, during which the
  targets are the symbols from the last to the first. Tokens: 0 is the blank, 1
  to `symbols` are symbols.

  Baseline: ln(symbols).

  Args:
    rng: source of random numbers.
    batch: number of sequences.
    length: number of symbols to reproduce.
    symbols: number of different symbols.

  Reference:
    Grefenstette et al., "Learning to transduce with unbounded memory", 2015.
  """
  drawn = _symbols(rng, (batch, length), symbols)
  inputs = np.concatenate([drawn, _blanks(batch, length)], axis=1)
  return _scored_at_end(inputs, drawn[:, ::-1] - 1)


def sort(
  rng: Generator, batch: int, length: int, *, symbols: int = 16
) -> Batch:
  """Draws sequences to reproduce in ascending order.

  The inputs are those of `reverse`, and the targets are the symbols sorted.

  Baseline: the mean entropy of the order statistics of `length` uniform
  symbols. The i-th smallest is at most s with the probability that at least i
  of them are: sum over j >= i of binomial(length, j) p^j (1 - p)^(length - j)
  with p = s / symbols.

  Args:
    rng: source of random numbers.
    batch: number of sequences.
    length: number of symbols to sort.
    symbols: number of different symbols.

  Reference:
    Graves, Wayne & Danihelka, "Neural Turing machines", 2014.
  """
  drawn = _symbols(rng, (batch, length), symbols)
  inputs = np.concatenate([drawn, _blanks(batch, length)], axis=1)
  return _scored_at_end(inputs, np.sort(drawn, axis=1) - 1)


def entropy_of_sorted(length: int, symbols: int) -> float:
  """The mean entropy in nats of order statistics of uniform symbols."""
  count = np.arange(length + 1)
  ways = np.array([math.lgamma(length + 1)] * (length + 1)) - np.array(
    [math.lgamma(j + 1) + math.lgamma(length - j + 1) for j in count]
  )
  p = np.arange(1, symbols)[:, None] / symbols
  exactly = np.exp(ways + count * np.log(p) + (length - count) * np.log1p(-p))
  at_least = np.cumsum(exactly[:, ::-1], axis=1)[:, ::-1][:, 1:]
  below = np.zeros((1, length))
  share = np.diff(np.concatenate([below, at_least, below + 1]), axis=0)
  share = share[share > 1e-300]
  return float(-(share * np.log(share)).sum() / length)


@dataclasses.dataclass(frozen=True)
class SyntheticTask:
  """A row of `TASKS`; each function takes the options of `draw` by name.

  Attributes:
    draw: `draw(rng, batch, length, **options) -> batch`.
    length: default length of training.
    vocab_size: number of input tokens; 0 for inputs of real numbers.
    classes: number of classes of the targets; 0 for targets that are numbers.
    baseline: `baseline(length, **options)`, the loss without memory.
    least: least length.
    channels: number of channels of real inputs.
    fixed: options that the task sets and a user cannot.
  """

  draw: Callable[..., Batch]
  length: int
  vocab_size: Callable[..., int]
  classes: Callable[..., int]
  baseline: Callable[..., float]
  least: Callable[..., int] = lambda **_: 1
  channels: int = 0
  fixed: dict[str, Any] = dataclasses.field(default_factory=dict)

  def options(self) -> dict[str, int]:
    """The options that a user may set, with their defaults."""
    return {
      name: parameter.default
      for name, parameter in inspect.signature(self.draw).parameters.items()
      if parameter.kind is parameter.KEYWORD_ONLY and name not in self.fixed
    }

  def bind(self, length: int, **options: int) -> "BoundTask":
    """Sets the options.

    Args:
      length: length of training; the longest of the lengths to draw may exceed
        it.
      **options: options of `draw` that differ from the defaults.

    Raises:
      ValueError: if an option is unknown or out of range.
    """
    known = self.options()
    for name, value in options.items():
      if name not in known:
        raise ValueError(f"{name} is no option; there are {[*known]}")
      check_least(name, value, 2 if name == "symbols" else 1)
    every = {**known, **options}
    if self.draw is mqar and every["items"] > every["symbols"]:
      raise ValueError(
        f"items must be at most the {every['symbols']} symbols, got"
        f" {every['items']}"
      )
    name = next(name for name, task in TASKS.items() if task is self)
    bound = BoundTask(name, self, {**every, **self.fixed})
    check_least("length", length, bound.least)
    check_least("vocab_size", bound.vocab_size, 0)  # also checks `symbols`
    return bound


@dataclasses.dataclass(frozen=True)
class BoundTask:
  """A task with its options.

  Attributes:
    name: name of the task.
    task: the row of `TASKS`.
    options: all options of `task.draw`.
  """

  name: str
  task: SyntheticTask
  options: dict[str, Any]

  @property
  def least(self) -> int:
    """The least length."""
    return self.task.least(**self.options)

  @property
  def vocab_size(self) -> int:
    """Number of input tokens; 0 for inputs of real numbers."""
    return self.task.vocab_size(**self.options)

  @property
  def classes(self) -> int:
    """Number of classes of the targets; 0 for targets that are numbers."""
    return self.task.classes(**self.options)

  def draw(self, rng: Generator, batch: int, length: int) -> Batch:
    """Draws a batch."""
    return self.task.draw(rng, batch, length, **self.options)

  def baseline(self, length: int) -> float:
    """The loss without memory."""
    return float(self.task.baseline(length, **self.options))


def _log_symbols(length, *, symbols, **_):
  del length
  return math.log(symbols)


def _group_task(group, length):
  size = len(permutations(group))
  return SyntheticTask(
    word_problem,
    length,
    vocab_size=lambda symbols, **_: len(generators(group, symbols)),
    classes=lambda **_: size,
    baseline=lambda length, symbols, **_: entropy_of_products(
      length, group, symbols
    ),
    fixed={"group": group},
  )


def _symbol_task(draw, length, tokens, least=lambda **_: 1, baseline=None):
  """A task whose classes are its symbols."""
  return SyntheticTask(
    draw,
    length,
    vocab_size=lambda symbols, **_: tokens(symbols),
    classes=lambda symbols, **_: symbols,
    baseline=baseline or _log_symbols,
    least=least,
  )


TASKS: dict[str, SyntheticTask] = {
  "copy": _symbol_task(copy, 100, lambda s: s + 2),
  "selective_copy": _symbol_task(
    selective_copy, 100, lambda s: s + 2, lambda items, **_: items
  ),
  "adding": SyntheticTask(
    adding,
    100,
    vocab_size=lambda **_: 0,
    classes=lambda **_: 0,
    baseline=lambda *_: 1 / 6,
    least=lambda **_: 2,
    channels=2,
  ),
  "parity": SyntheticTask(
    parity,
    40,
    vocab_size=lambda **_: 2,
    classes=lambda **_: 2,
    baseline=lambda *_: math.log(2),
  ),
  "mqar": _symbol_task(
    mqar, 64, lambda s: 2 * s + 1, lambda items, **_: 3 * items
  ),
  "induction": _symbol_task(induction, 64, lambda s: s + 1, lambda **_: 3),
  "s5": _group_task("s5", 32),
  "a5": _group_task("a5", 32),
  "dyck": _symbol_task(dyck, 64, lambda s: 2 * s, lambda **_: 3),
  "reverse": _symbol_task(reverse, 20, lambda s: s + 1),
  "sort": _symbol_task(
    sort,
    16,
    lambda s: s + 1,
    baseline=lambda length, symbols: entropy_of_sorted(length, symbols),
  ),
}


def _symbols(rng, shape, symbols):
  """Symbols 1, 2, ..., `symbols`, uniform."""
  return rng.integers(1, symbols + 1, shape, np.int32)


def _blanks(batch, length):
  return np.full((batch, length), BLANK, np.int32)


def _distinct(rng, batch, number, chosen, likely=None):
  """Draws [batch, chosen] distinct integers below `number` in each row.

  `likely` [number] are weights to draw by, one after another. With exponential
  arrival times of these rates, the first arrivals have that distribution.
  """
  times = rng.exponential(size=(batch, number))
  if likely is not None:
    times /= likely
  return np.argsort(times, axis=1)[:, :chosen]


def _scored_everywhere(inputs, targets):
  return {
    "inputs": inputs,
    "targets": targets.astype(np.int32),
    "weights": np.ones(inputs.shape[:2], np.float32),
  }


def _scored_at_end(inputs, targets):
  """Pads targets [batch, scored] at the start, with zeros of weight 0."""
  spare = [(0, 0), (inputs.shape[1] - targets.shape[1], 0)]
  return {
    "inputs": inputs,
    "targets": np.pad(targets, spare),
    "weights": np.pad(np.ones(targets.shape, np.float32), spare),
  }
