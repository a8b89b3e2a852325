"""Targets of synthetic tasks against plain loops, baselines against counts."""

import itertools
import math

import numpy as np
import pytest

from recurrent.data import synthetic
from recurrent.data.synthetic import TASKS

LENGTHS = {name: max(9, min(task.length, 24)) for name, task in TASKS.items()}
LENGTHS["mqar"] = 20


def draw(name, batch, seed=0, **options):
  bound = TASKS[name].bind(LENGTHS[name], **options)
  rng = np.random.default_rng(seed)
  return bound, bound.draw(rng, batch, LENGTHS[name])


def copied(row):
  return [x - 1 for x in row if 1 <= x <= 8]


def added(row):
  return [sum(number for number, marked in row if marked)]


def parities(row):
  return [sum(row[: t + 1]) % 2 for t in range(len(row))]


def recalled(row):
  pairs = dict(zip(row[0:8:2], row[1:8:2], strict=True))
  return [pairs[x] - 65 for x in row[8:] if x]


def induced(row):
  return [row[row.index(16) + 1]]


def products(group):
  elements = [tuple(row) for row in synthetic.permutations(group)]

  def of(row):
    product, found = tuple(range(5)), []
    for index in row:
      product = tuple(elements[index][x] for x in product)
      found.append(elements.index(product))
    return found

  return of


def innermost(row):
  stack, found = [], []
  for x in row:
    if x < 2:
      stack.append(x)
      continue
    assert stack.pop() == x - 2  # well nested
    found += stack[-1:]
  return found


ORACLES = {
  "copy": copied,
  "selective_copy": lambda row: copied(row[:-10]),
  "adding": added,
  "parity": parities,
  "mqar": recalled,
  "induction": induced,
  "s5": products("s5"),
  "a5": products("a5"),
  "dyck": innermost,
  "reverse": lambda row: copied(row)[::-1],
  "sort": lambda row: sorted(x - 1 for x in row if x),
}


@pytest.mark.parametrize("name", TASKS)
def test_targets_are_those_of_a_plain_loop(name):
  _, batch = draw(name, 20)
  assert {"inputs", "targets", "weights"} == batch.keys()
  for i in range(20):
    scored = batch["weights"][i] > 0
    targets = batch["targets"][i][scored]
    oracle = ORACLES[name](batch["inputs"][i].tolist())
    np.testing.assert_allclose(targets, oracle, rtol=1e-6)
    assert not batch["targets"][i][~scored].any()


@pytest.mark.parametrize("name", TASKS)
def test_arrays_have_the_sizes_that_the_task_states(name):
  bound, batch = draw(name, 50)
  inputs, targets = batch["inputs"], batch["targets"]
  assert targets.shape == batch["weights"].shape == inputs.shape[:2]
  assert set(np.unique(batch["weights"])) <= {0.0, 1.0}
  if bound.classes:
    assert targets.min() == 0
    assert targets.max() == bound.classes - 1
    assert inputs.dtype == targets.dtype == np.int32
  else:
    assert inputs.dtype == targets.dtype == np.float32
  if bound.vocab_size:
    assert inputs.min() >= 0
    assert inputs.max() == bound.vocab_size - 1
  else:
    assert inputs.shape[2] == bound.task.channels


@pytest.mark.parametrize("name", TASKS)
def test_a_batch_is_a_function_of_the_seed(name):
  one, same, other = (draw(name, 3, seed)[1] for seed in (5, 5, 6))
  assert all((one[key] == same[key]).all() for key in one)
  assert (one["inputs"] != other["inputs"]).any()


@pytest.mark.parametrize("name", TASKS)
def test_the_baseline_is_the_entropy_of_the_targets(name):
  # Few symbols, so that 20,000 sequences estimate all frequencies well.
  few = {"symbols": 4} if "symbols" in TASKS[name].options() else {}
  bound, batch = draw(name, 20_000, **few)
  weights, targets = batch["weights"], batch["targets"]
  total = 0.0
  for t in range(weights.shape[1]):
    values = targets[weights[:, t] > 0, t]
    if not bound.classes:
      total += len(values) and values.var() * len(values)
    elif len(values):
      share = np.unique(values, return_counts=True)[1] / len(values)
      total -= len(values) * (share * np.log(share)).sum()
  found = total / weights.sum()
  # An estimate of an entropy is too small by (classes - 1) / (2 samples).
  assert bound.baseline(LENGTHS[name]) == pytest.approx(found, rel=0.02)


def test_the_baseline_of_sort_is_that_of_all_sequences():
  length, symbols = 3, 4
  every = np.sort(list(itertools.product(range(symbols), repeat=length)), 1)
  found = 0.0
  for column in every.T:
    share = np.bincount(column) / len(every)
    found -= (share[share > 0] * np.log(share[share > 0])).sum() / length
  assert synthetic.entropy_of_sorted(length, symbols) == pytest.approx(found)
  assert math.isfinite(synthetic.entropy_of_sorted(500, 16))


@pytest.mark.parametrize(("group", "size"), [("s5", 120), ("a5", 60)])
def test_the_multiplication_table_is_that_of_a_group(group, size):
  table = synthetic.multiplication_table(group)
  assert table.shape == (size, size)
  every = np.arange(size)
  assert (table[0] == every).all()
  assert (table[:, 0] == every).all()
  assert (np.sort(table, axis=0) == every[:, None]).all()
  assert (np.sort(table, axis=1) == every).all()
  a, b, c = np.random.default_rng(0).integers(0, size, (3, 500))
  assert (table[table[a, b], c] == table[a, table[b, c]]).all()


@pytest.mark.parametrize("group", ["s5", "a5"])
def test_two_elements_generate_the_group(group):
  table = synthetic.multiplication_table(group)
  found = {0}
  for _ in range(len(table)):
    found |= {
      int(table[a, b]) for a in synthetic.generators(group, 2) for b in found
    }
  assert len(found) == len(table)
  assert synthetic.entropy_of_products(9, group, 0) == pytest.approx(
    math.log(len(table))
  )


def test_brackets_stay_within_their_depth():
  bound = TASKS["dyck"].bind(64, items=3)
  inputs = bound.draw(np.random.default_rng(0), 50, 64)["inputs"]
  depth = np.cumsum(np.where(inputs < 2, 1, -1), axis=1)
  assert (depth.min(), depth.max()) == (0, 3)


def test_queries_come_soon_and_may_come_late():
  bound = TASKS["mqar"].bind(64)
  weights = bound.draw(np.random.default_rng(0), 500, 64)["weights"]
  share = weights.mean(axis=0)[8:]
  assert (weights.sum(axis=1) == 4).all()
  assert share[0] > 5 * share[-5:].mean() > 0


@pytest.mark.parametrize(
  ("task", "length", "options", "words"),
  [
    ("parity", 5, {"symbols": 3}, "symbols is no option"),
    ("copy", 5, {"symbols": 1}, "symbols must be"),
    ("copy", 5, {"items": 0}, "items must be"),
    ("copy", 0, {}, "length must be"),
    ("mqar", 11, {}, "length must be 12 or more"),
    ("mqar", 64, {"items": 9, "symbols": 8}, "items must be at most the 8"),
    ("selective_copy", 9, {}, "length must be 10 or more"),
    ("s5", 8, {"group": 3}, "group is no option"),
    ("a5", 8, {"symbols": 61}, "symbols must be at most the 60"),
  ],
)
def test_options_that_do_not_fit_are_refused(task, length, options, words):
  with pytest.raises(ValueError, match=words):
    TASKS[task].bind(length, **options)
