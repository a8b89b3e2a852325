import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recurrent.metrics import Mean


def test_without_weights_it_is_the_mean():
  assert Mean.of(jnp.array([[1.0, 2.0], [3.0, 6.0]])).compute() == 3.0


def test_weights_count_values_more_or_less():
  mean = Mean.of(jnp.array([1.0, 2.0, 4.0]), jnp.array([2.0, 0.0, 6.0]))
  assert mean.compute() == (1 * 2 + 4 * 6) / 8


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_a_value_of_weight_zero_may_be_anything(garbage):
  mean = Mean.of(jnp.array([5.0, garbage]), jnp.array([1.0, 0.0]))
  assert mean.compute() == 5.0


def test_a_value_of_weight_zero_sends_no_nan_into_the_gradient():
  weights = jnp.array([1.0, 0.0])
  grads = jax.grad(lambda x: Mean.of(x, weights).total)(
    jnp.array([5.0, jnp.nan])
  )
  assert grads.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("dtype", [bool, jnp.int32, jnp.uint8, jnp.float32])
def test_values_and_weights_may_be_of_any_type(dtype):
  values = jnp.array([1, 0, 1, 1]).astype(dtype)
  weights = jnp.array([1, 1, 0, 1]).astype(dtype)
  np.testing.assert_allclose(Mean.of(values, weights).compute(), 2 / 3)


def test_sums_are_in_float32():
  # In bfloat16 the sum stands still at 256: 256 + 1 rounds to 256.
  mean = Mean.of(jnp.ones(10_000, jnp.bfloat16))
  assert (float(mean.total), mean.total.dtype) == (10_000, jnp.float32)


def test_weights_of_one_per_row_count_every_value_of_the_row():
  values = jnp.ones((2, 3))
  assert Mean.of(values, jnp.array([[1.0], [2.0]])).compute() == 1.0


def test_merging_parts_of_any_size_gives_the_mean_of_all():
  values = np.random.default_rng(0).integers(0, 100, 60).astype(np.float32)
  weights = np.random.default_rng(1).integers(0, 3, 60).astype(np.float32)
  merged = Mean.zero()
  for part in np.split(np.arange(60), [1, 10, 10, 37]):
    merged = merged.merge(
      Mean.of(jnp.asarray(values[part]), jnp.asarray(weights[part]))
    )
  # Small integers: every sum is exact.
  assert merged.compute() == (values * weights).sum() / weights.sum()


@pytest.mark.parametrize(
  "nothing",
  [
    lambda: Mean.zero(),
    lambda: Mean.zero().merge(Mean.zero()),
    lambda: Mean.of(jnp.zeros((0,))),
    lambda: Mean.of(jnp.ones(3), jnp.zeros(3)),
  ],
)
def test_the_mean_of_nothing_is_nan(nothing):
  assert math.isnan(nothing().compute())


def test_it_passes_through_a_compiled_loop():
  def add(mean, values):
    return mean.merge(Mean.of(values)), None

  values = jnp.arange(12.0).reshape(4, 3)
  mean, _ = jax.jit(lambda x: jax.lax.scan(add, Mean.zero(), x))(values)
  assert mean.compute() == 5.5


def test_the_result_is_a_python_float():
  assert type(Mean.of(jnp.ones(3)).compute()) is float


def test_the_value_on_a_device_is_the_mean_and_zero_without_weight():
  mean = Mean.of(jnp.array([1.0, 5.0]), jnp.array([3.0, 1.0]))
  assert float(mean.value()) == mean.compute() == 2.0
  assert float(Mean.zero().value()) == 0.0
  slope = jax.grad(lambda x: Mean.of(x, jnp.zeros(2)).value())(jnp.ones(2))
  assert slope.tolist() == [0.0, 0.0]
