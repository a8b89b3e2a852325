"""Batches of separate examples of any lengths: for training, and for scoring.

Both classes are pure functions of an index, so there is no position to save: a
resumed run asks for the batch of its next step. Both return global batches,
which are split over devices later.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from recurrent.data.bptt import check_least
from recurrent.errors import DataError

Batch = dict[str, np.ndarray]

# By default JAX has no 64-bit dtypes (`jax_enable_x64` is off).
_NARROW = {"int64": "int32", "uint64": "uint32", "float64": "float32"}


@dataclasses.dataclass(frozen=True, eq=False)
class _Batches:
  """Base of the batches: sorts examples into buckets and pads a batch."""

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
    """The padded lengths of each bucket, one per mask; smallest first."""
    return tuple(tuple(map(int, bound)) for bound in self._sorted[0])

  @property
  def batches_per_epoch(self) -> int:
    """Number of batches that contain every example once."""
    return -(-len(self.examples) // self.batch_size)

  @functools.cached_property
  def _names(self) -> list[str]:
    """The names of the masks, each once."""
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
    """Cuts examples in a given order into batches of one bucket each.

    Examples that do not fill a batch of their bucket move to the next larger
    bucket. Only the last batch may therefore have padding rows, with index -1.

    Returns:
      Indices of the examples [M, B], and the bucket of each batch [M].
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
    """Pads the examples `rows` [B] to a bucket; -1 stands for a padding row."""
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
    """Stacks one key of a batch to [B, time, ...], or [B, ...] without time."""
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
    """The dtype of each key in a batch, and its shape without the time axis."""
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
    """Raises DataError if an example's keys, shapes or lengths do not fit."""
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
    """The number of time steps of an example, one per mask."""
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
  """An endless sequence of batches of whole examples, for training.

  An epoch contains every example exactly once, in an order drawn from (seed,
  epoch). Examples of similar lengths are batched together: every batch belongs
  to one bucket, is padded to the bucket's lengths and has `batch_size` rows, so
  the number of shapes to compile is the number of buckets. At the end of an
  epoch, examples that do not fill a batch of their bucket move to the next
  larger bucket. An epoch therefore has ceil(N / batch_size) batches, of which
  at most one has padding rows. Their weight is 0 and their masks are False.

  Only the lengths of the examples are kept in memory; the examples of a batch
  are read when the batch is asked for.

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
    buckets: the largest number of buckets; their bounds are then quantiles of
      the lengths. Or the bounds themselves, ascending: padded lengths in time
      steps. With several masks a bound is a tuple of one length per mask, in
      the order in which `masks` names them.
    masks: maps each key whose first axis is time, and ragged, to the name of
      its mask. Keys with the same mask have the same length in every example.
      Other keys are stacked without padding.
    lengths: maps the name of each mask to the lengths of the examples, [N] time
      steps. None: every example is read once to find its lengths.
    seed: seed of the order of the examples, 0 or more.

  Raises:
    ValueError: if an argument is out of range, or does not fit the others.
    DataError: if there are no examples, one lacks a key, or one is longer than
      every bucket. `batches[step]` raises it if an example has other keys,
      shapes or dtypes than the first.

  Reference:
    Buckets: Sutskever, Vinyals & Le, "Sequence to sequence learning with neural
    networks", 2014.
  """

  seed: int = 0

  def __post_init__(self):
    super().__post_init__()
    check_least("seed", self.seed, 0)

  def __getitem__(self, step: int) -> Batch:
    """Returns the batch of a training step.

    Args:
      step: number of the step, from 0, without a limit.

    Returns:
      Each key of the examples, [B, time, ...] padded with zeros, or [B, ...];
      64-bit dtypes become 32-bit ones. Each mask, bool [B, time], True at real
      time steps. `weights`, float32 [B], 1 for an example and 0 for a padding
      row. `index`, int32 [B], the index of the example in the data, -1 for a
      padding row.
    """
    return self.rows(step, slice(None))

  def rows(self, step: int, which: slice) -> Batch:
    """Returns some rows of the batch of a step, and reads no others."""
    rows, bucket = self._rows(step)
    return self._make(rows[which], bucket)

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
  """Batches that contain every example exactly once, for scoring.

  Batches are ordered from the smallest bucket to the largest, and within a
  bucket by the order of the examples; with `buckets=1` that order does not
  change. `restore` brings results back to it. The last batch may have padding
  rows, with weight 0, so weighted sums are sums over all examples.

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
    examples: a sequence of dicts of arrays or numbers. All arguments are those
      of `ExampleBatches`, which describes them.
    batch_size: rows B of every batch.
    buckets: the largest number of buckets, or their bounds.
    masks: maps each ragged key to the name of its mask.
    lengths: maps the name of each mask to the lengths of the examples, [N].

  Raises:
    ValueError: if an argument is out of range, or does not fit the others.
    DataError: if the examples do not fit each other or the buckets.
  """

  def __len__(self) -> int:
    return self.batches_per_epoch

  def __iter__(self) -> Iterator[Batch]:
    return (self[number] for number in range(len(self)))

  def __getitem__(self, number: int) -> Batch:
    """Returns one batch.

    Args:
      number: number of the batch, in [0, len).

    Returns:
      A batch with the keys and shapes of a batch of `ExampleBatches`.

    Raises:
      IndexError: after the last batch.
    """
    if not 0 <= number < len(self):
      raise IndexError(f"batch {number} of {len(self)}")
    rows, buckets = self._order
    return self._make(rows[number], buckets[number])

  def restore(self, results: Iterable[np.ndarray]) -> np.ndarray:
    """Sorts the results of all batches into the order of the examples.

    Args:
      results: one array [B, ...] per batch, in the order of the batches.

    Returns:
      The results [N, ...], without those of padding rows.

    Raises:
      ValueError: if the number of rows differs from that of the batches.
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
  """Bounds of buckets with about equally many examples, sorted by length."""
  order = np.argsort(lengths.sum(axis=1), kind="stable")
  ends = np.arange(1, buckets + 1) * len(lengths) // buckets
  most = np.maximum.accumulate(lengths[order], axis=0)
  bounds = most[ends[ends > 0] - 1]
  # A batch has at least one time step, even if its examples have none.
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
