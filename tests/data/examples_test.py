import collections
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurrent.data import EvalBatches, ExampleBatches
from recurrent.errors import DataError

quick = settings(deadline=None, max_examples=50)
LENGTHS = st.lists(st.integers(0, 12), min_size=1, max_size=40)
SIZES = {
  "lengths": LENGTHS,
  "size": st.integers(1, 7),
  "buckets": st.integers(1, 5),
}
PAIR = {"source": "source_mask", "target": "target_mask"}


def made(lengths):
  """Examples that say which one they are, at every time step."""
  return [
    {
      "inputs": np.full((n, 2), i + 1, np.float32),
      "tags": np.full(n, i + 1),
      "label": i,
    }
    for i, n in enumerate(lengths)
  ]


ONE_MASK = {"inputs": "mask", "tags": "mask"}


def train(lengths, size, buckets, **options):
  options = {"masks": ONE_MASK} | options
  return ExampleBatches(
    made(lengths), batch_size=size, buckets=buckets, **options
  )


def epoch(batches, number=0):
  count = batches.batches_per_epoch
  return [batches[step] for step in range(number * count, (number + 1) * count)]


def seen(batches):
  """The examples in the order in which batches hold them."""
  rows = np.concatenate([batch["index"] for batch in batches])
  return rows[rows >= 0].tolist()


def assert_equal_batches(one, two):
  assert one.keys() == two.keys()
  for key, value in one.items():
    assert value.dtype == two[key].dtype
    np.testing.assert_array_equal(value, two[key])


