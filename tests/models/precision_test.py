"""Tests that in bfloat16 models sums over positions are kept in float32."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from recurrent import cells, losses, nn
from recurrent.models import LanguageModel
from tests.precision import narrow_sums

V, H = 11, 8
# The layer knows nothing of the embedding: one is enough for the tied model.
LAYER_AND_TIED = [
  *((layer, False) for layer in (*cells.vector_cells(), "transformer")),
  ("lstm", True),
]
# With `make laws` all of them; else one of each kind of gradient.
MEASURED = (
  LAYER_AND_TIED
  if os.environ.get("RECURRENT_ALL_LAWS")
  else [
    ("indrnn", False),
    ("lstm_layer_norm", False),
    ("mlstm", False),
    ("transformer", False),
    ("lstm", True),
  ]
)


def make(layer, dtype, **kwargs):
  """A model of one layer, as graph definition and parameters."""
  rngs = nnx.Rngs(0)
  only = (
    nn.TransformerBlock(H, heads=2, context=16, rngs=rngs)
    if layer == "transformer"
    else nn.Recurrent(cells.get(layer)(H), H, rngs=rngs)
  )
  model = LanguageModel(V, nn.Stack([only]), dtype=dtype, rngs=rngs, **kwargs)
  # Half the weights, so that no layer is chaotic: chaos would amplify every
  # rounding, whatever the sums are kept in.
  graphdef, params = nnx.split(model)
  return graphdef, jax.tree.map(lambda x: x / 2, params)


def loss_of(graphdef, tokens, key=None):
  def loss(params):
    _, logits = nnx.merge(graphdef, params)(None, tokens[:, :-1], key=key)
    return losses.cross_entropy(logits, tokens[:, 1:]).mean()

  return loss


def decoded_loss_of(graphdef, tokens):
  def loss(params):
    model = nnx.merge(graphdef, params)
    carry = model.initial_carry(len(tokens))
    _, logits = jax.lax.scan(model.decoder(), carry, tokens[:, :-1].T)
    return losses.cross_entropy(logits, tokens[:, 1:].T).mean()

  return loss


@pytest.mark.parametrize(("layer", "tied"), LAYER_AND_TIED)
def test_a_models_gradient_has_no_sum_in_bfloat16(layer, tied):
  tokens = jnp.zeros((3, 38), jnp.int32)
  graphdef, params = make(layer, jnp.bfloat16, tied=tied)
  assert narrow_sums(jax.grad(loss_of(graphdef, tokens)), params) == []


@pytest.mark.parametrize("layer", ["lstm", "lru", "transformer"])
def test_a_decoders_gradient_looks_up_no_rows_in_bfloat16(layer):
  tokens = jnp.zeros((3, 38), jnp.int32)
  graphdef, params = make(layer, jnp.bfloat16)
  found = narrow_sums(jax.grad(decoded_loss_of(graphdef, tokens)), params)
  assert found == []


def test_a_row_that_is_looked_up_2048_times_gets_2048_gradients():
  rngs = nnx.Rngs(0)
  model = LanguageModel(
    2,
    nn.Stack([nn.Recurrent(cells.RNN(256), 128, rngs=rngs)]),
    dtype=jnp.bfloat16,
    embedding_row_dropout=0.5,
    rngs=rngs,
  )
  graphdef, params = nnx.split(model)

  def slope(key):
    def total(params):
      model = nnx.merge(graphdef, params)
      model.stack = lambda carry, inputs, **_: (carry, inputs)
      tokens = jnp.zeros((4, 512), jnp.int32)
      return model.activations(None, tokens, key=key)[1].astype("float32").sum()

    return jax.grad(total)(params)["embedding"][...][0]

  np.testing.assert_array_equal(slope(None), 2048)
  # A row that is kept stands for those that are dropped.
  rows = [slope(jax.random.key(seed)) for seed in (9, 10)]
  assert {float(x) for row in rows for x in row} == {0.0, 4096.0}


@pytest.mark.parametrize(("layer", "tied"), MEASURED)
def test_bfloat16_gradients_are_within_two_percent_of_float32(layer, tied):
  # 64 x 512 tokens, some of them much more frequent than others, as in texts.
  random = np.random.default_rng(0)
  tokens = jnp.asarray(random.zipf(1.5, (64, 513)) % V, jnp.int32)
  # Without LLVM's optimisations, see `tests/conftest.py`, it takes far longer.
  options = {"xla_backend_optimization_level": 2}
  wide, narrow = (
    jax.jit(jax.grad(loss_of(graphdef, tokens)), compiler_options=options)(
      params
    )
    for graphdef, params in (
      make(layer, dtype, tied=tied) for dtype in (jnp.float32, jnp.bfloat16)
    )
  )
  errors = jax.tree.map(
    lambda a, b: float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)),
    nnx.to_pure_dict(narrow),
    nnx.to_pure_dict(wide),
  )
  worst = {
    jax.tree_util.keystr(path): error
    for path, error in jax.tree.leaves_with_path(errors)
    if not error < 0.02
  }
  assert worst == {}
