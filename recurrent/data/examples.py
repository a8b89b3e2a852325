"""Batches of separate examples of any lengths: for training, and for scoring.

Both are pure functions of an index, so there is no position to save: a resumed
run asks for the next step. Both give global batches; devices share them later.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from recurrent.data.bptt import check_least
from recurrent.errors import DataError

Batch = dict[str, np.ndarray]

# JAX holds numbers in 32 bits unless it is told otherwise.
_NARROW = {"int64": "int32", "uint64": "uint32", "float64": "float32"}


@dataclasses.dataclass(frozen=True, eq=False)
class _Batches:
  """What training and scoring share: buckets, and the making of a batch."""

  examples: Sequence[Mapping[str, np.ndarray]]
  batch_size: int
  _: dataclasses.KW_ONLY
  buckets: int | Sequence[int] | Sequence[Sequence[int]] = 8
  masks: Mapping[str, str] = dataclasses.field(
    default_factory=lambda: {"inputs": "mask"}
  )
  lengths: Mapping[str, np.ndarray] | None = None

  def __post_init__(self):
    check_least("batch_size", self.batch_size, 1)
    if not self.masks:
      raise ValueError("masks must name the mask of a key, got none")
    if not len(self.examples):
      raise DataError("there are no examples", "give at least one")
    first = self.examples[0]
    made = {"weights", "index", *self.masks.values()}
    if taken := made & first.keys():
      raise ValueError(
        f"examples must leave the key {min(taken)!r} to the batch; rename it"
      )
    self._measure(0, first)
    _ = self._sorted  # checks all lengths and buckets before the first step

  @property
  def bounds(self) -> tuple[tuple[int, ...], ...]:
    """The padded lengths of each bucket, one a mask; the smallest first."""
    return tuple(tuple(map(int, bound)) for bound in self._sorted[0])

  @property
  def batches_per_epoch(self) -> int:
    """Batches that hold every example once."""
    return -(-len(self.examples) // self.batch_size)

  @functools.cached_property
  def _names(self) -> list[str]:
    """The masks, each once."""
    return list(dict.fromkeys(self.masks.values()))

  @functools.cached_property
  def _lengths(self) -> np.ndarray:
    """[N, masks]: the time steps of every example."""
    count, given = len(self.examples), self.lengths
    if given is None:
      rows = (self._measure(i, self.examples[i]) for i in range(count))
      return np.array(list(rows), np.int64)
    if set(given) != set(self._names):
      raise ValueError(
        f"lengths must be those of {self._names}, got {[*given]}"
      )
    columns = [np.asarray(given[name]) for name in self._names]
    for name, column in zip(self._names, columns, strict=True):
      if column.shape != (count,) or column.dtype.kind not in "iu":
        raise ValueError(
          f"lengths[{name!r}] must be [{count}] integers, got {column.dtype}"
          f" {column.shape}"
        )
      check_least(f"lengths[{name!r}]", int(column.min()), 0)
    return np.stack(columns, axis=1).astype(np.int64)

  @functools.cached_property
  def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
    """Bounds [K, masks] of the buckets in use, and each example's bucket."""
    lengths = self._lengths
    if isinstance(self.buckets, int | np.integer):
      check_least("buckets", int(self.buckets), 1)
      bounds = _quantiles(lengths, int(self.buckets))
    else:
      bounds = _checked_bounds(self.buckets, len(self._names))
    fits = np.all(lengths[:, None, :] <= bounds[None, :, :], axis=2)
    fits_one = np.any(fits, axis=1)
    if not np.all(fits_one):
      longest = int(np.argmin(fits_one))
      raise DataError(
        f"example {longest} has {_join(lengths[longest])} time steps, and the"
        f" largest bucket is for {_join(bounds[-1])}",
        f"cut it, or give a bucket of {_join(lengths.max(axis=0))}",
      )
    used, bucket = np.unique(np.argmax(fits, axis=1), return_inverse=True)
    return bounds[used], bucket

  def _cut(self, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Examples in an order, as rows of batches [M, B], and each one's bucket.

    What does not fill a batch of its bucket goes on into the next larger one.
    So a single batch has rows to spare, -1: the last.
    """
    bounds, bucket = self._sorted
    size, spare = self.batch_size, -len(order) % self.batch_size
    rows, buckets = [], []
    left = order[:0]
    for number in range(len(bounds)):
      left = np.concatenate([left, order[bucket[order] == number]])
      if number == len(bounds) - 1:
        left = np.concatenate([left, np.full(spare, -1)])
      whole = len(left) // size
      rows.append(left[: whole * size].reshape(whole, size))
      buckets.append(np.full(whole, number))
      left = left[whole * size :]
    return np.concatenate(rows), np.concatenate(buckets)

  def _make(self, rows: np.ndarray, bucket: int) -> Batch:
    """The examples `rows`, [B] with -1 for none, padded to their bucket."""
    real = rows >= 0
    read = {int(row): self.examples[int(row)] for row in rows[real]}
    for row, example in read.items():
      self._check(row, example)
    padded = dict(zip(self._names, self._sorted[0][bucket], strict=True))
    batch = {}
    for key in self._layout:
      time = padded[self.masks[key]] if key in self.masks else None
      batch[key] = self._stack(key, rows, read, time)
    for name, column in zip(self._names, self._lengths.T, strict=True):
      ends = np.where(real, column[rows], 0)
      batch[name] = np.arange(padded[name]) < ends[:, None]
    batch["weights"] = real.astype(np.float32)
    batch["index"] = rows.astype(np.int32)
    return batch

  def _stack(self, key, rows, read, time):
    """[B, time, ...] or, without a time, [B, ...]; zeros where nothing is."""
    dtype, shape = self._layout[key]
    shape = shape if time is None else (time, *shape)
    stacked = np.zeros((len(rows), *shape), dtype)
    for place, row in enumerate(rows):
      if row < 0:
        continue
      array = np.asarray(read[int(row)][key])
      here = place if time is None else (place, slice(len(array)))
      stacked[here] = array
      if array.dtype.kind in "iu" and (stacked[here] != array).any():
        raise DataError(
          f"{key!r} of example {row} has numbers beyond {stacked.dtype}",
          "scale them, or count from zero",
        )
    return stacked

  @functools.cached_property
  def _layout(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Of each key the dtype in a batch, and the shape but for the time."""
    layout = {}
    for key, (dtype, shape) in self._first.items():
      if dtype.kind not in "biuf" and dtype.name != "bfloat16":
        raise DataError(
          f"{key!r} of example 0 is {dtype}, which is no number",
          "leave it out, and find it again by the batch's `index`",
        )
      layout[key] = np.dtype(_NARROW.get(dtype.name, dtype)), shape
    return layout

  def _describe(self, example):
    arrays = {key: np.asarray(value) for key, value in example.items()}
    return {
      key: (x.dtype, x.shape[1:] if key in self.masks else x.shape)
      for key, x in arrays.items()
    }

  @functools.cached_property
  def _first(self):
    return self._describe(self.examples[0])

  def _check(self, row, example):
    """Raises DataError unless an example is like the first, and as long."""
    if example.keys() != self._first.keys():
      raise DataError(
        f"example {row} has the keys {sorted(example)}, and example 0"
        f" {sorted(self._first)}",
        "give all examples the same keys",
      )
    if (got := self._measure(row, example)) != tuple(self._lengths[row]):
      raise DataError(
        f"example {row} has {_join(got)} time steps, and its lengths say"
        f" {_join(self._lengths[row])}",
        "give the lengths that the examples have",
      )
    for key, found in self._describe(example).items():
      if found != self._first[key]:
        raise DataError(
          f"{key!r} of example {row} is {_say(found)}, and of example 0"
          f" {_say(self._first[key])}",
          "give all examples the same widths and dtypes",
        )

  def _measure(self, row, example) -> tuple[int, ...]:
    """The time steps of an example, one number a mask."""
    found: dict[str, tuple[str, int]] = {}
    for key, name in self.masks.items():
      if key not in example:
        raise DataError(
          f"example {row} has no {key!r}; it has {sorted(example)}",
          "name keys that the examples have, each with its mask",
        )
      shape = np.shape(example[key])
      if not shape:
        raise DataError(
          f"{key!r} of example {row} is a single number, not [time, ...]",
          f"leave {key!r} out of `masks`",
        )
      other, length = found.setdefault(name, (key, shape[0]))
      if length != shape[0]:
        raise DataError(
          f"example {row} has {length} time steps of {other!r} and {shape[0]}"
          f" of {key!r}, which share {name!r}",
          "cut them to one length, or give each a mask of its own",
        )
    return tuple(found[name][1] for name in self._names)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ExampleBatches(_Batches):
  """Batches of whole examples for training, without end.

  An epoch holds every example exactly once, in an order drawn from (seed,
  epoch). Examples of like lengths are batched together: every batch is of one
  bucket, padded to the bucket's lengths, and has `batch_size` rows, so there
  are as many shapes to compile as buckets. What does not fill a batch of its
  bucket at the end of an epoch goes into one of the next larger bucket; so an
  epoch has ceil(N / batch_size) batches, and only one of them, if any, has
  rows to spare. Their weight is 0 and their masks are False.

  Of the examples only the lengths are held in memory; the rows of a batch are
  read when it is asked for.

  Example:
    >>> import numpy as np
    >>> from recurrent.data import ExampleBatches
    >>> texts = [[5, 3, 8], [2], [7, 7], [4, 1, 9, 6, 2]]
    >>> examples = [{"inputs": np.array(text), "label": 1} for text in texts]
    >>> batches = ExampleBatches(examples, batch_size=2, buckets=[3, 5])
    >>> sorted(batches[0])
    ['index', 'inputs', 'label', 'mask', 'weights']
    >>> sorted(batches[step]["inputs"].shape for step in range(2))
    [(2, 3), (2, 5)]

    A translation has two lengths, and two masks:

    >>> pairs = [{"source": np.ones(3), "target": np.ones(2)}] * 4
    >>> masks = {"source": "source_mask", "target": "target_mask"}
    >>> batches = ExampleBatches(pairs, batch_size=2, masks=masks)
    >>> batches[7]["target_mask"].shape
    (2, 2)

  Args:
    examples: a sequence of dicts of arrays or numbers, all with the same keys,
      dtypes and widths.
    batch_size: rows B of every batch.
    buckets: how many, at most; their bounds are then quantiles of the lengths.
      Or the bounds, ascending: padded lengths in time steps; with several
      masks, tuples of one a mask, in the order in which `masks` names them.
    masks: the mask of each key that is ragged along its first axis, time. Keys
      with the same mask are of one length in every example. Other keys are
      stacked as they are.
    lengths: of each mask the [N] time steps of the examples; None: they are
      counted when the batches are made, by reading every example once.
    seed: of the orders, 0 or more.

  Raises:
    ValueError: if an argument is out of range, or does not fit the others.
    DataError: if there are no examples, one lacks a key, or one is longer than
      every bucket; from `batches[step]`, if one is not like the first.

  Reference:
    Buckets: Sutskever, Vinyals & Le, "Sequence to sequence learning with neural
    networks", 2014.
  """

  seed: int = 0

  def __post_init__(self):
    super().__post_init__()
    check_least("seed", self.seed, 0)

  def __getitem__(self, step: int) -> Batch:
    """The batch of training step `step`, the first being 0.

    Args:
      step: 0 or more, without end.

    Returns:
      Each key of the examples, [B, time, ...] padded with zeros or [B, ...],
      with numbers of 64 bits in 32; each mask, bool [B, time], True where a
      time step is real; `weights`, float32 [B], 1 for an example and 0 for a
      row to spare; `index`, int32 [B], the example's place in the data, -1 for
      a row to spare.
    """
    return self._make(*self._rows(step))

  def units(self, step: int) -> int:
    """Real time steps in the batch of a step, over all masks."""
    rows, _ = self._rows(step)
    return int(self._lengths[rows[rows >= 0]].sum())

  def _rows(self, step) -> tuple[np.ndarray, int]:
    check_least("step", step, 0)
    epoch, place = divmod(step, self.batches_per_epoch)
    rows, buckets = self._epoch(epoch)
    return rows[place], buckets[place]

  @functools.cached_property
  def _epoch(self) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """The batches of an epoch; those of the last two epochs are kept."""

    @functools.lru_cache(maxsize=2)
    def draw(epoch):
      random = np.random.default_rng((self.seed, epoch))
      rows, buckets = self._cut(random.permutation(len(self.examples)))
      order = random.permutation(len(rows))
      return rows[order], buckets[order]

    return draw


@dataclasses.dataclass(frozen=True, eq=False)
class EvalBatches(_Batches):
  """Every example exactly once, for scoring; arguments of `ExampleBatches`.

  Batches go from the smallest bucket to the largest, and through each in the
  order of the examples; with `buckets=1` the order is the examples' own.
  `restore` undoes it. The last batch may have rows to spare, of weight 0. So
  sums over weights are over all examples, on any number of devices.

  Example:
    >>> import numpy as np
    >>> from recurrent.data import EvalBatches
    >>> examples = [{"inputs": np.ones(n)} for n in (4, 1, 3, 1, 4)]
    >>> batches = EvalBatches(examples, batch_size=2, buckets=2)
    >>> [batch["index"].tolist() for batch in batches]
    [[1, 3], [0, 2], [4, -1]]
    >>> batches.restore(batch["inputs"].sum(axis=1) for batch in batches)
    array([4., 1., 3., 1., 4.], dtype=float32)

  Args:
    examples: see `ExampleBatches`, like all that follows.
    batch_size: rows B of every batch.
    buckets: how many, or their bounds.
    masks: the mask of each ragged key.
    lengths: of each mask the time steps of the examples.

  Raises:
    ValueError: as `ExampleBatches` does, like the following.
    DataError: if the examples do not fit each other or the buckets.
  """

  def __len__(self) -> int:
    return self.batches_per_epoch

  def __getitem__(self, number: int) -> Batch:
    """Batch number `number`.

    Args:
      number: in [0, len).

    Returns:
      What `ExampleBatches` returns.

    Raises:
      IndexError: after the last batch.
    """
    if not 0 <= number < len(self):
      raise IndexError(f"batch {number} of {len(self)}")
    rows, buckets = self._order
    return self._make(rows[number], buckets[number])

  def restore(self, results: Iterable[np.ndarray]) -> np.ndarray:
    """Results of all batches, in the order of the examples.

    Args:
      results: one array [B, ...] a batch, in the order of the batches.

    Returns:
      [N, ...], without the rows to spare.

    Raises:
      ValueError: if there are not as many rows as the batches have.
    """
    rows = self._order[0].reshape(-1)
    joined = np.concatenate([np.asarray(result) for result in results])
    if len(joined) != len(rows):
      raise ValueError(
        f"results must have {len(rows)} rows over {len(self)} batches, got"
        f" {len(joined)}"
      )
    restored = np.empty((len(self.examples), *joined.shape[1:]), joined.dtype)
    restored[rows[rows >= 0]] = joined[rows >= 0]
    return restored

  @functools.cached_property
  def _order(self):
    return self._cut(np.arange(len(self.examples)))


def _quantiles(lengths: np.ndarray, buckets: int) -> np.ndarray:
  """Bounds that part the examples, ordered by size, in equal shares."""
  order = np.argsort(lengths.sum(axis=1), kind="stable")
  ends = np.arange(1, buckets + 1) * len(lengths) // buckets
  most = np.maximum.accumulate(lengths[order], axis=0)
  bounds = most[ends[ends > 0] - 1]
  # A batch has at least one time step, even of examples that have none.
  return np.unique(np.maximum(bounds, 1), axis=0)


def _checked_bounds(buckets, masks: int) -> np.ndarray:
  rows = [np.atleast_1d(bound) for bound in buckets]
  bounds = np.array(rows if len({len(row) for row in rows}) == 1 else [])
  if (
    bounds.shape[1:] != (masks,)
    or bounds.dtype.kind not in "iu"
    or bounds.min() < 1
    or (np.diff(bounds, axis=0) < 0).any()
  ):
    raise ValueError(
      "buckets must be a number of them, or ascending lengths of 1 or more,"
      f" each a tuple of {masks} if there are several masks; got {buckets!r}"
    )
  return bounds


def _join(lengths) -> str:
  return " and ".join(map(str, lengths))


def _say(found) -> str:
  dtype, shape = found
  return f"{dtype} {shape}"
