import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recurrent import cells, initializers

KEY = jax.random.key(0)


def blocks_of(features, blocks, scale=1.0):
  """The gates' matrices apart, in float64: [G, H, H]."""
  drawn = initializers.orthogonal_blocks(KEY, features, blocks, scale)
  assert drawn.shape == (features, blocks * features)
  return np.array(np.split(np.asarray(drawn, np.float64), blocks, axis=1))


@pytest.mark.parametrize("fan_in", [1, 3, 48])
def test_uniform_stays_within_its_bound_and_fills_it(fan_in):
  drawn = np.abs(initializers.lecun_uniform(KEY, (fan_in, 2000)))
  bound = np.sqrt(3 / fan_in)
  # Of 2000 or more, the largest misses the last percent once in 1e8 times.
  assert 0.99 * bound < drawn.max() <= bound * (1 + 1e-6)


@pytest.mark.parametrize("fan_in", [4, 64])
def test_unit_variance_in_gives_unit_variance_out(fan_in):
  inputs = np.random.default_rng(0).normal(size=(1000, fan_in))
  kernel = initializers.lecun_uniform(KEY, (fan_in, 1000))
  outputs = inputs @ np.asarray(kernel, np.float64)
  # Relative standard deviation of the estimate: below 2 % for 4000 weights.
  np.testing.assert_allclose(outputs.var(), 1, atol=0.08)


@pytest.mark.parametrize("features,blocks", [(1, 4), (2, 1), (7, 3), (32, 4)])
def test_every_block_is_orthogonal(features, blocks):
  for block in blocks_of(features, blocks):
    # float32: sums of up to 32 products of numbers below 1.
    np.testing.assert_allclose(block.T @ block, np.eye(features), atol=2e-6)


def test_blocks_differ_from_one_another():
  blocks = blocks_of(8, 4)
  for one in range(4):
    for other in range(one):
      assert np.abs(blocks[one] - blocks[other]).max() > 0.1


def test_the_scale_multiplies_every_block():
  for block in blocks_of(6, 2, scale=0.5):
    np.testing.assert_allclose(block.T @ block, np.eye(6) / 4, atol=1e-6)


def test_orthogonal_matrices_are_rotations_and_reflections_alike():
  # A QR decomposition whose signs are not mended gives one kind only.
  keys = jax.random.split(KEY, 40)
  draw = jax.vmap(lambda key: initializers.orthogonal_blocks(key, 3, 1))
  signs = np.sign(np.linalg.det(draw(keys)))
  # Binomial(40, 1/2): outside 8..32 with probability 1e-4.
  assert 8 <= (signs > 0).sum() <= 32


@pytest.mark.parametrize(
  "draw",
  [
    lambda key: initializers.lecun_uniform(key, (3, 5)),
    lambda key: initializers.orthogonal_blocks(key, 3, 2),
  ],
)
def test_parameters_are_float32_even_where_float64_is_on(draw, x64):
  assert draw(KEY).dtype == jnp.float32


@pytest.mark.parametrize("t_max", [3, 100, 10_000])
def test_chrono_forgets_after_spans_that_are_uniform(t_max):
  spans = np.exp(np.asarray(initializers.chrono(KEY, 4000, t_max), np.float64))
  assert spans.min() >= 1 and spans.max() <= (t_max - 1) * (1 + 1e-5)
  # Uniform: the standard deviation of the mean is width / sqrt(12 * 4000).
  width = t_max - 2
  np.testing.assert_allclose(spans.mean(), 1 + width / 2, atol=0.02 * width)


def test_chrono_refuses_spans_that_are_too_short():
  with pytest.raises(ValueError, match="t_max must be at least 3"):
    initializers.chrono(KEY, 4, 2)


def test_cells_take_chrono_biases_of_opposite_signs():
  i, f, g, o = np.split(cells.LSTM(8, t_max=50).init(KEY, 3).bias, 4)
  np.testing.assert_array_equal(i, -f)
  assert not g.any() and not o.any() and (f >= 0).all() and f.any()
  r, z, n = np.split(cells.GRU(8, t_max=50).init(KEY, 3).bias, 3)
  assert not r.any() and not n.any() and (z >= 0).all() and z.any()


def test_bounds_over_a_length_let_a_signal_fade_and_grow_by_that_much():
  bounds = cells.Diagonal.over(100)
  np.testing.assert_allclose(
    [bounds.low**100, bounds.high**100], [0.5, 2.0], rtol=1e-12
  )
  drawn = np.asarray(cells.RNN(64, structure=bounds).init(KEY, 3).recurrent)
  assert (bounds.low <= drawn).all() and (drawn <= bounds.high).all()
