"""Evaluation: scores all batches of a split, and collects predictions."""

import collections
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from recurrent import sharding
from recurrent.metrics import Mean
from recurrent.training.step import Loss
from recurrent.types import Array, Carry, PyTree

# Batches that may be dispatched and not yet finished.
IN_FLIGHT = 4

# `predict(model, batch) -> {name: array [batch, ...]}`, a pure function.
Predict = Callable[[Any, Any], Mapping[str, Array]]


class Scores(NamedTuple):
  """What an evaluation has found.

  Attributes:
    means: the mean of each metric of the loss.
    predictions: for each name that `predict` returns, one array per example, in
      the order of the batches' `index`, or without one in the order of the
      rows. Empty without `predict`.
  """

  means: dict[str, float]
  predictions: dict[str, list[np.ndarray]]


def make_evaluator(
  graphdef: nnx.GraphDef,
  loss: Loss | None,
  mesh: Mesh,
  *,
  make_carry: Callable[[Any, int], Carry] = lambda model, rows: (),
  predict: Predict | None = None,
) -> Callable[[PyTree, Iterable[Any], Callable[[], bool]], Scores | None]:
  """Makes a function that scores all batches of a split.

  The metrics are those of the loss, without noise (`key` is None). Sums are
  divided once, at the end, so the results do not depend on how the examples are
  divided into batches or over devices.

  Args:
    graphdef: graph definition of the model in evaluation mode.
    loss: `loss(model, carry, batch, key) -> (loss, (carry, metrics))`; None: no
      metrics are computed, as for examples without labels.
    mesh: from `recurrent.sharding`.
    make_carry: `make_carry(model, rows) -> carry`, the initial carry; each
      batch begins with the carry after the batch before.
    predict: `predict(model, batch) -> arrays [batch, ...]` by name.

  Returns:
    `evaluate(params, batches, interrupted) -> scores`. `batches` are dicts of
    NumPy arrays. Where the devices do not divide a batch, it is padded with
    rows of zeros, so it must have `weights` or a `mask` then. `interrupted()`
    is called before each batch; if it is True the result is None.
  """
  replicated = sharding.replicated(mesh)
  devices = mesh.shape[sharding.DATA]
  where = sharding.split_batch(mesh)

  @functools.partial(jax.jit, static_argnums=1)
  def start(params, rows):
    return make_carry(nnx.merge(graphdef, params), rows)

  def measure(params, carry, batch):
    model = nnx.merge(graphdef, params)
    metrics = {}
    if loss is not None:
      _, (carry, metrics) = loss(model, carry, batch, None)
    metrics = {name: mean.over_devices() for name, mean in metrics.items()}
    return metrics, carry, dict(predict(model, batch)) if predict else {}

  measure = sharding.on_own_rows(
    measure,
    mesh,
    (sharding.WHOLE, sharding.ROWS, sharding.ROWS),
    (sharding.WHOLE, sharding.ROWS, sharding.ROWS),
  )

  @jax.jit
  def step(params, carry, batch):
    metrics, carry, rows = measure(params, carry, batch)
    return carry, metrics, jax.lax.with_sharding_constraint(rows, replicated)

  def evaluate(params, batches, interrupted):
    carry, sums = None, None
    in_flight = collections.deque()
    found, places = {}, []

    def collect():
      for name, rows in jax.device_get(in_flight.popleft()[1]).items():
        found.setdefault(name, []).extend(rows)

    for batch in batches:
      if interrupted():
        return None
      places.append(_places(batch, sum(map(len, places)), devices))
      batch = _padded(batch, devices)
      if sums is None:
        carry = start(params, _count(batch))
      carry, metrics, rows = step(params, carry, sharding.put(batch, where))
      sums = metrics if sums is None else _merge(sums, metrics)
      in_flight.append((sums, rows))
      # XLA's CPU devices share one thread pool. A long queue of collectives can
      # fill it with threads that wait for each other: a deadlock.
      if len(in_flight) > IN_FLIGHT:
        jax.block_until_ready(in_flight[0])
        collect()
    while in_flight:
      collect()
    means = {k: v.compute() for k, v in jax.device_get(sums or {}).items()}
    return Scores(means, _in_order(found, places))

  return evaluate


def _count(batch) -> int:
  return len(jax.tree.leaves(batch)[0])


def _padded(batch, divisor: int):
  """Appends rows of zeros, up to a multiple of the number of devices."""
  spare = -_count(batch) % divisor
  if not spare:
    return batch
  if not {"weights", "mask"} & batch.keys():
    raise ValueError(
      f"a batch of {_count(batch)} rows must have weights or a mask, since"
      f" {divisor} devices do not divide it; it has {sorted(batch)}"
    )
  return {
    key: np.pad(array, [(0, spare)] + [(0, 0)] * (np.ndim(array) - 1))
    for key, array in batch.items()
  }


def _places(batch, done: int, divisor: int) -> np.ndarray:
  """The index of the example of each row after padding; -1 if it has none."""
  count = _count(batch)
  places = batch.get("index", done + np.arange(count))
  return np.pad(places, (0, -count % divisor), constant_values=-1)


def _in_order(found, places):
  """Sorts the predictions by their place, and drops those of padding rows."""
  if not found:
    return {}
  joined = np.concatenate(places)
  order = np.argsort(joined, kind="stable")
  order = order[joined[order] >= 0]
  return {name: [rows[i] for i in order] for name, rows in found.items()}


@jax.jit
def _merge(a: dict[str, Mean], b: dict[str, Mean]) -> dict[str, Mean]:
  return {name: a[name].merge(b[name]) for name in a}
