import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from recurrent import cells, decoding, restart
from recurrent.masking import blank, hold
from recurrent.nn import (
  Recurrent,
  Stack,
  TransformerBlock,
  TransformerCarry,
)
from recurrent.nn.attention import rotate
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

# Shorter than the sequence, as long as a part, longer than the sequence.
CONTEXTS = (1, 3, 4, 16)


def make(context=4, dtype=np.float64, seed=0, **options):
  return shifted(
    TransformerBlock(
      D, heads=HEADS, context=context, rngs=nnx.Rngs(seed), **options
    ),
    dtype,
  )


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(
  "options", [{}, {"norm": "rms", "gated": True, "mlp_features": 5}]
)
def test_it_is_the_formulas_time_step_by_time_step(x64, context, options):
  module, inputs = make(context, **options), drawn(B, T, D)
  _, outputs = jit(lambda x: module(None, x, mask=MASK, resets=RESETS))(inputs)
  for row in range(B):
    want = by_hand(module, inputs[row], MASK[row], RESETS[row])
    assert_close(outputs[row], want)


def test_a_rotated_product_depends_on_the_distance_only(x64):
  q, k = (jnp.asarray(drawn(1, 1, 6, seed=s)) for s in (0, 1))
  at = lambda x, position: rotate(x, jnp.array([position]))
  near = jnp.vdot(at(q, 5), at(k, 2))
  np.testing.assert_allclose(jnp.vdot(at(q, 1005), at(k, 1002)), near)
  np.testing.assert_allclose(jnp.vdot(at(q, 0), at(k, -3)), near)
  assert abs(jnp.vdot(at(q, 5), at(k, 3)) - near) > 1e-3


# The law of the carry.


@functools.cache
def compiled(context, cut):
  """Whole, in two parts, and step by step: carries and outputs of each."""
  with jax.enable_x64(True):
    module = make(context)

  def whole(carry, inputs, mask, resets):
    return module(carry, inputs, mask=mask, resets=resets)

  def parts(carry, inputs, mask, resets):
    first, second = (
      [x[:, part] for x in (inputs, mask, resets)]
      for part in (slice(cut), slice(cut, None))
    )
    carry, before = whole(carry, *first)
    carry, after = whole(carry, *second)
    return carry, jnp.concatenate([before, after], axis=1)

  def steps(carry, inputs, mask, resets):
    initial = module.initial_carry(B)

    def time_step(carry, now):
      x, mask, resets = now
      start = restart(resets & mask, initial, carry)
      new, outputs = module.step(start, module.project(x), x.dtype)
      return hold(mask, new, carry), blank(mask, outputs)

    time_major = [jnp.swapaxes(x, 0, 1) for x in (inputs, mask, resets)]
    carry, outputs = jax.lax.scan(time_step, carry, tuple(time_major))
    return carry, jnp.swapaxes(outputs, 0, 1)

  return module, *(jit(run) for run in (whole, parts, steps))


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("cut", [1, 6])
@law
@given(mask=flags, resets=flags, before=flags, seed=st.integers(0, 99))
def test_the_whole_is_its_parts_and_its_steps(
  x64, context, cut, mask, resets, before, seed
):
  module, whole, parts, steps = compiled(context, cut)
  # Rows that have come differently far to begin with.
  carry, _ = whole(
    module.initial_carry(B), drawn(B, T, D, seed=100 + seed), before, ~before
  )
  args = carry, drawn(B, T, D, seed=seed), mask, resets
  want = whole(*args)
  assert_close(parts(*args), want)
  assert_close(steps(*args), want)


