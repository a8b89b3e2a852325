"""Layers that compute each time step by itself, and what a stack adds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from recurrent import cells, nn

RNG = np.random.default_rng(0)
INPUTS = jnp.asarray(RNG.normal(size=(2, 5, 3)), jnp.float32)
MASK = jnp.asarray(RNG.random((2, 5)) < 0.6)


def affine():
  layer = nn.Affine(3, 4, rngs=nnx.Rngs(0))
  layer.bias[...] = jnp.arange(4.0)
  return layer


def normal():
  layer = nn.Norm(3)
  layer.scale[...] = jnp.arange(1.0, 4.0)
  return layer


def test_affine_is_a_product_and_a_bias():
  layer = affine()
  want = np.asarray(INPUTS, np.float64) @ np.asarray(layer.kernel[...])
  _, got = layer(None, INPUTS)
  np.testing.assert_allclose(got, want + np.arange(4), rtol=1e-5, atol=1e-6)


def test_norm_has_mean_zero_and_the_variance_of_its_scale():
  wide = np.asarray(INPUTS, np.float64)
  centred = wide - wide.mean(-1, keepdims=True)
  want = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
  _, got = normal()(None, INPUTS)
  np.testing.assert_allclose(got, want * [1, 2, 3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [affine, normal])
def test_masked_time_steps_are_zero_and_pass_no_gradient(make):
  layer = make()
  garbage = jnp.where(MASK[..., None], INPUTS, jnp.nan)
  _, got = layer(None, garbage, mask=MASK)
  _, plain = layer(None, INPUTS)
  np.testing.assert_array_equal(got, jnp.where(MASK[..., None], plain, 0))

  def total(model):
    return (model(None, garbage, mask=MASK)[1] ** 2).sum()

  assert all(
    jnp.isfinite(x).all() for x in jax.tree.leaves(nnx.grad(total)(layer))
  )


@pytest.mark.parametrize("make", [affine, normal])
def test_a_step_is_a_time_step_of_the_whole(make):
  layer = make()
  _, whole = layer(None, INPUTS)
  carry, one = layer.step((), layer.project(INPUTS[:, 2]), jnp.float32)
  assert carry == ()
  np.testing.assert_allclose(one, whole[:, 2], rtol=1e-6)


def test_every_layer_tells_its_widths():
  rngs = nnx.Rngs(0)
  gru = cells.GRU(4)
  layers = {
    nn.Recurrent(gru, 3, rngs=rngs): (3, 4),
    nn.Bidirectional(gru, 3, rngs=rngs): (3, 8),
    nn.Bidirectional(gru, 3, merge="sum", rngs=rngs): (3, 4),
    nn.Residual(nn.Recurrent(gru, 4, rngs=rngs)): (4, 4),
    nn.TransformerBlock(4, heads=2, context=3, rngs=rngs): (4, 4),
    nn.TransformerEncoderBlock(4, heads=2, rngs=rngs): (4, 4),
    affine(): (3, 4),
    normal(): (3, 3),
  }
  for layer, widths in layers.items():
    assert (layer.in_features, layer.features) == widths
    _, outputs = layer(None, jnp.ones((1, 2, widths[0])))
    assert outputs.shape == (1, 2, widths[1])
  both = [affine(), nn.Recurrent(gru, 4, rngs=rngs)]
  assert (nn.Stack(both).in_features, nn.Stack(both).features) == (3, 4)
  skipping = [affine(), nn.Recurrent(gru, 7, rngs=rngs)]
  assert nn.Stack(skipping, skip=True).features == 8


def test_a_stack_of_no_layers_is_refused():
  with pytest.raises(ValueError, match="at least one layer"):
    nn.Stack([])
