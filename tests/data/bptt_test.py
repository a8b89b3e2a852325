import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from recurrent.data import ContiguousBatches, EvalStreams
from recurrent.errors import DataError

SIZES = {
  "size": st.integers(2, 200),
  "rows": st.integers(1, 9),
  "time_steps": st.integers(1, 17),
}


def a_pass(batches, number):
  """The windows of pass `number`, side by side: [B, W*T] and resets [W, B]."""
  count = batches.windows_per_pass
  steps = range(number * count, (number + 1) * count)
  windows = [batches[step] for step in steps]
  return (
    np.concatenate([window["inputs"] for window in windows], axis=1),
    np.concatenate([window["targets"] for window in windows], axis=1),
    np.stack([window["restart"] for window in windows]),
  )


@settings(deadline=None)
@given(**SIZES, seed=st.integers(0, 3), number=st.integers(0, 5))
def test_each_row_of_a_pass_is_a_contiguous_stretch(
  size, rows, time_steps, seed, number
):
  assume(size >= (rows + 1) * time_steps)
  # Tokens that are their own positions.
  batches = ContiguousBatches(
    np.arange(size, dtype=np.uint16),
    batch_size=rows,
    seq_len=time_steps,
    seed=seed,
  )
  inputs, targets, resets = a_pass(batches, number)
  assert inputs.dtype == targets.dtype == np.int32
  # The rows one after the other are one segment too: nothing is left out
  # between them.
  offset = inputs[0, 0]
  assert (inputs.ravel() == offset + np.arange(inputs.size)).all()
  assert (targets == inputs + 1).all()
  assert 0 <= offset < time_steps
  assert targets.max() < size
  assert size - inputs.size < (rows + 1) * time_steps
  assert resets[0].all() and not resets[1:].any()


def test_a_batch_is_a_pure_function_of_the_step():
  tokens = np.random.default_rng(0).integers(0, 9, 1000)
  one, two = (
    ContiguousBatches(tokens, batch_size=4, seq_len=10, seed=7)
    for _ in range(2)
  )
  expected = [one[step] for step in range(60)]
  for step in reversed(range(60)):
    for key, value in two[step].items():
      assert (value == expected[step][key]).all()


def test_passes_start_at_offsets_of_their_own():
  tokens = np.arange(10_000)

  def offsets(seed):
    batches = ContiguousBatches(tokens, batch_size=2, seq_len=50, seed=seed)
    steps = range(0, 200 * batches.windows_per_pass, batches.windows_per_pass)
    return [int(batches[step]["inputs"][0, 0]) for step in steps]

  drawn = offsets(0)
  assert min(drawn) < 5 and max(drawn) > 44
  assert drawn != offsets(1)


def test_the_batch_has_the_promised_shapes():
  batch = ContiguousBatches(np.arange(100), batch_size=3, seq_len=5)[0]
  assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
    "inputs": ((3, 5), np.int32),
    "targets": ((3, 5), np.int32),
    "restart": ((3,), bool),
  }


@settings(deadline=None)
@given(**SIZES)
def test_a_text_too_short_names_sizes_that_fit(size, rows, time_steps):
  size %= (rows + 1) * time_steps
  tokens = np.arange(size)
  with pytest.raises(DataError, match=f"{size} tokens") as caught:
    ContiguousBatches(tokens, batch_size=rows, seq_len=time_steps)
  for part in caught.value.remedy.split(" or ")[1:]:
    name, _, most = part.partition(" <= ")
    sizes = {"batch_size": rows, "seq_len": time_steps, name: int(most)}
    assert ContiguousBatches(tokens, **sizes).windows_per_pass >= 1
    sizes[name] += 1
    with pytest.raises(DataError):
      ContiguousBatches(tokens, **sizes)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
    ({"seq_len": 0}, "seq_len must be 1 or more"),
    ({"seed": -1}, "seed must be 0 or more"),
    ({"tokens": np.ones(100)}, "tokens must be .* got float64"),
    ({"tokens": np.ones((50, 2), int)}, "tokens must be .* got int64"),
  ],
)
def test_a_wrong_argument_is_named(change, message):
  good = {"tokens": np.arange(100), "batch_size": 2, "seq_len": 5}
  with pytest.raises(ValueError, match=message):
    ContiguousBatches(**{**good, **change})
  with pytest.raises(ValueError, match="step must be 0 or more, got -1"):
    ContiguousBatches(**good)[-1]