def test_gradients_through_the_carry_are_those_of_the_whole(x64):
  module, whole, parts, steps = compiled(4, 6)
  inputs = jnp.asarray(drawn(B, T, D))

  def loss(run):
    def of(keys, values, inputs):
      time_steps = jnp.array([4, 5, 7], jnp.int32)
      carry, outputs = run.__wrapped__(
        TransformerCarry(keys, values, time_steps), inputs, MASK, RESETS
      )
      return sum(jnp.sum(jnp.sin(x)) for x in (outputs, *carry[:2]))

    return jit(jax.grad(of, (0, 1, 2)))

  shape = B, 4, HEADS, D // HEADS
  args = jnp.asarray(drawn(*shape)), jnp.asarray(drawn(*shape, seed=1)), inputs
  want = loss(whole)(*args)
  assert all(np.abs(x).max() > 0.1 for x in want)
  assert_close(loss(parts)(*args), want)
  assert_close(loss(steps)(*args), want)


def test_a_row_with_no_real_time_step_holds_its_carry_to_the_bit():
  module = make(dtype=np.float32)
  run = jit(module.__call__)
  carry, _ = run(None, drawn(B, 6, D, dtype=np.float32))
  inputs = garbage(drawn(B, T, D, dtype=np.float32), MASK)
  # In bfloat16, in which the carry has no place.
  inputs = jnp.asarray(inputs, jnp.bfloat16)
  after, outputs = run(carry, inputs, mask=MASK, resets=RESETS)
  assert_same(*(jax.tree.map(lambda x: x[2], x) for x in (after, carry)))
  assert not np.asarray(outputs)[2].any()


def test_the_count_stays_small_however_many_time_steps_there_are(x64):
  module = make(context=3)

  @jit
  def run(carry, inputs):
    def time_step(carry, x):
      carry, _ = module.step(carry, module.project(x), x.dtype)
      return carry, carry.time_steps

    return jax.lax.scan(time_step, carry, inputs)

  carry, time_steps = run(module.initial_carry(1), drawn(10, 1, D))
  assert time_steps[:, 0].tolist() == [1, 2, 3, 4, 5, 3, 4, 5, 3, 4]
  assert carry.time_steps.dtype == jnp.int32


# What a time step sees, and what it does not.


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_jacobian_is_zero_just_where_a_time_step_is_not_seen(context):
  module, inputs = make(context, np.float32), drawn(B, T, D, dtype=np.float32)
  run = lambda x: module(None, x, mask=MASK, resets=RESETS)[1].sum(0)
  jacobian = np.asarray(jit(jax.jacrev(run))(inputs))  # [T, D, B, T, D]
  depends = (jacobian != 0).any((1, 4))
  for row in range(B):
    past = []
    for t in range(T):
      if not MASK[row, t]:
        assert not depends[t, row].any()
        continue
      past = [t] if RESETS[row, t] else [*past, t]
      assert np.flatnonzero(depends[t, row]).tolist() == past[-context:]


@pytest.mark.parametrize("context", CONTEXTS)
def test_garbage_at_masked_time_steps_changes_no_bit(context):
  module, inputs = make(context, np.float32), drawn(B, T, D, dtype=np.float32)
  clean = results(module, inputs, MASK, RESETS)
  dirty = results(module, garbage(inputs, MASK), MASK, RESETS)
  assert_same(dirty, clean)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(dirty))
  (_, (_, outputs)), (_, d_inputs) = dirty
  assert not np.asarray(outputs)[~MASK].any()
  assert not np.asarray(d_inputs)[~MASK].any()


def test_resets_at_masked_time_steps_do_nothing():
  module, inputs = make(dtype=np.float32), drawn(B, T, D, dtype=np.float32)
  run = functools.partial(results, module, inputs, MASK)
  assert_same(run(RESETS | ~MASK), run(RESETS & MASK))