@quick
@given(**SIZES, seed=st.integers(0, 3), number=st.integers(0, 3))
def test_an_epoch_holds_every_example_exactly_once(
  lengths, size, buckets, seed, number
):
  batches = train(lengths, size, buckets, seed=seed)
  assert sorted(seen(epoch(batches, number))) == list(range(len(lengths)))
  assert batches.batches_per_epoch == -(-len(lengths) // size)


@quick
@given(**SIZES, scoring=st.booleans())
def test_a_batch_holds_its_examples_and_nothing_else(
  lengths, size, buckets, scoring
):
  make = EvalBatches if scoring else ExampleBatches
  examples = made(lengths)
  batches = make(examples, batch_size=size, buckets=buckets, masks=ONE_MASK)
  for step in range(batches.batches_per_epoch):
    batch = batches[step]
    for row, index in enumerate(batch["index"]):
      real = batch["mask"][row]
      if index < 0:
        assert batch["weights"][row] == 0 and not real.any()
        assert not any(batch[key][row].any() for key in examples[0])
        continue
      assert batch["weights"][row] == 1 and batch["label"][row] == index
      # Real time steps come first, and behind them there are zeros.
      assert real.tolist() == sorted(real, reverse=True)
      for key in ONE_MASK:
        want = examples[index][key]
        np.testing.assert_array_equal(batch[key][row][real], want)
        assert not batch[key][row][~real].any()


@quick
@given(**SIZES, seed=st.integers(0, 3))
def test_there_are_no_more_shapes_than_buckets(lengths, size, buckets, seed):
  batches = train(lengths, size, buckets, seed=seed)
  assert 1 <= len(batches.bounds) <= buckets
  found = set()
  for batch in epoch(batches) + epoch(batches, 1):
    time = batch["mask"].shape[1]
    found.add(time)
    assert {
      key: (value.shape, str(value.dtype)) for key, value in batch.items()
    } == {
      "inputs": ((size, time, 2), "float32"),
      "tags": ((size, time), "int32"),
      "label": ((size,), "int32"),
      "mask": ((size, time), "bool"),
      "weights": ((size,), "float32"),
      "index": ((size,), "int32"),
    }
  assert {(time,) for time in found} <= set(batches.bounds)


@quick
@given(**SIZES)
def test_only_one_batch_of_an_epoch_has_rows_to_spare(lengths, size, buckets):
  spare = [
    int((batch["weights"] == 0).sum())
    for batch in epoch(train(lengths, size, buckets))
  ]
  assert sum(n > 0 for n in spare) <= 1
  assert sum(spare) == -len(lengths) % size


@quick
@given(**SIZES)
def test_fewer_rows_than_a_batch_are_in_a_bucket_larger_than_theirs(
  lengths, size, buckets
):
  batches = train(lengths, size, buckets)
  bounds = np.array(batches.bounds)[:, 0]
  strangers = collections.Counter()
  for batch in epoch(batches):
    time = batch["mask"].shape[1]
    below = bounds[bounds < time].max(initial=-1)
    rows = batch["index"][batch["index"] >= 0]
    strangers[time] += sum(lengths[row] <= below for row in rows)
  assert all(count < size for count in strangers.values())


@quick
@given(**SIZES, seed=st.integers(0, 3))
def test_a_batch_is_a_pure_function_of_the_seed_and_the_step(
  lengths, size, buckets, seed
):
  one, two = (train(lengths, size, buckets, seed=seed) for _ in range(2))
  steps = range(3 * one.batches_per_epoch)
  forward = [one[step] for step in steps]
  for step in reversed(steps):
    assert_equal_batches(two[step], forward[step])


def test_seeds_and_epochs_have_orders_of_their_own():
  orders = [
    seen(epoch(train(range(40), 4, 3, seed=seed), number))
    for seed, number in itertools.product(range(3), repeat=2)
  ]
  assert len(set(map(tuple, orders))) == 9


def test_short_and_long_batches_come_in_any_order():
  batches = train(np.arange(60) % 12, 5, 4)
  times = [
    tuple(batch["mask"].shape[1] for batch in epoch(batches, number))
    for number in range(5)
  ]
  assert len(set(times)) == 5
  assert any(list(x) != sorted(x) for x in times)


def test_who_shares_a_batch_changes_from_epoch_to_epoch():
  batches = train([3] * 20, 4, 1)
  groups = [
    {frozenset(batch["index"].tolist()) for batch in epoch(batches, number)}
    for number in range(2)
  ]
  assert groups[0] != groups[1]


@quick
@given(**SIZES)
def test_units_are_the_real_time_steps_of_a_batch(lengths, size, buckets):
  batches = train(lengths, size, buckets)
  counted = [int(batch["mask"].sum()) for batch in epoch(batches)]
  assert counted == [batches.units(step) for step in range(len(counted))]
  assert sum(counted) == sum(lengths)


@quick
@given(**SIZES)
def test_automatic_bounds_part_the_examples_in_equal_shares(
  lengths, size, buckets
):
  bounds = [bound for (bound,) in train(lengths, size, buckets).bounds]
  ordered = sorted(max(n, 1) for n in lengths)
  assert bounds[-1] == ordered[-1] and bounds == sorted(set(bounds))
  cuts = [k * len(ordered) // buckets for k in range(1, buckets + 1)]
  assert set(bounds) == {ordered[cut - 1] for cut in cuts if cut}


def test_given_bounds_are_kept_where_they_are_needed():
  batches = train([1, 2, 5, 5, 9, 9], 2, [3, 5, 7, 9, 20])
  assert batches.bounds == ((3,), (5,), (9,))


def test_sequences_of_any_kind_will_do_and_are_read_only_where_needed():
  class Lazy(collections.abc.Sequence):
    def __init__(self):
      self.read = []

    def __len__(self):
      return 1000

    def __getitem__(self, index):
      assert type(index) is int
      self.read.append(index)
      return {"inputs": np.ones(index % 5 + 1)}

  counted, given = Lazy(), Lazy()
  lengths = {"mask": np.arange(1000) % 5 + 1}
  one = ExampleBatches(counted, batch_size=8)
  two = ExampleBatches(given, batch_size=8, lengths=lengths)
  assert set(counted.read) == set(range(1000)) and set(given.read) == {0}
  counted.read.clear(), given.read.clear()
  assert_equal_batches(one[77], two[77])
  assert len(given.read) == len(set(given.read)) <= 8 + 1
  assert one.units(77) == two.units(77) == one[77]["mask"].sum()


# Several lengths.


@quick
@given(
  lengths=st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=40
  ),
  size=st.integers(1, 7),
  buckets=st.integers(1, 5),
)
def test_source_and_target_have_lengths_of_their_own(lengths, size, buckets):
  pairs = [{"source": np.ones(s), "target": np.ones(t)} for s, t in lengths]
  batches = ExampleBatches(pairs, size, masks=PAIR, buckets=buckets)
  shapes, rows = set(), []
  for step, batch in enumerate(epoch(batches)):
    shapes.add(tuple(batch[name].shape[1] for name in PAIR.values()))
    units = 0
    for row, index in enumerate(batch["index"]):
      found = tuple(batch[name][row].sum() for name in PAIR.values())
      assert found == (lengths[index] if index >= 0 else (0, 0))
      units += sum(found)
    assert units == batches.units(step)
    rows += batch["index"].tolist()
  assert sorted(x for x in rows if x >= 0) == list(range(len(lengths)))
  assert shapes <= set(batches.bounds) and len(batches.bounds) <= buckets


def test_bounds_of_pairs_are_pairs():
  pairs = [{"source": np.ones(s), "target": np.ones(9 - s)} for s in (2, 4, 7)]
  make = lambda bounds: ExampleBatches(pairs, 2, masks=PAIR, buckets=bounds)
  assert make([(4, 7), (7, 7)]).bounds == ((4, 7), (7, 7))
  for bounds in ([4, 7], [(7, 4), (4, 7)], [(4, 7), (7,)]):
    with pytest.raises(ValueError, match="buckets must be"):
      make(bounds)
  with pytest.raises(DataError, match="example 0 has 2 and 7 time steps"):
    make([(7, 5)])


# Scoring.


@quick
@given(**SIZES)
def test_scoring_meets_every_example_exactly_once(lengths, size, buckets):
  batches = EvalBatches(made(lengths), size, masks=ONE_MASK, buckets=buckets)
  found = list(batches)
  assert len(found) == len(batches) == -(-len(lengths) // size)
  assert sorted(seen(found)) == list(range(len(lengths)))
  assert {batch["mask"].shape for batch in found} <= {
    (size, time) for (time,) in batches.bounds
  }
  # Rows to spare come last.
  weights = np.concatenate([batch["weights"] for batch in found])
  assert weights.tolist() == sorted(weights, reverse=True)


@quick
@given(**SIZES)
def test_results_go_back_into_the_order_of_the_examples(lengths, size, buckets):
  batches = EvalBatches(made(lengths), size, masks=ONE_MASK, buckets=buckets)
  sums = [batch["inputs"].sum(axis=1) for batch in batches]
  want = [[(i + 1) * n] * 2 for i, n in enumerate(lengths)]
  np.testing.assert_array_equal(batches.restore(sums), want)


@quick
@given(lengths=LENGTHS, size=st.integers(1, 7))
def test_with_one_bucket_scoring_keeps_the_order(lengths, size):
  batches = EvalBatches(made(lengths), size, masks=ONE_MASK, buckets=1)
  assert seen(batches) == list(range(len(lengths)))


@quick
@given(**SIZES, other=st.integers(1, 7))
def test_a_score_depends_neither_on_the_batch_size_nor_on_the_buckets(
  lengths, size, buckets, other
):
  def score(size, buckets):
    batches = EvalBatches(made(lengths), size, masks=ONE_MASK, buckets=buckets)
    return sum(
      float((batch["weights"] * (batch["inputs"].sum((1, 2)) + 1)).sum())
      for batch in batches
    )

  assert score(size, buckets) == score(other, 1)


def test_restoring_other_rows_is_refused():
  batches = EvalBatches(made([1, 2, 3]), 2, masks=ONE_MASK)
  with pytest.raises(ValueError, match="4 rows over 2 batches, got 2"):
    batches.restore([np.zeros(2)])
  for number in (-1, 2):
    with pytest.raises(IndexError):
      batches[number]


# What is refused.

GOOD = {"inputs": np.ones((3, 2), np.float32), "label": 1}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
    ({"seed": -1}, "seed must be 0 or more, got -1"),
    ({"buckets": 0}, "buckets must be 1 or more, got 0"),
    ({"buckets": []}, "buckets must be a number"),
    ({"buckets": [5, 3]}, r"buckets must be .* got \[5, 3\]"),
    ({"buckets": [0, 3]}, "buckets must be .* 1 or more"),
    ({"buckets": [2.5]}, "buckets must be"),
    ({"masks": {}}, "masks must name"),
    ({"masks": {"inputs": "label"}}, "must leave the key 'label'"),
    ({"examples": [{**GOOD, "weights": 1}]}, "must leave the key 'weights'"),
    ({"lengths": {"other": np.ones(2, int)}}, r"lengths must be .*\['mask'\]"),
    ({"lengths": {"mask": np.ones(3, int)}}, r"must be \[2\] integers.*\(3,\)"),
    ({"lengths": {"mask": np.ones(2)}}, "integers, got float64"),
    ({"lengths": {"mask": np.array([1, -1])}}, "'mask'.*0 or more, got -1"),
  ],
)
def test_a_wrong_argument_is_named(change, message):
  arguments = {"examples": [GOOD, GOOD], "batch_size": 2} | change
  with pytest.raises(ValueError, match=message):
    ExampleBatches(**arguments)


