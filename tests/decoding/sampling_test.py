import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recurrent import decoding
from recurrent.decoding import Sampler, sampling

KEY = jax.random.key(0)
# Of the generators of keys, "rbg" is the one that compiles fastest.
FAST_KEY, OTHER_KEY = (jax.random.key(seed, impl="rbg") for seed in (0, 1))
RNG = np.random.default_rng(0)
V = 7
SAMPLERS = [Sampler(temperature=0.0), Sampler(2.0, top_k=4, top_p=0.9)]
# A chain with a memory: the next logits depend on the token and on how many
# there have been.
TABLE = (2 * RNG.normal(size=(3, V, V))).astype(np.float32)
START = (2 * RNG.normal(size=(4, V))).astype(np.float32)


def step(carry, token):
  return carry + 1, jnp.asarray(TABLE)[carry % 3, token]


def fresh(batch=4):
  return jnp.zeros(batch, jnp.int32), jnp.asarray(START[:batch])


@functools.partial(jax.jit, static_argnames=("sampler", "batch", "num_tokens"))
def draw(key=FAST_KEY, *, sampler=SAMPLERS[0], batch=4, num_tokens=8):
  carry, logits = fresh(batch)
  return decoding.sample(
    step, carry, logits, key, num_tokens=num_tokens, sampler=sampler
  )


def log_softmax(logits):
  """In NumPy and float64."""
  logits = np.asarray(logits, np.float64)
  logits = logits - logits.max(axis=-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def logits_before(tokens):
  """The logits each token of [B, N] was drawn from, token by token."""
  seen = []
  for row, start in zip(np.asarray(tokens), START, strict=False):
    rows = [TABLE[n % 3, token] for n, token in enumerate(row)]
    seen.append(np.stack([start, *rows[:-1]]))
  return np.stack(seen)


def assert_same(got, expected):
  """Token for token; scores to the last bits of float32."""
  np.testing.assert_array_equal(got.tokens, expected.tokens)
  np.testing.assert_array_equal(got.done, expected.done)
  np.testing.assert_allclose(got.scores, expected.scores, rtol=1e-5, atol=1e-6)


# Greedy.


@pytest.mark.parametrize("batch", [1, 4])
def test_temperature_zero_is_a_loop_with_argmax(batch):
  expected = []
  for start in START[:batch]:
    logits, row = start, []
    for n in range(8):
      row.append(int(logits.argmax()))
      logits = TABLE[n % 3, row[-1]]
    expected.append(row)
  _, _, drawn = draw(batch=batch)
  assert drawn.tokens.tolist() == expected


def test_of_equal_logits_greedy_takes_the_first():
  logits = jnp.array([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0]])
  assert Sampler(temperature=0.0)(None, logits)[0].tolist() == [1, 0]


# Scores.


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_scores_are_the_models_own_log_probabilities(sampler):
  _, _, drawn = draw(sampler=sampler)
  tokens = np.asarray(drawn.tokens)
  expected = np.take_along_axis(
    log_softmax(logits_before(tokens)), tokens[..., None], axis=-1
  )[..., 0]
  np.testing.assert_allclose(drawn.scores, expected, rtol=1e-5, atol=1e-6)


def test_a_vocabulary_of_one_is_certain():
  _, _, drawn = decoding.sample(
    lambda carry, token: (carry, jnp.ones((2, 1))),
    (),
    jnp.ones((2, 1)),
    KEY,
    num_tokens=3,
    sampler=Sampler(top_k=1, top_p=0.5),
  )
  assert (drawn.tokens == 0).all() and (drawn.scores == 0).all()


# The law of what is drawn.

# 99.9 % quantiles of chi-square, by degrees of freedom.
QUANTILE = {2: 13.82, 3: 16.27, 6: 22.46, 48: 84.04}
# Probabilities 0.176, 0.024, 0.087, 0.065, 0.478, 0.039, 0.130.
LOGITS = np.array([1.0, -1.0, 0.3, 0.0, 2.0, -0.5, 0.7], np.float32)
ROWS = 20_000


