"""The classifier."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from recurrent import cells, models, nn


def build(pooling="last", layer=nn.Recurrent, width=3, **options):
  rngs = nnx.Rngs(0)
  stack = nn.Stack([layer(cells.GRU(4), width, rngs=rngs)])
  return models.Classifier(stack, 5, pooling=pooling, rngs=rngs, **options)


INPUTS = jnp.asarray(
  np.random.default_rng(0).normal(size=(2, 6, 3)), jnp.float32
)
MASK = jnp.asarray(np.arange(6) < np.array([[4], [6]]))


@pytest.mark.parametrize("pooling", ["last", "mean", "max", "attention", None])
def test_padding_changes_nothing(pooling):
  model = build(pooling)
  padded = jnp.where(MASK[..., None], INPUTS, jnp.nan)
  got = model(padded, mask=MASK)
  want = model(INPUTS[:1, :4])
  got = got[0] if pooling else got[0, :4]
  np.testing.assert_allclose(got, want[0], atol=1e-6)
  assert want.shape == ((1, 5) if pooling else (1, 4, 5))


def test_both_ends_of_a_bidirectional_layer_see_the_whole_sequence():
  model = build("ends", nn.Bidirectional)
  slope = jax.jacrev(lambda x: model(x)[0])(INPUTS[:1])[:, 0]
  assert (np.abs(slope).sum(axis=(0, 2)) > 1e-6).all()


@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_embedding_is_no_parameter(frozen):
  model = build(width=3, vocab_size=7, freeze_embedding=frozen)
  paths = nnx.to_flat_state(nnx.state(model, nnx.Param))
  assert any("embedding" in path for path, _ in paths) != frozen
  assert model(jnp.zeros((2, 6), jnp.int32)).shape == (2, 5)


def test_missing_values_are_filled_by_the_imputer_or_read_by_a_gru_d():
  rngs = nnx.Rngs(0)
  layer = nn.Recurrent(cells.GRU(4), 6, rngs=rngs)
  imputing = build(imputer=nn.Imputer(layer, 3, rngs=rngs))
  decaying = models.Classifier(
    nn.Stack([nn.Recurrent(cells.GRUD(4), 3, rngs=rngs)]), 5, rngs=rngs
  )
  observed = jnp.asarray(np.random.default_rng(1).random((2, 6, 3)) < 0.5)
  times = jnp.broadcast_to(jnp.arange(6.0), (2, 6))
  elapsed = cells.elapsed_since_observed(times, observed)
  for model in (imputing, decaying):
    run = lambda values: model.run(  # noqa: B023 - called at once
      cells.Observations(values, observed, elapsed), mask=MASK
    )
    logits, error = run(INPUTS)
    other, _ = run(jnp.where(observed, INPUTS, 9.0))
    np.testing.assert_allclose(logits, other, atol=1e-6)
    assert (error is None) == (model is decaying)


def test_dropout_needs_a_key():
  model = build(input_dropout=0.5, output_dropout=0.5)
  still = model(INPUTS)
  np.testing.assert_array_equal(still, model(INPUTS))
  assert (model(INPUTS, key=jax.random.key(0)) != still).any()
