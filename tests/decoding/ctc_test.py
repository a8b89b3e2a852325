"""CTC decoding against the sum over all alignments, written out."""

import collections
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recurrent import losses
from recurrent.decoding import ctc


def collapse(alignment, blank):
  merged = [symbol for symbol, _ in itertools.groupby(alignment)]
  return tuple(symbol for symbol in merged if symbol != blank)


def all_labellings(logits, blank=0):
  """The log-probability of every labelling of one row [time, V]."""
  nats = np.asarray(jax.nn.log_softmax(logits.astype(np.float64)), np.float64)
  found = collections.defaultdict(list)
  for alignment in itertools.product(range(nats.shape[1]), repeat=len(nats)):
    score = sum(nats[time, symbol] for time, symbol in enumerate(alignment))
    found[collapse(alignment, blank)].append(score)
  return {key: np.logaddexp.reduce(scores) for key, scores in found.items()}


def as_dict(beams, row):
  """The labellings of a row with their scores and log-probabilities."""
  return {
    tuple(np.asarray(tokens)[: int(length)].tolist()): (float(s), float(p))
    for tokens, length, s, p in zip(
      *(np.asarray(part[row]) for part in beams), strict=True
    )
    if s > -1e8
  }


def draw(seed, batch, time, vocab):
  random = np.random.default_rng(seed)
  return 2 * random.normal(size=(batch, time, vocab)).astype(np.float32)


@pytest.mark.parametrize(
  ("time", "vocab", "blank"), [(1, 3, 0), (4, 3, 0), (5, 2, 1), (4, 4, 3)]
)
def test_enough_beams_find_every_labelling_with_its_exact_probability(
  time, vocab, blank
):
  logits = draw(time + vocab, 3, time, vocab)
  beams = jax.jit(lambda x: ctc.beam_search(x, beams=130, blank=blank))(logits)
  for row in range(3):
    want = all_labellings(logits[row], blank)
    got = as_dict(beams, row)
    assert got.keys() == want.keys()
    for labelling, (score, log_probability) in got.items():
      assert score == log_probability
      assert score == pytest.approx(want[labelling], abs=1e-4)
    scores = np.asarray(beams.scores[row])
    assert (np.diff(scores) <= 0).all()
    assert np.logaddexp.reduce(scores) == pytest.approx(0, abs=1e-4)


def test_the_loss_is_the_same_sum_over_alignments():
  logits = draw(0, 3, 5, 3)
  want = [all_labellings(row) for row in logits]
  for labels in itertools.product((1, 2), repeat=2):
    rows = jnp.tile(jnp.array(labels), (3, 1))
    ones = jnp.ones(rows.shape, bool)
    nats = losses.ctc(logits, jnp.ones((3, 5), bool), rows, ones)
    expected = [-found[labels] for found in want]
    np.testing.assert_allclose(nats, expected, atol=1e-4)


def test_padding_changes_neither_search_nor_loss():
  logits = draw(1, 2, 4, 3)
  longer = np.concatenate([logits, 9 * draw(2, 2, 3, 3)], axis=1)
  mask = np.arange(7)[None] < np.array([[4], [4]])
  for search in (ctc.greedy, lambda *args: ctc.beam_search(*args, beams=9)):
    want, got = search(logits), search(longer, mask)
    for row in range(2):
      one, other = as_dict(want, row), as_dict(got, row)
      assert one.keys() == other.keys()
      for labels in one:
        assert one[labels] == pytest.approx(other[labels], abs=1e-5)
  labels = jnp.array([[1, 2, 0], [2, 0, 0]])
  real = labels > 0
  np.testing.assert_allclose(
    losses.ctc(logits, mask[:, :4], labels, real),
    losses.ctc(longer, mask, labels[:, :2], real[:, :2]),
    rtol=1e-5,
  )


def test_greedy_is_the_best_alignment_of_each_row():
  logits = draw(3, 4, 6, 3)
  found = ctc.greedy(logits)
  for row in range(4):
    best = logits[row].argmax(axis=1)
    score = np.asarray(jax.nn.log_softmax(logits[row])).max(axis=1).sum()
    [(labelling, (got, _))] = as_dict(found, row).items()
    assert labelling == collapse(best.tolist(), 0)
    assert got == pytest.approx(score, abs=1e-4)


def test_more_beams_never_find_less():
  logits = draw(4, 4, 12, 4)
  scores = [
    np.asarray(ctc.beam_search(logits, beams=k).scores[:, 0])
    for k in (1, 2, 4, 16)
  ]
  assert (scores[-1] >= scores[0] - 1e-5).all()
  assert (scores[-1] > scores[0] + 1e-3).any()


def test_a_language_model_and_a_bonus_add_to_the_scores():
  vocab, weight, bonus = 3, 0.7, 0.4
  logits = draw(5, 2, 4, vocab)
  table = draw(6, 1, vocab, vocab)[0]  # logits of the next token

  def step(carry, token):
    # The carry counts the labels, so that a lost carry would be seen.
    scale = (1.0 + carry)[:, None]
    return carry + 1, jnp.asarray(table)[token] * scale

  model = ctc.LanguageModel(
    step, jnp.zeros(2), jnp.tile(jnp.asarray(table[:1]), (2, 1)), weight
  )
  beams = ctc.beam_search(
    logits, beams=64, language_model=model, length_bonus=bonus
  )

  def prior(labels):
    total, row = 0.0, table[0]
    for number, label in enumerate(labels):
      spoken = row[1:] - np.logaddexp.reduce(row[1:])
      total += weight * spoken[label - 1] + bonus
      row = table[label] * (1 + number)
    return total

  for row in range(2):
    want = all_labellings(logits[row])
    got = as_dict(beams, row)
    assert got.keys() == want.keys()
    for labels, (score, log_probability) in got.items():
      assert log_probability == pytest.approx(want[labels], abs=1e-4)
      assert score == pytest.approx(want[labels] + prior(labels), abs=1e-4)


def test_the_number_of_labels_has_a_limit():
  logits = draw(7, 2, 5, 3)
  found = ctc.beam_search(logits, beams=40, num_tokens=2)
  for row in range(2):
    want = {k: v for k, v in all_labellings(logits[row]).items() if len(k) <= 2}
    got = as_dict(found, row)
    assert got.keys() == want.keys()
    for labels in want:
      assert got[labels][1] == pytest.approx(want[labels], abs=1e-4)


@pytest.mark.parametrize(
  ("option", "message"),
  [
    ({"beams": 0}, "beams"),
    ({"num_tokens": 0}, "num_tokens"),
    ({"blank": 3}, "blank"),
  ],
)
def test_wrong_arguments_are_named(option, message):
  with pytest.raises(ValueError, match=message):
    ctc.beam_search(draw(0, 1, 2, 3), **option)


def test_the_time_steps_that_labels_need_are_counted():
  labels = jnp.array([[1, 1, 2, 0], [1, 2, 1, 2], [0, 0, 0, 0]])
  needed = losses.ctc_time_steps(labels, labels > 0)
  assert needed.tolist() == [4, 4, 0]
  nats = losses.ctc(
    jnp.zeros((3, 3, 3)), jnp.ones((3, 3), bool), labels, labels > 0
  )
  assert np.isinf(nats).tolist() == [True, True, False]
  assert float(nats[2]) == pytest.approx(3 * math.log(3), rel=1e-5)
