"""The encoder-decoder: bulk against step by step, padding, copies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from recurrent import cells, decoding, nn
from recurrent.models import EncoderDecoder

V, H, E, S, T = 11, 8, 6, 5, 4
RNG = np.random.default_rng(0)
SOURCE = jnp.asarray(RNG.integers(0, V, (3, S)))
INPUTS = jnp.asarray(RNG.integers(0, V, (3, T)))
LENGTHS = np.array([5, 3, 1])
MASK = jnp.asarray(np.arange(S) < LENGTHS[:, None])


def make(cell="lstm", attention="additive", two=True, **options):
  rngs = nnx.Rngs(0)
  layer = nn.Bidirectional if two else nn.Recurrent
  encoder = nn.Stack([layer(cells.get(cell)(H), E, rngs=rngs)])
  width = E + H * options.get("feeding", False)
  width = H if options.get("tied") else width
  decoder = nn.Stack(
    [
      nn.Recurrent(cells.get(cell)(H), width, rngs=rngs),
      nn.Recurrent(cells.get(cell)(H), H, rngs=rngs),
    ]
  )
  wide = encoder.features
  found = {
    "none": lambda: None,
    "additive": lambda: nn.AdditiveAttention(H, wide, 7, rngs=rngs),
    "coverage": lambda: nn.AdditiveAttention(
      H, wide, 7, coverage=True, rngs=rngs
    ),
    "local_m": lambda: nn.LocalAttention(H, wide, window=1, rngs=rngs),
    "local_p": lambda: nn.LocalAttention(
      H, wide, window=2, predicted=True, rngs=rngs
    ),
    "general": lambda: nn.MultiplicativeAttention(H, wide, rngs=rngs),
    "multi_head": lambda: nn.MultiHeadAttention(H, wide, H, heads=2, rngs=rngs),
  }[attention]()
  return EncoderDecoder(
    V, V, encoder, decoder, attention=found, rngs=rngs, **options
  )


def transformer():
  rngs = nnx.Rngs(0)
  encoder = [nn.TransformerEncoderBlock(H, heads=2, rngs=rngs), nn.Norm(H)]
  block = nn.TransformerDecoderBlock(
    H, heads=2, context=9, encoded_features=H, rngs=rngs
  )
  stacks = nn.Stack(encoder), nn.Stack([block, nn.Norm(H)])
  return EncoderDecoder(V, V, *stacks, tied=True, shared=True, rngs=rngs)


KINDS = {
  "plain": functools.partial(make, attention="none"),
  "additive": make,
  "general": functools.partial(make, "gru", "general", two=False),
  "multi_head": functools.partial(make, "lru", "multi_head"),
  "coverage": functools.partial(make, attention="coverage"),
  "local_m": functools.partial(make, attention="local_m"),
  "local_p": functools.partial(make, attention="local_p"),
  "copying": functools.partial(make, copying=True),
  "feeding": functools.partial(make, feeding=True, attention="general"),
  "tied": functools.partial(make, tied=True),
  "transformer": transformer,
}


@functools.partial(jax.jit, static_argnums=0)
def call(graphdef, params, source, mask, inputs):
  return nnx.merge(graphdef, params)(source, mask, inputs)


@functools.partial(jax.jit, static_argnums=0)
def steps(graphdef, params, source, mask, inputs):
  model = nnx.merge(graphdef, params)
  carry = model.begin(model.encode(source, mask))
  _, logits = jax.lax.scan(model.decoder(), carry, inputs.T)
  return jnp.swapaxes(logits, 0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_token_by_token_is_all_at_once(kind):
  model = nnx.split(KINDS[kind]())
  logits, _ = call(*model, SOURCE, MASK, INPUTS)
  found = steps(*model, SOURCE, MASK, INPUTS)
  np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_of_the_source_changes_nothing(kind):
  model = nnx.split(KINDS[kind]())
  padded, weights = call(*model, SOURCE, MASK, INPUTS)
  for row, length in enumerate(LENGTHS):
    alone, _ = call(
      *model, SOURCE[row : row + 1, :length], None, INPUTS[row : row + 1]
    )
    np.testing.assert_allclose(padded[row], alone[0], rtol=1e-4, atol=1e-5)
    if weights is not None:
      if kind != "local_p":
        np.testing.assert_allclose(weights[row].sum(axis=-1), 1, rtol=1e-5)
      assert (weights[row, :, length:] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_reaches_every_parameter(kind):
  graphdef, params = nnx.split(KINDS[kind]())

  @jax.grad
  def slope(params):
    logits, _ = nnx.merge(graphdef, params)(SOURCE, MASK, INPUTS)
    return (jax.nn.log_softmax(logits)[..., 1]).sum()

  for path, leaf in jax.tree.leaves_with_path(slope(params)):
    assert jnp.isfinite(leaf).all(), path
    assert (leaf != 0).any(), path


def test_copies_and_the_softmax_are_one_distribution():
  model = make(copying=True)
  logits, weights = model(SOURCE, MASK, INPUTS)
  total = jnp.exp(logits).sum(axis=-1)
  np.testing.assert_allclose(total, 1, rtol=1e-5)
  # With the gate closed all is copied, by the attention weights.
  model.gate.bias[...] = jnp.full((1,), -50.0)
  copied = jnp.exp(model(SOURCE, MASK, INPUTS)[0])
  want = np.zeros(copied.shape)
  for b in range(3):
    for s in range(S):
      want[b, :, SOURCE[b, s]] += np.asarray(weights[b, :, s])
  np.testing.assert_allclose(copied, want, atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "feeding", "transformer"])
def test_beams_of_a_batch_are_those_of_each_source(kind):
  model = KINDS[kind]()

  def search(source, mask):
    carry = model.begin(model.encode(source, mask))
    step = model.decoder()
    carry, logits = step(carry, jnp.ones(len(source), int))
    return decoding.beam_search(
      step, carry, logits, beams=3, num_tokens=5, stop_token=0
    )

  found = jax.jit(search)(SOURCE, MASK)
  for row, length in enumerate(LENGTHS):
    alone = search(SOURCE[row : row + 1, :length], None)
    np.testing.assert_allclose(found.scores[row], alone.scores[0], atol=1e-4)
    np.testing.assert_array_equal(found.tokens[row, 0], alone.tokens[0, 0])


def test_the_sum_of_the_attention_is_carried():
  model = make()
  carry = model.begin(model.encode(SOURCE, MASK))
  step = model.decoder()
  for token in INPUTS.T:
    carry, _ = step(carry, token)
  _, weights = model(SOURCE, MASK, INPUTS)
  np.testing.assert_allclose(carry.attended, weights.sum(axis=1), rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16])
def test_it_computes_in_bfloat16(dtype):
  logits, _ = make(dtype=dtype)(SOURCE, MASK, INPUTS)
  exact, _ = make()(SOURCE, MASK, INPUTS)
  assert logits.dtype == jnp.float32
  # Logits are sums of H products of rounded numbers of about one.
  np.testing.assert_allclose(logits, exact, atol=0.05)


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"attention": "none", "copying": True}, "need attention"),
    ({"attention": "none", "feeding": True}, "need attention"),
    ({"attention": "local_p", "copying": True}, "sum to one"),
    ({"feeding": True, "tied": True}, "tied needs"),
    ({"shared": True, "tied": True}, "shared needs"),
  ],
  ids=str,
)
def test_what_does_not_fit_is_refused(options, words):
  with pytest.raises(ValueError, match=words):
    make(**options)
