"""Tests of chunks of the time axis."""

import jax.numpy as jnp
import numpy as np
import pytest

from recurrent.kernels import chunks


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("time", [1, 4, 6, 8, 9])
def test_join_undoes_split(time, front):
  array = jnp.arange(time * 6, dtype=jnp.float32).reshape(time, 2, 3)
  cut = chunks.split(array, 4, front=front)
  assert cut.shape == (-(-time // 4), 4, 2, 3)
  np.testing.assert_array_equal(chunks.join(cut, time, front=front), array)


@pytest.mark.parametrize("front", [False, True])
def test_padding_has_the_value_of_fill_on_the_side_asked_for(front):
  cut = chunks.split(jnp.zeros((2, 5)), 3, axis=1, fill=7, front=front)
  edge = cut[:, 0, 0] if front else cut[:, -1, -1]
  np.testing.assert_array_equal(edge, [7, 7])
  assert cut.sum() == 14


def test_a_batch_of_no_rows_is_split_too():
  cut = chunks.split(jnp.zeros((5, 0, 3)), 2)
  assert cut.shape == (3, 2, 0, 3)
  assert chunks.join(cut, 5).shape == (5, 0, 3)