def softmax(logits):
  return np.exp(log_softmax(logits))


PAIRS = np.outer(softmax(LOGITS), softmax(LOGITS)).ravel()


def choose(sampler):
  """One token for each of many rows."""
  logits = jnp.asarray(np.tile(LOGITS, (ROWS, 1)))
  tokens, _ = sampler(sampler.noise(FAST_KEY, logits.shape), logits)
  return np.asarray(tokens)


def assert_drawn_from(probabilities, outcomes):
  counts = np.bincount(outcomes, minlength=probabilities.size)
  possible = probabilities > 0
  assert counts[~possible].sum() == 0
  expected = outcomes.size * probabilities[possible]
  assert expected.min() > 5
  chi_square = ((counts[possible] - expected) ** 2 / expected).sum()
  assert chi_square < QUANTILE[possible.sum() - 1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_tokens_come_with_the_probabilities_of_the_softmax(temperature):
  assert_drawn_from(softmax(LOGITS / temperature), choose(Sampler(temperature)))


def test_rows_are_independent():
  tokens = choose(Sampler())
  assert_drawn_from(PAIRS, V * tokens[::2] + tokens[1::2])


def test_tokens_that_follow_one_another_are_independent():
  logits = jnp.asarray(np.tile(LOGITS, (ROWS, 1)))
  _, _, drawn = decoding.sample(
    lambda carry, token: (carry, logits), (), logits, KEY, num_tokens=2
  )
  one, two = np.asarray(drawn.tokens).T
  assert_drawn_from(PAIRS, V * one + two)


@pytest.mark.parametrize(
  "truncation,left",
  [({"top_k": 3}, [0, 4, 6]), ({"top_p": 0.8}, [0, 2, 4, 6])],
)
def test_what_truncation_leaves_keeps_its_proportions(truncation, left):
  probabilities = np.zeros(V)
  probabilities[left] = softmax(LOGITS[left])
  assert_drawn_from(probabilities, choose(Sampler(**truncation)))


def test_another_key_draws_another_text():
  one, two = (
    draw(key, sampler=SAMPLERS[1])[2].tokens for key in (FAST_KEY, OTHER_KEY)
  )
  assert (one != two).any()


# Truncation.


def kept_by(sampler, logits):
  return np.isfinite(sampler.truncate(jnp.asarray(logits)))


def rows_with_ties(rows=50, vocabulary=11):
  """Random logits; in half of the rows small integers, so with ties."""
  rng = np.random.default_rng(1)
  whole = rng.integers(-2, 3, (rows // 2, vocabulary))
  real = rng.normal(size=(rows // 2, vocabulary))
  return np.concatenate([whole, real]).astype(np.float32)


@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_top_k_keeps_what_is_no_less_likely_than_the_kth(k):
  logits = rows_with_ties()
  kth = -np.sort(-logits, axis=-1)[:, k - 1 : k]
  np.testing.assert_array_equal(
    kept_by(Sampler(top_k=k), logits), logits >= kth
  )


@pytest.mark.parametrize("k", [0, 11, 12, 1000])
def test_top_k_of_the_whole_vocabulary_or_more_keeps_all(k):
  assert kept_by(Sampler(top_k=k), rows_with_ties()).all()


def keep_top_p(logits, p):
  """One row, token by token in float64; ties of the last one kept too."""
  probabilities = softmax(logits)
  reached, last = 0.0, None
  for token in np.argsort(-logits, kind="stable"):
    # Not a case that rounding could decide.
    assert abs(reached - p) > 1e-6
    if reached > p:
      break
    reached, last = reached + probabilities[token], logits[token]
  return logits >= last


@pytest.mark.parametrize("p", [1e-5, 0.1234567, 0.5123456, 0.9876543])
def test_top_p_keeps_the_likeliest_until_they_reach_p(p):
  logits = rows_with_ties()
  expected = [keep_top_p(row, p) for row in logits]
  np.testing.assert_array_equal(kept_by(Sampler(top_p=p), logits), expected)


def test_top_p_is_over_what_top_k_left():
  logits = rows_with_ties()
  kept = kept_by(Sampler(top_k=4), logits)
  expected = [
    keep_top_p(np.where(k, row, -np.inf), 0.6123456) & k
    for k, row in zip(kept, logits, strict=True)
  ]
  got = kept_by(Sampler(top_k=4, top_p=0.6123456), logits)
  np.testing.assert_array_equal(got, expected)


def test_top_p_is_over_probabilities_after_the_temperature():
  logits = rows_with_ties()
  expected = [keep_top_p(row / 4, 0.6123456) for row in logits]
  got = kept_by(Sampler(temperature=4.0, top_p=0.6123456), logits)
  np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
  "sampler", [Sampler(), Sampler(top_k=6), Sampler(top_p=0.99), Sampler(0.0)]
)
def test_a_token_that_cannot_be_is_never_drawn(sampler):
  logits = np.full((500, V), -np.inf, np.float32)
  logits[:, [2, 5]] = 0.0, -1.0
  tokens, scores = sampler(
    sampler.noise(FAST_KEY, logits.shape), jnp.asarray(logits)
  )
  assert set(np.asarray(tokens).tolist()) <= {2, 5}
  assert np.isfinite(scores).all()


@pytest.mark.parametrize("temperature", [1e-3, 1e-10, 1e-30, 1e-38, 1e-42])
@pytest.mark.parametrize("truncation", [{}, {"top_k": 2}, {"top_p": 0.9}])
def test_a_small_temperature_is_greedy(temperature, truncation):
  # No two logits of a row nearer than 0.1, 100 times the warmest case.
  rng = np.random.default_rng(2)
  logits = rng.permuted(np.tile(np.arange(V) / 10, (60, 1)), axis=1)
  # All below zero, on both sides of it, all above.
  logits = (logits + np.repeat([[-30], [-0.3], [30]], 20, 0)).astype(np.float32)
  sampler = Sampler(temperature, **truncation)
  tokens, _ = sampler(
    sampler.noise(FAST_KEY, logits.shape), jnp.asarray(logits)
  )
  np.testing.assert_array_equal(tokens, logits.argmax(axis=-1))


# Stop tokens.


def count_up(carry, token):
  """After t comes t + 1."""
  return carry, jax.nn.one_hot((token + 1) % V, V)


def count(starts, num_tokens, **kwargs):
  logits = jax.nn.one_hot(jnp.array(starts), V)
  _, _, drawn = decoding.sample(
    count_up,
    (),
    logits,
    KEY,
    num_tokens=num_tokens,
    sampler=Sampler(temperature=0.0),
    **kwargs,
  )
  return drawn


def test_without_stop_tokens_no_row_ends():
  drawn = count([5, 0], 4)
  assert drawn.tokens.tolist() == [[5, 6, 0, 1], [0, 1, 2, 3]]
  assert drawn.done.tolist() == [False, False]


def test_a_stop_token_is_repeated_to_the_end_of_its_row():
  drawn = count([3, 0, 4, 5], 4, stop_tokens=(4,))
  assert drawn.tokens.tolist() == [
    [3, 4, 4, 4],
    [0, 1, 2, 3],
    [4, 4, 4, 4],
    [5, 6, 0, 1],
  ]
  assert drawn.done.tolist() == [True, False, True, False]


def test_any_of_several_stop_tokens_ends_a_row():
  drawn = count([3, 1, 5], 4, stop_tokens=(4, 2))
  assert drawn.tokens.tolist() == [[3, 4, 4, 4], [1, 2, 4, 4], [5, 6, 0, 1]]
  assert drawn.done.tolist() == [True, True, False]


def test_a_stop_token_has_a_score_and_what_follows_scores_zero():
  scores = np.asarray(count([3], 4, stop_tokens=(4,)).scores)
  # The others have a logit of 0 to its 1: -log(1 + 6 / e).
  np.testing.assert_allclose(scores, [[-1.1654] * 2 + [0, 0]], atol=1e-4)


def test_a_row_that_is_done_already_scores_zero_and_stays_done():
  drawn = count([0, 0], 3, stop_tokens=(6,), done=jnp.array([True, False]))
  assert drawn.scores[0].tolist() == [0, 0, 0]
  assert drawn.tokens[1].tolist() == [0, 1, 2]
  assert drawn.done.tolist() == [True, False]


# Blocks.


def in_blocks(sizes, sampler, stop_tokens=()):
  """`sample` block by block, as a stream calls it."""

  @jax.jit(static_argnums=4)
  def block(carry, logits, first, done, num_tokens):
    return decoding.sample(
      step,
      carry,
      logits,
      KEY,
      num_tokens=num_tokens,
      sampler=sampler,
      stop_tokens=stop_tokens,
      first=first,
      done=done,
    )

  carry, logits = fresh()
  done = jnp.zeros(len(START), bool)
  blocks, first = [], 0
  for size in sizes:
    carry, logits, drawn = block(carry, logits, jnp.int32(first), done, size)
    blocks.append(drawn)
    done, first = drawn.done, first + size
  return logits, decoding.Sampled(
    jnp.concatenate([b.tokens for b in blocks], axis=1),
    jnp.concatenate([b.scores for b in blocks], axis=1),
    done,
  )


@pytest.mark.parametrize(
  "sampler,stop_tokens",
  [(SAMPLERS[0], ()), (SAMPLERS[0], (3,)), (SAMPLERS[0], (2, 5))]
  + [(SAMPLERS[1], ())],
)
def test_the_text_is_the_same_for_any_size_of_block(sampler, stop_tokens):
  expected_logits, expected = in_blocks([12], sampler, stop_tokens)
  for sizes in [1] * 12, [3, 1, 1, 3, 3, 1]:
    logits, got = in_blocks(sizes, sampler, stop_tokens)
    assert_same(got, expected)
    np.testing.assert_array_equal(logits, expected_logits)


def test_the_carry_and_logits_that_come_back_are_those_after_the_last_token():
  carry, logits, drawn = draw()
  assert carry.tolist() == [8] * 4
  np.testing.assert_array_equal(
    logits, TABLE[7 % 3, np.asarray(drawn.tokens[:, -1])]
  )


def test_no_tokens_leave_carry_and_logits_as_they_were():
  carry, logits, drawn = draw(num_tokens=0)
  assert drawn.tokens.shape == drawn.scores.shape == (4, 0)
  assert carry.tolist() == [0] * 4
  np.testing.assert_array_equal(logits, START)


def test_noise_in_bulk_and_token_by_token_draw_the_same(monkeypatch):
  _, _, in_bulk = draw(KEY, sampler=SAMPLERS[1])
  monkeypatch.setattr(sampling, "BULK_NOISE", 0)
  _, _, one_by_one = draw.__wrapped__(KEY, sampler=SAMPLERS[1])
  assert_same(one_by_one, in_bulk)


def test_noise_is_in_bulk_up_to_its_limit(monkeypatch):
  size = 8 * len(START) * V  # of the noise of eight tokens
  largest = []
  for limit in (size - 1, size):
    monkeypatch.setattr(sampling, "BULK_NOISE", limit)
    jaxpr = jax.make_jaxpr(lambda: draw.__wrapped__(sampler=SAMPLERS[1]))()
    largest.append(
      max(
        variable.aval.size
        for equation in jaxpr.jaxpr.eqns
        for variable in itertools.chain(equation.invars, equation.outvars)
      )
    )
  below, at = largest
  assert below < size <= at


# Arguments.


@pytest.mark.parametrize(
  "wrong",
  [
    {"temperature": -0.1},
    {"temperature": float("nan")},
    {"temperature": float("inf")},
    {"top_k": -1},
    {"top_p": 0.0},
    {"top_p": -0.5},
    {"top_p": 1.5},
    {"top_p": float("nan")},
  ],
)
def test_a_value_out_of_its_range_is_refused(wrong):
  [name] = wrong
  with pytest.raises(ValueError, match=name):
    Sampler(**wrong)


def test_tokens_are_int32():
  assert draw()[2].tokens.dtype == jnp.int32
