"""Beam search, against an exhaustive search and a slow search in NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from recurrent import decoding, nn
from recurrent.models import LanguageModel
from tests.decoding.sampling_test import log_softmax
from tests.models.build import language_model

V, N, STOP = 4, 4, 2
# A chain with a memory: the next logits depend on the token and on how many
# there have been.
RNG = np.random.default_rng(1)
TABLE = (2 * RNG.normal(size=(3, V, V))).astype(np.float32)
START = (2 * RNG.normal(size=(3, V))).astype(np.float32)


def step(carry, token):
  number, seen = carry
  seen = seen + jax.nn.one_hot(token, V)
  return (number + 1, seen), jnp.asarray(TABLE)[number % 3, token]


@functools.partial(jax.jit, static_argnames=("options",))
def run(options, forced=None):
  carry = jnp.zeros(3, jnp.int32), jnp.zeros((3, V))
  options = {"num_tokens": N, "stop_token": STOP, **dict(options)}
  return decoding.beam_search(
    step, carry, jnp.asarray(START), forced=forced, **options
  )


def search(forced=None, **options):
  return run(tuple(sorted(options.items(), key=str)), forced)


def nats_of(row, sequence):
  """The log-probability of a sequence."""
  logits, total = START[row], 0.0
  for number, token in enumerate(sequence):
    total += log_softmax(logits)[token]
    logits = TABLE[number % 3, token]
  return total


def all_sequences():
  """Every sequence: ended by the stop token, or of N tokens without one."""
  others = [token for token in range(V) if token != STOP]
  for length in range(N):
    for tokens in itertools.product(others, repeat=length):
      yield (*tokens, STOP)
  yield from itertools.product(others, repeat=N)


def repeats(sequence, n):
  body = [t for t in sequence if t != STOP]
  grams = [tuple(body[i : i + n]) for i in range(len(body) - n + 1)]
  return len(grams) != len(set(grams))


def exhaustive(
  row, *, length_penalty=0.0, min_tokens=0, no_repeat=0, forced=()
):
  """All sequences with their scores, best first."""
  found = []
  for sequence in all_sequences():
    before = len(sequence) - (sequence[-1] == STOP)
    if before < min_tokens and sequence[-1] == STOP:
      continue
    if no_repeat and repeats(sequence, no_repeat):
      continue
    begun = zip(sequence, forced, strict=False)
    if any(want not in (-1, token) for token, want in begun):
      continue
    nats = nats_of(row, sequence)
    score = nats / ((5 + len(sequence)) / 6) ** length_penalty
    found.append((score, nats, before, sequence))
  return sorted(found, reverse=True)


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"length_penalty": 1.5},
    {"min_tokens": 2},
    {"no_repeat": 1},
    {"no_repeat": 2, "length_penalty": 0.6},
  ],
  ids=str,
)
def test_with_enough_beams_it_is_exhaustive(options):
  beams = 3**N
  found = search(beams=beams, **options)
  for row in range(3):
    want = exhaustive(row, **options)
    real = min(beams, len(want))
    scores = [score for score, *_ in want[:real]]
    np.testing.assert_allclose(found.scores[row, :real], scores, atol=1e-4)
    for place, (_, nats, before, sequence) in enumerate(want[:10]):
      padded = [*sequence, *[STOP] * (N - len(sequence))]
      np.testing.assert_array_equal(found.tokens[row, place], padded)
      assert found.lengths[row, place] == before
      assert float(found.log_probabilities[row, place]) == pytest.approx(
        nats, abs=1e-4
      )
    assert (found.scores[row, len(want) :] < -1e8).all()


def test_forced_tokens_come_first():
  forced = np.array([[3, 1], [0, -1], [1, STOP]], np.int32)
  found = search(jnp.asarray(forced), beams=3**N)
  for row in range(3):
    want = exhaustive(row, forced=tuple(forced[row]))
    np.testing.assert_allclose(
      found.scores[row, : len(want)], [s for s, *_ in want][: 3**N], atol=1e-4
    )


def slow_search(row, beams):
  """The same with few beams, one beam at a time."""
  live, ended = [(0.0, ())], []
  for number in range(N):
    grown = []
    for nats, tokens in live:
      logits = TABLE[(number - 1) % 3, tokens[-1]] if tokens else START[row]
      for token, more in enumerate(log_softmax(logits)):
        (ended if token == STOP else grown).append(
          (nats + more, (*tokens, token))
        )
    live = sorted(grown, reverse=True)[:beams]
  return sorted(ended + live, reverse=True)[:beams]


@pytest.mark.parametrize("beams", [1, 2, 3, 5])
def test_with_few_beams_it_keeps_the_best_at_each_token(beams):
  found = search(beams=beams)
  for row in range(3):
    want = slow_search(row, beams)
    np.testing.assert_allclose(
      found.scores[row], [nats for nats, _ in want], atol=1e-4
    )
    best = want[0][1]
    np.testing.assert_array_equal(found.tokens[row, 0, : len(best)], best)


def test_what_is_not_covered_costs():
  options = {"beams": 3**N, "coverage_penalty": 0.5}
  found = search(coverage=covered, **options)
  for row in range(3):
    want = []
    for score, _, _, sequence in exhaustive(row):
      body = sequence[:-1] if sequence[-1] == STOP else sequence
      seen = np.bincount(np.array(body, int), minlength=V)
      missed = np.log(np.clip(seen, 1e-6, 1)).sum()
      want.append(score + 0.5 * missed)
    want = sorted(want, reverse=True)[: 3**N]
    np.testing.assert_allclose(found.scores[row], want, atol=1e-3)


def covered(carry):
  return carry[1]


def models():
  rngs = nnx.Rngs(0)
  block = nn.TransformerBlock(8, heads=2, context=16, rngs=rngs)
  return {
    "lstm": language_model(7, features=6, embedding_features=4, rngs=rngs),
    "transformer": LanguageModel(7, nn.Stack([block]), rngs=rngs),
  }


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_scores_are_those_of_the_model_and_rows_are_independent(name):
  model = models()[name]
  prompt = jnp.array([[1, 2, 3], [4, 5, 6]])

  @jax.jit
  def run(prompt):
    carry, logits = model(None, prompt)
    return decoding.beam_search(
      model.decoder(), carry, logits[:, -1], beams=3, num_tokens=6, stop_token=0
    )

  found = run(prompt)
  for row in range(2):
    alone = run(prompt[row : row + 1])
    np.testing.assert_array_equal(found.tokens[row], alone.tokens[0])
    for beam in range(3):
      tokens = found.tokens[row, beam]
      _, logits = model(None, jnp.concatenate([prompt[row], tokens])[None])
      nats = log_softmax(logits[0, 2:-1])[np.arange(6), np.asarray(tokens)]
      count = min(int(found.lengths[row, beam]) + 1, 6)
      assert float(found.log_probabilities[row, beam]) == pytest.approx(
        nats[:count].sum(), abs=1e-4
      )


@pytest.mark.parametrize(
  ("wrong", "words"),
  [
    ({"beams": 0}, "beams must be 1 or more"),
    ({"num_tokens": 0}, "num_tokens must be 1 or more"),
    ({"stop_token": 9}, r"stop_token must be in \[0, 4\)"),
    ({"coverage_penalty": 1.0}, "needs coverage"),
    ({"no_repeat": -1}, "no_repeat must be 0 or more"),
  ],
)
def test_what_cannot_be_is_refused(wrong, words):
  with pytest.raises(ValueError, match=words):
    search(**{"beams": 2, **wrong})
