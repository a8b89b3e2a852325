import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from recurrent import decoding
from recurrent.decoding import Sampler

KEY = jax.random.key(0)
V = 7
RNG = np.random.default_rng(0)
# A chain with a memory: the next logits depend on the token and on how many
# there have been.
TABLE = jnp.asarray(2 * RNG.normal(size=(3, V, V)), jnp.float32)
START = jnp.asarray(2 * RNG.normal(size=(4, V)), jnp.float32)
ZERO = jnp.zeros(4, jnp.int32)


def weighted(table, carry, token):
  return carry + 1, table[carry % 3, token]


STEP = jax.tree_util.Partial(weighted, TABLE)


def joined(blocks):
  """Tokens, scores and lengths of all blocks together."""
  blocks = list(blocks)
  return (
    np.concatenate([block.tokens for block in blocks], axis=1),
    np.concatenate([block.scores for block in blocks], axis=1),
    np.sum([block.lengths for block in blocks], axis=0),
  )


@pytest.mark.parametrize("step", [STEP, lambda *args: STEP(*args)])
@pytest.mark.parametrize("sampler", [Sampler(0.0), Sampler(2.0, top_k=4)])
@pytest.mark.parametrize("num_tokens", [1, 4, 5, 11])
def test_the_blocks_joined_are_what_sample_draws(num_tokens, sampler, step):
  expected = decoding.sample(
    step, ZERO, START, KEY, num_tokens=num_tokens, sampler=sampler
  )[2]
  blocks = [
    *decoding.stream(
      step,
      ZERO,
      START,
      KEY,
      num_tokens=num_tokens,
      block=4,
      sampler=sampler,
    )
  ]
  assert all(isinstance(block.tokens, np.ndarray) for block in blocks)
  widths = [block.tokens.shape[1] for block in blocks]
  assert widths[:-1] == [4] * (len(widths) - 1) and 0 < widths[-1] <= 4
  tokens, scores, lengths = joined(blocks)
  np.testing.assert_array_equal(tokens, expected.tokens)
  np.testing.assert_allclose(scores, expected.scores, rtol=1e-5, atol=1e-6)
  assert lengths.tolist() == [num_tokens] * 4


def test_no_tokens_are_no_blocks():
  assert [*decoding.stream(STEP, ZERO, START, KEY, num_tokens=0)] == []


def test_one_program_draws_any_number_of_tokens():
  traced = []

  def step(table, carry, token):
    traced.append(1)
    return weighted(table, carry, token)

  # Weights on a mesh, as they come from a checkpoint: the results of the first
  # block are placed there too, and must not make another program.
  mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
  everywhere = NamedSharding(mesh, PartitionSpec())
  step = jax.tree_util.Partial(step, jax.device_put(TABLE, everywhere))
  carry, logits = decoding.read(step, ZERO, jnp.zeros((4, 1), jnp.int32))
  traced.clear()
  for num_tokens in (1, 3, 8, 9):
    for _ in decoding.stream(
      step, carry, logits, KEY, num_tokens=num_tokens, block=3
    ):
      assert len(traced) == 1


def test_the_carry_before_the_first_block_can_be_used_again():
  draw = lambda: decoding.stream(STEP, ZERO, START, KEY, num_tokens=9, block=3)
  first, second = joined(draw()), joined(draw())
  np.testing.assert_array_equal(first[0], second[0])
  assert ZERO.tolist() == [0] * 4


# Stop tokens.


def count_up(carry, token):
  """After t comes t + 1."""
  return carry, jax.nn.one_hot((token + 1) % V, V)


def count(starts, num_tokens, **options):
  return decoding.stream(
    count_up,
    (),
    jax.nn.one_hot(jnp.array(starts), V),
    KEY,
    num_tokens=num_tokens,
    sampler=Sampler(0.0),
    **options,
  )


def test_a_length_is_the_number_of_tokens_before_the_stop_token():
  blocks = [*count([3, 0, 4, 5], 6, block=3, stop_tokens=(4,))]
  assert [block.lengths.tolist() for block in blocks] == [
    [1, 3, 0, 3],
    [0, 1, 0, 3],
  ]


def test_a_stop_token_after_the_last_token_that_is_wanted_counts_for_nothing():
  (block,) = count([3], 1, block=3, stop_tokens=(4,))
  assert block.tokens.tolist() == [[3]] and block.lengths.tolist() == [1]


def test_there_are_no_blocks_after_all_rows_have_ended():
  assert len([*count([0, 2], 100, block=2, stop_tokens=(4,))]) == 3
  assert len([*count([0, 2], 100, block=5, stop_tokens=(4,))]) == 1


# Prompts.


def test_reading_is_the_step_token_by_token():
  tokens = jnp.array([[1, 2, 0, 5], [6, 6, 3, 1]])
  carry = ZERO[:2]
  for token in tokens.T:
    carry, logits = STEP(carry, token)
  found = decoding.read(STEP, ZERO[:2], tokens)
  np.testing.assert_array_equal(found[0], carry)
  np.testing.assert_allclose(found[1], logits, rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 0), (2,)])
def test_a_prompt_without_a_token_is_refused(shape):
  with pytest.raises(ValueError, match="at least one time step, got"):
    decoding.read(STEP, ZERO[:2], jnp.zeros(shape, jnp.int32))


@pytest.mark.parametrize("wrong", [{"num_tokens": -1}, {"block": 0}])
def test_a_number_of_tokens_that_cannot_be_is_refused_at_the_call(wrong):
  (name,) = wrong
  with pytest.raises(ValueError, match=name):
    decoding.stream(STEP, ZERO, START, KEY, **{"num_tokens": 1, **wrong})
