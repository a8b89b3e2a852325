"""`TransformerEncoderBlock`: a slow reference, and what each time step sees."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from recurrent.cells import GRU
from recurrent.nn import Recurrent, Stack, TransformerEncoderBlock
from tests.cells.cases import jit, law
from tests.nn.transformer_cases import (
  HEADS,
  MASK,
  RESETS,
  B,
  D,
  T,
  assert_close,
  assert_same,
  by_hand,
  drawn,
  flags,
  garbage,
  results,
  shifted,
)
from tests.precision import assert_rounds_as_bfloat16_does


def make(dtype=np.float64, **options):
  block = TransformerEncoderBlock(D, heads=HEADS, rngs=nnx.Rngs(0), **options)
  return shifted(block, dtype)


@functools.cache
def compiled(**options):
  with jax.enable_x64(True):
    block = make(**options)
  run = lambda x, mask, resets: block(None, x, mask=mask, resets=resets)[1]
  return block, jit(run)


@pytest.mark.parametrize(
  "options", [{}, {"norm": "rms", "gated": True, "mlp_features": 5}]
)
@law
@given(mask=flags, resets=flags, seed=st.integers(0, 99))
def test_it_is_the_formulas_time_step_by_time_step(
  x64, options, mask, resets, seed
):
  (block, run), inputs = compiled(**options), drawn(B, T, D, seed=seed)
  outputs = run(inputs, mask, resets)
  for row in range(B):
    want = by_hand(block, inputs[row], mask[row], resets[row])
    assert_close(outputs[row], want)


def test_without_flags_all_time_steps_are_real_and_of_one_sequence(x64):
  block, inputs = make(), drawn(B, T, D)
  _, outputs = jit(lambda x: block(None, x))(inputs)
  none = np.zeros(T, bool)
  for row in range(B):
    assert_close(outputs[row], by_hand(block, inputs[row], ~none, none))


def test_each_time_step_sees_all_real_ones_of_its_sequence():
  block, inputs = make(np.float32), drawn(B, T, D, dtype=np.float32)
  run = lambda x: block(None, x, mask=MASK, resets=RESETS)[1].sum(0)
  jacobian = np.asarray(jit(jax.jacrev(run))(inputs))  # [T, D, B, T, D]
  depends = (jacobian != 0).any((1, 4))
  numbers = np.cumsum(RESETS & MASK, axis=1)
  for row in range(B):
    for t in range(T):
      seen = MASK[row] & (numbers[row] == numbers[row, t]) & MASK[row, t]
      assert (depends[t, row] == seen).all()


def test_packed_sequences_are_as_they_are_alone():
  block, inputs = make(np.float32), drawn(1, T, D, dtype=np.float32)
  resets = np.arange(T)[None] == 4
  _, packed = block(None, jnp.asarray(inputs), resets=resets)
  for part in (slice(4), slice(4, None)):
    _, alone = block(None, jnp.asarray(inputs[:, part]))
    assert_close(packed[:, part], alone, 1e-5)


def test_garbage_at_masked_time_steps_changes_no_bit():
  block, inputs = make(np.float32), drawn(B, T, D, dtype=np.float32)
  clean = results(block, inputs, MASK, RESETS)
  dirty = results(block, garbage(inputs, MASK), MASK, RESETS)
  assert_same(dirty, clean)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(dirty))
  (_, (_, outputs)), (_, d_inputs) = dirty
  assert not np.asarray(outputs)[~MASK].any()
  assert not np.asarray(d_inputs)[~MASK].any()
  assert np.asarray(d_inputs)[MASK].all()


def test_resets_at_masked_time_steps_do_nothing():
  block, inputs = make(np.float32), drawn(B, T, D, dtype=np.float32)
  run = functools.partial(results, block, inputs, MASK)
  assert_same(run(RESETS | ~MASK), run(RESETS & MASK))


def test_gradients_are_those_of_finite_differences(x64):
  graphdef, params = nnx.split(make())
  run = lambda params, inputs: nnx.merge(graphdef, params)(
    None, inputs, mask=jnp.asarray(MASK), resets=jnp.asarray(RESETS)
  )[1]
  args = params, jnp.asarray(drawn(B, T, D))
  check_grads(jax.jit(run), args, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_it_rounds_as_bfloat16_does():
  assert_rounds_as_bfloat16_does(
    make(np.float32),
    lambda block, inputs: block(None, inputs, mask=MASK)[1],
    drawn(B, T, D, dtype=np.float32),
  )


def test_it_stands_in_a_stack_with_an_empty_carry():
  rngs = nnx.Rngs(0)
  layers = [make(np.float32), Recurrent(GRU(D), D, rngs=rngs), make(np.float32)]
  stack, inputs = Stack(layers), drawn(B, T, D, dtype=np.float32)
  run = jit(lambda carry, x: stack(carry, x, mask=MASK, resets=RESETS))
  carry, outputs = run(stack.initial_carry(B), inputs)
  assert carry[0] == carry[2] == ()
  assert_same(run(None, inputs), (carry, outputs))
  below = jnp.asarray(inputs)
  for layer in layers:
    _, below = layer(None, below, mask=MASK, resets=RESETS)
  assert_close(outputs, below, 1e-5)


def test_dropout_needs_a_key_and_draws_with_it():
  plain, block = make(np.float32), make(np.float32, dropout=0.5)
  inputs = jnp.asarray(drawn(B, T, D, dtype=np.float32))
  assert_same(block(None, inputs)[1], plain(None, inputs)[1])
  one, two = (block(None, inputs, key=jax.random.key(n))[1] for n in (0, 1))
  assert (one != two).any() and (one != plain(None, inputs)[1]).any()


@pytest.mark.parametrize(
  ("options", "match"),
  [
    ({"heads": 3}, "heads.*8.*3"),
    ({"heads": 8}, "even multiple of heads=8"),
    ({"mlp_features": 0}, "mlp_features.*0"),
    ({"norm": "batch"}, "'batch'"),
    ({"features": 0}, "features.*0"),
  ],
)
def test_bad_choices_are_refused(options, match):
  options = {"features": D, "heads": HEADS} | options
  with pytest.raises(ValueError, match=match):
    TransformerEncoderBlock(**options, rngs=nnx.Rngs(0))


def test_a_carry_or_what_is_no_sequence_is_refused():
  block, inputs = make(np.float32), jnp.ones((B, T, D))
  with pytest.raises(ValueError, match=r"carry must be \(\) or None"):
    block((inputs,), inputs)
  with pytest.raises(ValueError, match="inputs must be"):
    block(None, inputs[0])
  with pytest.raises(ValueError, match="mask must be"):
    block(None, inputs, mask=MASK.T)