def test_a_step_before_the_first_is_refused():
  with pytest.raises(ValueError, match="step must be 0 or more, got -1"):
    ExampleBatches([GOOD], batch_size=2)[-1]


@pytest.mark.parametrize(
  ("examples", "message"),
  [
    ([], "no examples"),
    ([GOOD, {"label": 1}], "example 1 has no 'inputs'"),
    ([{"label": 1}], "example 0 has no 'inputs'"),
    ([{"inputs": 3.0}], "'inputs' of example 0 is a single number"),
    ([GOOD, {**GOOD, "inputs": np.ones((9, 2))}], "example 1 has 9 time steps"),
  ],
)
def test_examples_that_cannot_be_batched_are_refused_at_once(examples, message):
  with pytest.raises(DataError, match=message):
    EvalBatches(examples, batch_size=2, buckets=[4])


@pytest.mark.parametrize(
  ("second", "message"),
  [
    ({**GOOD, "more": 1}, "example 1 has the keys .*'more'"),
    ({**GOOD, "inputs": np.ones((3, 1), "f4")}, r"'inputs' of example 1.*\(1,"),
    ({**GOOD, "inputs": np.ones((3, 2), int)}, "'inputs' of example 1 is int"),
    ({**GOOD, "label": 2**40}, "'label' of example 1 has numbers beyond int32"),
    ({**GOOD, "label": np.ones(2, int)}, "'label' of example 1"),
  ],
)
def test_examples_unlike_the_first_are_refused_when_read(second, message):
  with pytest.raises(DataError, match=message):
    EvalBatches([GOOD, second], batch_size=2)[0]


def test_keys_that_share_a_mask_are_of_one_length():
  examples = [{"inputs": np.ones(3), "tags": np.ones(4)}]
  with pytest.raises(DataError, match="3 time steps of 'inputs' and 4 of 'tag"):
    EvalBatches(examples, 1, masks=ONE_MASK)


def test_lengths_that_are_not_those_of_the_examples_are_refused():
  lengths = {"mask": np.array([3, 2])}
  batches = EvalBatches([GOOD, GOOD], batch_size=1, lengths=lengths)
  with pytest.raises(DataError, match="example 1 has 3 time steps.* say 2"):
    list(batches)


def test_text_is_refused_with_the_way_to_find_it_again():
  with pytest.raises(DataError, match="'name' of example 0 is <U3") as caught:
    EvalBatches([{**GOOD, "name": "abc"}], batch_size=1)[0]
  assert "index" in caught.value.remedy
