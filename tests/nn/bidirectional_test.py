import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis.extra import numpy as npst

from recurrent import unroll
from recurrent.cells import CELLS, GRU, LSTM
from recurrent.nn import Bidirectional, sequence_ends
from tests.cells.cases import assert_close, assert_same_bits, law

B, T, D, H = 3, 6, 2, 4


def layer(cell=None, **options):
  cell = LSTM(H) if cell is None else cell
  return Bidirectional(cell, D, rngs=nnx.Rngs(0), **options)


BOTH, SWAPPED = layer(GRU(H)), layer(GRU(H))
SWAPPED.forward.params = BOTH.backward.params
SWAPPED.backward.params = BOTH.forward.params


@nnx.jit
def run(module, carry, inputs, mask):
  return module(carry, inputs, mask=mask)


def drawn(seed=0):
  random = np.random.default_rng(seed)
  inputs = random.normal(size=(B, T, D)).astype(np.float32)
  mask = np.arange(T) < np.array([[T], [4], [0]])
  return jnp.asarray(inputs), jnp.asarray(mask)


@pytest.mark.parametrize("merge", ["concat", "sum", "average", "product"])
def test_outputs_are_those_of_both_directions_merged(merge):
  module = layer(merge=merge)
  inputs, mask = drawn()
  (past, future), outputs = module(None, inputs, mask=mask)
  halves = []
  for part, reverse, carry in (
    (module.forward, False, past),
    (module.backward, True, future),
  ):
    want = unroll(
      LSTM(H), part.cell_params(), None, inputs, mask=mask, reverse=reverse
    )
    halves.append(want[1])
    assert_close(carry, want[0], 1e-6)
  a, b = map(np.asarray, halves)
  want = {
    "concat": np.concatenate([a, b], -1),
    "sum": a + b,
    "average": (a + b) / 2,
    "product": a * b,
  }[merge]
  np.testing.assert_allclose(outputs, want, rtol=1e-6)
  assert outputs.shape == (B, T, 2 * H if merge == "concat" else H)
  assert not np.asarray(outputs)[~np.asarray(mask)].any()


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before", "min_gru"])
def test_a_flipped_sequence_with_swapped_weights_gives_flipped_outputs(name):
  module = layer(CELLS[name](H), merge="sum")
  inputs, _ = drawn()
  (past, future), outputs = module(None, inputs)
  module.forward.params, module.backward.params = (
    module.backward.params,
    module.forward.params,
  )
  (behind, ahead), flipped = module(None, inputs[:, ::-1])
  assert_close(flipped[:, ::-1], outputs, 1e-6)
  assert_close((behind, ahead), (future, past), 1e-6)


@law
@given(mask=npst.arrays(bool, (B, T)))
def test_flip_and_swap_is_flip_whatever_is_masked(mask):
  # Rows of any length, with holes, and rows that are empty.
  inputs, _ = drawn()
  carry = jax.tree.map(lambda x: x + 0.5, BOTH.initial_carry(B))
  (past, future), outputs = run(BOTH, carry, inputs, mask)
  (behind, ahead), flipped = run(
    SWAPPED, carry[::-1], inputs[:, ::-1], mask[:, ::-1]
  )
  halves = jnp.split(flipped[:, ::-1], 2, axis=-1)
  assert_close(jnp.concatenate(halves[::-1], axis=-1), outputs, 1e-6)
  assert_close((behind, ahead), (future, past), 1e-6)
  # Flipped twice it is the first again, to the bit.
  twice = run(BOTH, carry, inputs[:, ::-1][:, ::-1], mask[:, ::-1][:, ::-1])
  assert_same_bits(twice[1], outputs)
  empty = ~mask.any(axis=1)
  for got, start in zip((past, future), carry, strict=True):
    assert_same_bits(
      *(jax.tree.map(lambda x: x[empty], t) for t in (got, start))
    )
  assert not np.asarray(outputs)[~mask].any()


def test_padding_changes_no_row_of_another_length():
  module = layer()
  inputs, mask = drawn()
  _, together = module(None, inputs, mask=mask)
  for row, length in enumerate([T, 4]):
    _, alone = module(None, inputs[row : row + 1, :length])
    assert_close(together[row : row + 1, :length], alone, 1e-6)


def test_sequences_in_one_row_do_not_see_each_other():
  module = layer(GRU(H))
  inputs, _ = drawn()
  # Two sequences, with a gap between them that is not real.
  mask = jnp.ones((B, T), bool).at[:, 2].set(False)
  resets = jnp.zeros((B, T), bool).at[:, 3].set(True)
  _, outputs = module(None, inputs, mask=mask, resets=resets)
  _, first = module(None, inputs[:, :2])
  _, second = module(None, inputs[:, 3:])
  assert_close(outputs[:, :2], first, 1e-6)
  assert_close(outputs[:, 3:], second, 1e-6)


@law
@given(begins=npst.arrays(bool, (2, T)), mask=npst.arrays(bool, (2, T)))
def test_a_sequence_ends_where_the_next_real_time_step_begins_one(begins, mask):
  got = np.asarray(sequence_ends(jnp.asarray(begins), jnp.asarray(mask)))
  for row in range(2):
    real = [t for t in range(T) if mask[row, t]]
    ends = [t for t, n in zip(real, real[1:], strict=False) if begins[row, n]]
    assert [t for t in range(T) if got[row, t]] == ends


def test_carries_go_in_and_come_out():
  module = layer()
  inputs, _ = drawn()
  carry = jax.tree.map(lambda x: x + 0.5, module.initial_carry(B))
  (past, _), _ = module(carry, inputs)
  want = unroll(LSTM(H), module.forward.cell_params(), carry[0], inputs)[0]
  assert_close(past, want, 1e-6)


def test_an_unknown_merge_is_refused():
  with pytest.raises(ValueError, match="merge must be one of .*'mean'"):
    layer(merge="mean")