@pytest.mark.parametrize("gated,norm", [(False, "layer"), (True, "rms")])
def test_gradients_are_those_of_finite_differences(x64, gated, norm):
  graphdef, params = nnx.split(make(gated=gated, norm=norm))

  def run(params, inputs):
    carry, outputs = nnx.merge(graphdef, params)(
      None, inputs, mask=jnp.asarray(MASK), resets=jnp.asarray(RESETS)
    )
    return carry[:2], outputs

  args = params, jnp.asarray(drawn(B, T, D))
  check_grads(jax.jit(run), args, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_bfloat16_stays_and_the_carry_is_float32():
  module, inputs = make(dtype=np.float32), drawn(B, T, D, dtype=np.float32)
  narrow = jnp.asarray(inputs, jnp.bfloat16)
  carry, outputs = jit(lambda x: module(None, x))(narrow)
  step = jit(lambda c, x: module.step(c, module.project(x), x.dtype))
  stepped, last = step(carry, narrow[:, 0])
  assert outputs.dtype == last.dtype == jnp.bfloat16
  for x in (carry, stepped):
    assert x.keys.dtype == x.values.dtype == jnp.float32
  assert_rounds_as_bfloat16_does(
    module, lambda module, inputs: module(None, inputs)[1], inputs
  )


def test_a_step_is_in_the_dtype_that_it_is_told():
  module = make(dtype=np.float32)
  projected = module.project(jnp.ones((B, D)))
  _, outputs = module.step(module.initial_carry(B), projected, jnp.bfloat16)
  assert outputs.dtype == jnp.bfloat16


# Dropout.


def without(module, *names):
  """The block with some parameters at zero."""
  for name in names:
    part = functools.reduce(getattr, name.split("."), module)
    part[...] = jnp.zeros_like(part[...])
  return module


def test_dropout_is_on_what_attention_and_mlp_add_each_by_itself():
  make_it = lambda: make(dtype=np.float32, dropout=0.5)
  inputs, key = drawn(20, 10, D, dtype=np.float32), jax.random.key(0)

  def kept(module):
    run = jit(lambda x, key: module(None, x, key=key)[1])
    plain, dropped = run(inputs, None), run(inputs, key)
    added, before = np.asarray(dropped - inputs), np.asarray(plain - inputs)
    kept = added != 0
    np.testing.assert_allclose(added[kept], 2 * before[kept], atol=1e-5)
    return kept

  attention = kept(without(make_it(), "mlp.output", "mlp.output_bias"))
  mlp = kept(without(make_it(), "attention.heads.output"))
  # 1,600 entries: four standard deviations.
  for rate in (attention.mean(), mlp.mean(), (attention == mlp).mean()):
    np.testing.assert_allclose(rate, 0.5, atol=0.05)


def test_without_a_key_nothing_is_dropped():
  inputs = drawn(B, T, D, dtype=np.float32)
  run = lambda rate: jit(make(dtype=np.float32, dropout=rate).__call__)
  assert_same(run(0.5)(None, inputs), run(0.0)(None, inputs))


def test_in_a_stack_each_block_has_a_key_of_its_own():
  blocks = [
    without(make(dtype=np.float32, dropout=0.5), "attention.heads.output")
    for _ in range(2)
  ]
  for block in blocks:  # it adds one, dropped or doubled
    without(block, "mlp.output").mlp.output_bias[...] = jnp.ones((D,))
  run = jit(lambda x, key: Stack(blocks)(None, x, key=key)[1])
  outputs = np.asarray(run(jnp.zeros((20, 10, D)), jax.random.key(0)))
  assert set(np.unique(outputs).tolist()) == {0, 2, 4}
  # Half of them, if the masks are two: four standard deviations.
  np.testing.assert_allclose((outputs == 2).mean(), 0.5, atol=0.05)


# In a stack, as a language model.


def language_model(context, recurrent=False):
  rngs = nnx.Rngs(0)
  block = lambda: TransformerBlock(D, heads=HEADS, context=context, rngs=rngs)
  middle = [Recurrent(cells.LSTM(D), D, rngs=rngs)] if recurrent else []
  table = 2 * jax.random.normal(rngs.params(), (11, D))
  head = jax.random.normal(rngs.params(), (D, 11))
  return table, Stack([block(), *middle, block()]), head


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("context", [3, 32])
def test_decoding_is_running_the_whole_prefix_again_at_each_token(
  context, recurrent
):
  table, stack, head = language_model(context, recurrent)
  prompt = np.random.default_rng(0).integers(0, 11, (B, 5))
  mask = np.array([[1] * 5, [0, 0, 1, 1, 1], [0, 0, 0, 0, 1]], bool)
  logits = lambda outputs: outputs @ head
  length = 12

  @jit
  def decode(prompt):
    step = stack.step_over(table)

    def next_one(carry, token):
      carry, outputs = step(carry, token)
      return carry, logits(outputs)

    carry, outputs = stack(None, table[prompt], mask=mask)
    return decoding.sample(
      next_one,
      carry,
      logits(outputs[:, -1]),
      jax.random.key(0),
      num_tokens=length,
      sampler=decoding.Sampler(temperature=0.0),
    )[2]

  @jit
  def again(tokens):
    real = jnp.concatenate([mask, jnp.ones((B, length), bool)], axis=1)
    _, outputs = stack(None, table[tokens], mask=real)
    return logits(outputs)

  # Tokens that are not there yet change nothing: one compilation will do.
  tokens = np.concatenate([prompt, np.zeros((B, length), int)], axis=1)
  for n in range(length):
    tokens[:, 5 + n] = np.argmax(again(tokens)[:, 4 + n], axis=-1)
  sampled = decode(prompt)
  np.testing.assert_array_equal(sampled.tokens, tokens[:, 5:])
  assert len(np.unique(sampled.tokens)) > 3
  scores = jax.nn.log_softmax(again(tokens)[:, 4:-1], axis=-1)
  scores = np.take_along_axis(np.asarray(scores), tokens[:, 5:, None], axis=-1)
  np.testing.assert_allclose(sampled.scores, scores[..., 0], atol=1e-4)


def test_modules_that_are_made_alike_have_equal_graphdefs():
  graphdef = lambda **o: nnx.split(make(dtype=np.float32, **o))[0]
  assert graphdef(seed=0) == graphdef(seed=1) != graphdef(context=5)


# Bad arguments.


@pytest.mark.parametrize(
  "options,match",
  [
    ({"heads": 3}, "heads.*8.*3"),
    ({"heads": 8}, "even multiple of heads=8"),
    ({"context": 0}, "context.*0"),
    ({"context": 2.0}, "context.*2.0"),
    ({"mlp_features": -1}, "mlp_features.*-1"),
    ({"norm": "batch"}, "'batch'"),
    ({"features": 0}, "features.*0"),
  ],
)
def test_bad_choices_are_refused(options, match):
  options = {"features": D, "heads": HEADS, "context": 4} | options
  with pytest.raises(ValueError, match=match):
    TransformerBlock(options.pop("features"), **options, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_dropout_that_is_no_rate_is_refused(rate):
  with pytest.raises(ValueError, match="dropout"):
    make(dtype=np.float32, dropout=rate)(None, jnp.ones((1, 1, D)))


@pytest.mark.parametrize(
  "inputs,options,match",
  [
    (jnp.ones((B, D)), {}, "inputs"),
    (jnp.ones((B, T, D + 1)), {}, "inputs"),
    (jnp.ones((B, T, D)), {"mask": MASK.T}, "mask"),
    (jnp.ones((B, T, D)), {"resets": RESETS.astype(int)}, "resets"),
  ],
)
def test_what_is_no_sequence_is_refused(inputs, options, match):
  with pytest.raises(ValueError, match=match):
    make(dtype=np.float32)(None, inputs, **options)


@pytest.mark.parametrize("other", [(4, B + 1), (5, B)])
def test_a_carry_that_does_not_fit_is_refused(other):
  context, batch = other
  carry = make(context, np.float32).initial_carry(batch)
  with pytest.raises(ValueError, match="carry must be"):
    make(4, np.float32)(carry, jnp.ones((B, T, D)))
