"""`TransformerDecoderBlock`: a slow reference, steps, and what is encoded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from jax.test_util import check_grads

from recurrent import decoding, restart
from recurrent.cells import GRU
from recurrent.masking import blank, hold
from recurrent.nn import (
  DecoderCarry,
  Recurrent,
  Stack,
  TransformerBlock,
  TransformerDecoderBlock,
)
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
  shifted,
)
from tests.precision import assert_rounds_as_bfloat16_does

S, E, CONTEXT = 5, 6, 4
# A hole, padding, and nothing to attend to.
SOURCE = np.array([[1, 1, 0, 1, 1], [1, 1, 1, 0, 0], [0] * S], bool)


def make(dtype=np.float64, context=CONTEXT, **options):
  block = TransformerDecoderBlock(
    D,
    heads=HEADS,
    context=context,
    encoded_features=E,
    rngs=nnx.Rngs(0),
    **options,
  )
  return shifted(block, dtype)


@functools.cache
def compiled(**options):
  """Whole, in two parts, and step by step: outputs and past of each."""
  with jax.enable_x64(True):
    block = make(**options)

  def whole(carry, inputs, mask, resets):
    return block(carry, inputs, mask=mask, resets=resets)

  def begun(encoded, source):
    return block.begin(encoded, source)

  def parts(carry, inputs, mask, resets):
    cut = lambda part: [x[:, part] for x in (inputs, mask, resets)]
    carry, before = whole(carry, *cut(slice(5)))
    carry, after = whole(carry, *cut(slice(5, None)))
    return carry, jnp.concatenate([before, after], axis=1)

  def steps(carry, inputs, mask, resets):
    initial = carry._replace(past=block.attention.initial_carry(B))

    def step(carry, now):
      x, mask, resets = now
      start = restart(resets & mask, initial, carry)
      new, outputs = block.step(start, block.project(x), x.dtype)
      return hold(mask, new, carry), blank(mask, outputs)

    time_major = [jnp.swapaxes(x, 0, 1) for x in (inputs, mask, resets)]
    carry, outputs = jax.lax.scan(step, carry, tuple(time_major))
    return carry, jnp.swapaxes(outputs, 0, 1)

  return block, *(jit(run) for run in (begun, whole, parts, steps))


sources = npst.arrays(bool, (B, S))


@pytest.mark.parametrize("options", [{}, {"norm": "rms", "gated": True}])
@law
@given(mask=flags, resets=flags, source=sources, seed=st.integers(0, 99))
def test_it_is_the_formulas_time_step_by_time_step(
  x64, options, mask, resets, source, seed
):
  block, begin, whole, _, _ = compiled(**options)
  inputs, encoded = drawn(B, T, D, seed=seed), drawn(B, S, E, seed=seed + 100)
  carry = begin(encoded, source)
  _, outputs = whole(carry, inputs, mask, resets)
  for row in range(B):
    real = encoded[row][source[row]]
    want = by_hand(block, inputs[row], mask[row], resets[row], real)
    assert_close(outputs[row], want)


@law
@given(mask=flags, resets=flags, before=flags, seed=st.integers(0, 99))
def test_the_whole_is_its_parts_and_its_steps(x64, mask, resets, before, seed):
  _, begin, whole, parts, steps = compiled()
  # Rows that have come differently far to begin with.
  carry, _ = whole(
    begin(drawn(B, S, E, seed=200 + seed), SOURCE),
    drawn(B, T, D, seed=100 + seed),
    before,
    ~before,
  )
  args = carry, drawn(B, T, D, seed=seed), mask, resets
  want = whole(*args)
  assert_close(parts(*args), want)
  assert_close(steps(*args), want)
  assert_same(want[0].encoded, carry.encoded)


def test_with_nothing_to_attend_to_it_is_a_transformer_block():
  # The attention to what is encoded adds nothing, having no bias.
  decoder = make(np.float32)
  block = TransformerBlock(D, heads=HEADS, context=CONTEXT, rngs=nnx.Rngs(0))
  block.attention, block.mlp = decoder.attention, decoder.mlp
  inputs = jnp.asarray(drawn(B, T, D, dtype=np.float32))
  carry = decoder.begin(jnp.ones((B, S, E)), np.zeros((B, S), bool))
  past, want = block(None, inputs, mask=MASK, resets=RESETS)
  after, outputs = decoder(carry, inputs, mask=MASK, resets=RESETS)
  assert_same((after.past, outputs), (past, want))


def everything(block, inputs, encoded):
  """Outputs and past, and the gradients of everything."""
  graphdef, params = nnx.split(block)

  def loss(params, inputs, encoded):
    block = nnx.merge(graphdef, params)
    carry, outputs = block(
      block.begin(encoded, SOURCE), inputs, mask=MASK, resets=RESETS
    )
    return jnp.sum(jnp.cos(outputs)), (carry.past, outputs)

  grad = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
  return jit(grad)(params, inputs, encoded)


def test_garbage_behind_either_mask_changes_no_bit():
  block = make(np.float32)
  inputs, encoded = (
    drawn(B, *shape, dtype=np.float32) for shape in ((T, D), (S, E))
  )
  clean = everything(block, inputs, encoded)
  dirty = everything(block, garbage(inputs, MASK), garbage(encoded, SOURCE))
  assert_same(dirty, clean)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(dirty))
  (_, (_, outputs)), (_, d_inputs, d_encoded) = dirty
  assert not np.asarray(outputs)[~MASK].any()
  assert not np.asarray(d_inputs)[~MASK].any()
  assert not np.asarray(d_encoded)[~SOURCE].any()
  assert np.asarray(d_encoded)[SOURCE].all()


def test_gradients_are_those_of_finite_differences(x64):
  graphdef, params = nnx.split(make())

  def run(params, inputs, encoded):
    block = nnx.merge(graphdef, params)
    carry = block.begin(encoded, jnp.asarray(SOURCE))
    flags = {"mask": jnp.asarray(MASK), "resets": jnp.asarray(RESETS)}
    return block(carry, inputs, **flags)[1]

  args = params, jnp.asarray(drawn(B, T, D)), jnp.asarray(drawn(B, S, E))
  check_grads(jax.jit(run), args, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_bfloat16_stays_and_the_past_is_float32():
  block = make(np.float32)
  inputs, encoded = (
    jnp.asarray(drawn(B, *shape, dtype=np.float32))
    for shape in ((T, D), (S, E))
  )
  run = jit(lambda x, e: block(block.begin(e, SOURCE), x, mask=MASK))
  carry, _ = run(*(x.astype(jnp.bfloat16) for x in (inputs, encoded)))
  step = jit(lambda c, x: block.step(c, block.project(x), x.dtype))
  _, last = step(carry, inputs[:, 0].astype(jnp.bfloat16))
  assert last.dtype == jnp.bfloat16
  assert carry.encoded.keys.dtype == jnp.bfloat16
  assert carry.past.keys.dtype == jnp.float32
  assert_rounds_as_bfloat16_does(
    block,
    lambda block, x, e: block(block.begin(e, SOURCE), x, mask=MASK)[1],
    inputs,
    encoded,
  )


def test_dropout_is_on_what_each_part_adds_by_itself():
  rows, inputs = 20, jnp.zeros((20, 10, D))
  plain, block = make(np.float32), make(np.float32, dropout=0.5)
  for module in (plain, block):
    # The attention to the past and the MLP add nothing but the MLP's bias.
    for sublayer in (module.attention.heads, module.mlp):
      sublayer.output[...] = jnp.zeros_like(sublayer.output[...])
    module.mlp.output_bias[...] = jnp.full((D,), 100.0)

  @jit
  def run(encoded):
    outputs = lambda block, key: block(block.begin(encoded), inputs, key=key)[1]
    return outputs(plain, None), outputs(block, jax.random.key(0))

  def parts(outputs):
    """What the attention to what is encoded added, and what the MLP did."""
    outputs = np.asarray(outputs)
    mlp = 100 * np.round(outputs / 100)
    return outputs - mlp, mlp

  added, dropped = map(parts, run(jnp.ones((rows, S, E))))
  kept = [part != 0 for part in dropped]
  for was, now, here in zip(added, dropped, kept, strict=True):
    np.testing.assert_allclose(now[here], 2 * was[here], rtol=1e-3)
  # 1,600 entries: four standard deviations.
  for rate in (*(here.mean() for here in kept), (kept[0] == kept[1]).mean()):
    np.testing.assert_allclose(rate, 0.5, atol=0.05)


# In a stack, as a translator.


def test_a_stack_decodes_what_the_whole_prefix_gives_with_reordered_rows():
  rngs = nnx.Rngs(0)
  recurrent = Recurrent(GRU(D), D, rngs=rngs)
  block = lambda: TransformerDecoderBlock(
    D, heads=HEADS, context=16, encoded_features=E, rngs=rngs
  )
  layers = [block(), recurrent, block()]
  stack = Stack(layers, residual=True)
  table = 2 * jax.random.normal(rngs.params(), (11, D))
  head = jax.random.normal(rngs.params(), (D, 11))
  encoded = jnp.asarray(drawn(B, S, E, dtype=np.float32))

  def begin(encoded, source):
    return tuple(
      layer.begin(encoded, source)
      if isinstance(layer, TransformerDecoderBlock)
      else layer.initial_carry(B)
      for layer in stack.layers
    )

  prompt = np.random.default_rng(0).integers(0, 11, (B, 3))
  order = np.array([2, 0, 1])

  @jit
  def decode():
    step = stack.step_over(table)

    def next_one(carry, token):
      carry, outputs = step(carry, token)
      return carry, outputs @ head

    carry, outputs = stack(begin(encoded, SOURCE), table[prompt])
    # As beams are reordered: each leaf is [batch, ...].
    carry, logits = jax.tree.map(
      lambda x: x[order], (carry, outputs[:, -1] @ head)
    )
    return decoding.sample(
      next_one,
      carry,
      logits,
      jax.random.key(0),
      num_tokens=6,
    )[2]

  sampled = decode()
  tokens = np.concatenate([prompt[order], sampled.tokens], axis=1)
  _, outputs = jit(
    lambda tokens: stack(
      begin(encoded[order], SOURCE[order]), table[tokens[:, :-1]]
    )
  )(tokens)
  scores = jax.nn.log_softmax(outputs[:, 2:] @ head, axis=-1)
  scores = np.take_along_axis(np.asarray(scores), tokens[:, 3:, None], axis=-1)
  np.testing.assert_allclose(sampled.scores, scores[..., 0], atol=1e-4)
  assert len(np.unique(tokens[:, 3:])) > 3


# What is refused.


@pytest.mark.parametrize("carry", [None, (), "past"])
def test_a_carry_that_does_not_come_from_begin_is_refused(carry):
  block = make(np.float32)
  if carry == "past":
    carry = block.attention.initial_carry(B)
  with pytest.raises(ValueError, match=r"carry must come from `begin"):
    block(carry, jnp.ones((B, T, D)))


def test_what_does_not_fit_the_inputs_is_refused():
  block, inputs = make(np.float32), jnp.ones((B, T, D))
  carry = block.begin(jnp.ones((B, S, E)))
  assert isinstance(carry, DecoderCarry)
  with pytest.raises(ValueError, match="carry must be .* got"):
    block(carry, inputs[:2])
  with pytest.raises(ValueError, match="query must be .* as the keys are"):
    block(carry, inputs.astype(jnp.bfloat16))
  with pytest.raises(ValueError, match="inputs must be"):
    block(carry, inputs[:, :, 1:])
  with pytest.raises(ValueError, match="encoded must be"):
    block.begin(jnp.ones((B, S, E + 1)))
  with pytest.raises(ValueError, match="mask must be"):
    block.begin(jnp.ones((B, S, E)), SOURCE.T)
  with pytest.raises(ValueError, match="encoded_features.*0"):
    TransformerDecoderBlock(
      D, heads=2, context=4, encoded_features=0, rngs=nnx.Rngs(0)
    )
