"""Tests of packed matrices: rounding errors, and products of odd sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recurrent.kernels import cpu
from recurrent.kernels.cpu import products
from recurrent.kernels.packed import DTYPES, pack, runs_in_cpp

needs_native = pytest.mark.skipif(
  products.unavailable() != "", reason=f"it {products.unavailable()}"
)
WAYS = [pytest.param(True, marks=needs_native, id="C++"), False]


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("in_cpp", WAYS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 64), (7, 65), (130, 200)])
def test_int8_is_off_by_half_a_step_of_its_column_at_most(shape, in_cpp):
  # Columns of very different sizes: each has steps of its own.
  matrix = draw(*shape) * 10.0 ** np.linspace(-6, 6, shape[1], dtype=np.float32)
  packed = pack(jnp.asarray(matrix), "int8", in_cpp=in_cpp)
  assert packed.entries.dtype == jnp.int8
  step = np.abs(matrix).max(axis=0) / 127
  off = np.abs(np.asarray(packed.unpack(), np.float64) - matrix)
  # And a rounding of float32 of the quotient.
  assert (off <= 0.5001 * step).all()
  assert (np.abs(np.asarray(packed.entries)).max(axis=-2) <= 127).all()


@pytest.mark.parametrize("in_cpp", WAYS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 64), (7, 65), (130, 200)])
def test_float32_comes_back_as_it_was_and_bfloat16_rounded(shape, in_cpp):
  matrix = jnp.asarray(draw(*shape))
  same = pack(matrix, "float32", in_cpp=in_cpp).unpack()
  np.testing.assert_array_equal(same, matrix)
  narrow = pack(matrix, "bfloat16", in_cpp=in_cpp).unpack()
  want = matrix.astype(jnp.bfloat16).astype(jnp.float32)
  np.testing.assert_array_equal(narrow, want)


def test_what_int8_holds_is_packed_to_the_same_again():
  once = pack(jnp.asarray(draw(40, 70)), "int8", in_cpp=False)
  again = pack(once.unpack(), "int8", in_cpp=False)
  np.testing.assert_array_equal(again.entries, once.entries)


@pytest.mark.parametrize("in_cpp", WAYS)
def test_a_column_of_zeros_stays_one(in_cpp):
  matrix = jnp.asarray(draw(6, 3)).at[:, 1].set(0)
  packed = pack(matrix, "int8", in_cpp=in_cpp)
  np.testing.assert_array_equal(packed.unpack()[:, 1], 0)
  assert np.isfinite(jnp.ones((2, 6)) @ packed).all()


# Rows and columns that fill tiles and panels and that leave some over; enough
# work for threads, in more pieces than there are threads and in fewer.
SIZES = [
  *[(rows, 7, 65) for rows in (1, 2, 3, 4, 5, 6, 7, 13)],
  *[(2, depth, 64) for depth in (1, 2, 3, 5)],
  *[(3, 9, columns) for columns in (1, 15, 16, 17, 63, 129, 191)],
  *[(1, 700, 801), (33, 130, 515), (9, 3000, 20)],
]


@needs_native
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_product_is_that_of_float64(size, dtype, threads, monkeypatch):
  monkeypatch.setattr(cpu, "THREADS", np.int64(threads))
  rows, depth, columns = size
  inputs, matrix = draw(rows, depth), draw(depth, columns, seed=1)
  packed = pack(jnp.asarray(matrix), dtype, in_cpp=True)
  want = inputs.astype(np.float64) @ np.asarray(packed.unpack(), np.float64)
  got = jnp.asarray(inputs) @ packed
  assert got.dtype == jnp.float32
  # float32 rounds at 6e-8, times the root of the depth.
  bound = 4e-7 * np.sqrt(depth) * (1 + np.abs(want).max())
  np.testing.assert_allclose(got, want, rtol=0, atol=bound)
  by_xla = jnp.asarray(inputs) @ pack(jnp.asarray(matrix), dtype, in_cpp=False)
  np.testing.assert_allclose(by_xla, want, rtol=0, atol=bound)


@needs_native
def test_many_calls_by_threads_that_sleep_and_wake_are_all_right(monkeypatch):
  monkeypatch.setattr(cpu, "THREADS", np.int64(4))
  packed = pack(jnp.asarray(draw(256, 2048)), "int8", in_cpp=True)
  product = jax.jit(lambda x: x @ packed)
  for seed in range(200):
    inputs = draw(1, 256, seed=seed)
    want = inputs @ np.asarray(packed.unpack())
    np.testing.assert_allclose(product(inputs), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_cpp", WAYS)
def test_any_batch_axes_are_kept(dtype, in_cpp):
  packed = pack(jnp.asarray(draw(5, 3)), dtype, in_cpp=in_cpp)
  inputs = jnp.asarray(draw(2, 4, 5))
  flat = inputs.reshape(-1, 5) @ packed
  np.testing.assert_array_equal(inputs @ packed, flat.reshape(2, 4, 3))
  np.testing.assert_allclose(inputs[0, 0] @ packed, flat[0], rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_cpp", WAYS)
def test_a_nan_comes_out_of_its_row_or_column_as_one(dtype, in_cpp):
  matrix = jnp.asarray(draw(5, 70))
  packed = pack(matrix, dtype, in_cpp=in_cpp)
  out = jnp.ones((3, 5)).at[1, 2].set(jnp.nan) @ packed
  assert np.isnan(out[1]).all() and np.isfinite(out[::2]).all()
  packed = pack(matrix.at[2, 66].set(jnp.nan), dtype, in_cpp=in_cpp)
  assert np.isnan((jnp.ones((3, 5)) @ packed)[:, 66]).all()


def test_another_dtype_is_refused():
  with pytest.raises(ValueError, match="float32.*got 'int4'"):
    pack(jnp.ones((2, 2)), "int4")


def test_without_a_compiler_xla_widens_the_matrix(monkeypatch):
  monkeypatch.setattr(products, "unavailable", lambda: "needs a compiler")
  assert not runs_in_cpp()
  packed = pack(jnp.asarray(draw(6, 70)), "int8")
  assert packed.entries.shape == (6, 70) and packed.entries.dtype == jnp.int8


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_in_cpp_has_a_plain_form_for_other_platforms(dtype):
  packed = pack(jnp.asarray(draw(7, 65)), dtype, in_cpp=True)
  rows = jnp.asarray(draw(3, 7, seed=1))
  run = jax.jit(lambda rows, packed: rows @ packed)
  traced = run.trace(rows, packed)
  assert "@recurrent_" in traced.lower().as_text()
  there = traced.lower(lowering_platforms=("tpu",)).as_text()
  assert "@recurrent_" not in there
  exported = jax.export.export(jax.jit(lambda rows: rows @ packed))(rows)
  np.testing.assert_allclose(
    exported.call(rows), run(rows, packed), rtol=1e-5, atol=1e-5
  )