def windows(streams):
  return [streams[window] for window in range(len(streams))]


@settings(deadline=None)
@given(**SIZES, warm_up=st.integers(0, 30))
def test_every_target_is_scored_exactly_once(size, rows, time_steps, warm_up):
  streams = EvalStreams(
    np.arange(size), rows=rows, seq_len=time_steps, warm_up=warm_up
  )
  batches = windows(streams)
  assert len(batches) == len(list(streams))
  scored = np.concatenate(
    [batch["targets"][batch["weights"] > 0] for batch in batches]
  )
  assert sorted(scored) == list(range(1, size))
  for batch in batches:
    assert all(value.shape == (rows, time_steps) for value in batch.values())
    real = batch["mask"]
    assert (batch["targets"] == batch["inputs"] + 1)[real].all()
    assert not batch["weights"][~real].any()


@settings(deadline=None)
@given(**SIZES, warm_up=st.integers(0, 30))
def test_each_row_reads_its_warm_up_and_then_its_stretch(
  size, rows, time_steps, warm_up
):
  streams = EvalStreams(
    np.arange(size), rows=rows, seq_len=time_steps, warm_up=warm_up
  )
  batches = windows(streams)
  inputs, mask, weights = (
    np.concatenate([batch[key] for batch in batches], axis=1)
    for key in ("inputs", "mask", "weights")
  )
  lengths = weights.sum(axis=1)
  assert lengths.max() - lengths.min() <= 1
  for row in range(rows):
    read = inputs[row][mask[row]]
    if lengths[row] == 0:
      assert not len(read)
      continue
    # Each row reads one segment of the text, without gaps between its tokens.
    assert (np.diff(read) == 1).all()
    first = int(inputs[row][weights[row] > 0][0])
    assert first - read[0] == min(warm_up, first)


def test_the_score_does_not_depend_on_the_window():
  tokens = np.random.default_rng(0).integers(0, 9, 101)

  def score(seq_len):
    """Scores with a carry that counts, so that window boundaries would show."""
    streams = EvalStreams(tokens, rows=3, seq_len=seq_len, warm_up=4)
    carry, total = np.zeros(3), 0.0
    for batch in windows(streams):
      for time_step in range(seq_len):
        mask = batch["mask"][:, time_step]
        carry = np.where(
          mask, 0.5 * carry + batch["inputs"][:, time_step], carry
        )
        loss = (carry - batch["targets"][:, time_step]) ** 2
        total += float((batch["weights"][:, time_step] * loss).sum())
    return total

  assert score(1) == pytest.approx(score(7)) == pytest.approx(score(100))


def test_streams_refuse_what_they_cannot_score():
  with pytest.raises(DataError, match="1 tokens has none to predict"):
    EvalStreams(np.arange(1), rows=1, seq_len=1)
  for wrong in ({"rows": 0}, {"seq_len": 0}, {"warm_up": -1}):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
      EvalStreams(np.arange(9), **{"rows": 1, "seq_len": 1, **wrong})
  streams = EvalStreams(np.arange(9), rows=2, seq_len=3)
  for wrong in (-1, len(streams)):
    with pytest.raises(IndexError):
      streams[wrong]


def test_the_streams_types_are_the_promised_ones():
  batch = EvalStreams(np.arange(9, dtype=np.uint8), rows=2, seq_len=3)[0]
  assert {key: value.dtype for key, value in batch.items()} == {
    "inputs": np.int32,
    "targets": np.int32,
    "mask": bool,
    "weights": np.float32,
  }
