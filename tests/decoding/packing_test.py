"""Tests that a packed step computes the same as the step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from recurrent import cells, decoding
from recurrent.decoding import pack_step
from recurrent.kernels.cpu import products
from recurrent.kernels.packed import PackedMatrix
from tests.cells.cases import drawn_by_init, inputs_for
from tests.models.build import language_model

KEY = jax.random.key(0, impl="rbg")


def matrices(packed):
  return [w for w in packed.weights if isinstance(w, PackedMatrix)]


def assert_near(got, want, bound):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=bound), got, want
  )


# What a cell's step multiplies by, matrices [K, N]; heads, convolutions and
# elementwise weights are none.
NONE = ("conv_lstm",)


@pytest.mark.parametrize("name", list(cells.CELLS))
def test_a_time_step_of_any_cell_is_the_same_with_packed_weights(name):
  cell = cells.CELLS[name](8)
  random = np.random.default_rng(0)
  params, start = drawn_by_init(cell, 3)
  params = jax.tree.map(lambda x: x + np.float32(0.1), params)
  carry = jax.tree.map(
    lambda x: random.normal(size=(5, *x.shape)).astype(np.float32), start
  )
  inputs = inputs_for(cell, random, 5, 3)

  def step(params, carry, inputs):
    return cell.step(params, carry, cell.project(params, inputs))

  given = jax.tree.map(jnp.asarray, (carry, inputs))
  want = step(params, *given)
  for dtype, bound in (("float32", 1e-5), ("bfloat16", 0.2), ("int8", 0.2)):
    packed = pack_step(step, params, carry, inputs, dtype=dtype)
    got = packed.step(packed.weights, *given)
    assert_near(got, want, bound)
    # What is off is off by the rounding of the weights, not of the product.
    assert_near(got, packed.step(packed.unpack(), *given), 1e-5)
    if dtype == "int8":
      assert bool(matrices(packed)) == (name not in NONE)


def test_a_cell_of_ones_own_needs_nothing():
  params = {"w": jnp.ones((3, 4)), "gain": jnp.ones((4, 4)), "b": jnp.ones(4)}

  def step(params, carry, inputs):
    mixed = jnp.tanh(inputs @ params["w"] + jnp.sin(params["b"])[None])
    return carry * params["gain"] + mixed, mixed.sum()

  given = jnp.ones((4, 4)), jnp.ones((1, 3))
  packed = pack_step(step, params, *given, dtype="int8")
  (matrix,) = matrices(packed)
  np.testing.assert_allclose(matrix.unpack(), params["w"], rtol=1e-6)
  assert [w.shape for w in packed.weights if w is not matrix] == [(4,), (4, 4)]
  assert_near(packed.step(packed.weights, *given), step(params, *given), 1e-5)


def test_weights_on_the_left_transposed_or_shared_are_found():
  w = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)

  def step(w, x):
    return w @ x, x.T @ w.T, jnp.einsum("kn,kb->nb", w, w @ x), w[1:] @ x

  x = jnp.arange(8.0).reshape(4, 2)
  packed = pack_step(step, w, x, dtype="bfloat16")
  assert all(isinstance(m, PackedMatrix) for m in packed.weights)
  assert_near(
    packed.step(packed.weights, x),
    step(w.astype(jnp.bfloat16).astype(jnp.float32), x),
    1e-5,
  )


def test_what_depends_on_params_alone_is_computed_once():
  calls = []

  def seen(x):
    calls.append(1)
    return x

  def step(params, token):
    table = jax.pure_callback(seen, params, params) @ params
    return table[token]

  packed = pack_step(step, jnp.eye(3), jnp.int32(0))
  for token in range(3):
    row = packed.step(packed.weights, jnp.int32(token))
    np.testing.assert_array_equal(row, np.eye(3)[token])
  assert len(calls) == 1


def test_a_product_inside_a_loop_of_the_step_stays_float32():
  def step(w, x):
    return jax.lax.fori_loop(0, 3, lambda _, x: x @ w, x)

  x = jnp.ones((1, 2))
  packed = pack_step(step, 2 * jnp.eye(2), x, dtype="int8")
  assert not matrices(packed)
  np.testing.assert_array_equal(packed.step(packed.weights, x), 8 * x)


def model(dtype=jnp.float32, **more):
  drawn = language_model(
    11,
    features=20,
    embedding_features=6,
    dtype=dtype,
    rngs=nnx.Rngs(0),
    **more,
  )
  # Far from evenly likely, so that a rounding does not decide.
  drawn.output[...] = 8 * drawn.output[...]
  return drawn


def step_of(drawn, rows=3):
  graphdef, variables = nnx.split(drawn)
  carry = drawn.initial_carry(rows)

  def step(params, carry, token):
    return nnx.merge(graphdef, params).decoder()(carry, token)

  token = jax.ShapeDtypeStruct((rows,), jnp.int32)
  return step, nnx.as_pure(variables), carry, token


@functools.partial(jax.jit, static_argnames=("step",))
def draw(step, weights, carry):
  logits = jnp.zeros((3, 11)).at[:, 4].set(9.0)
  return decoding.sample(
    functools.partial(step, weights), carry, logits, KEY, num_tokens=40
  )[2]


def rounded(matrix):
  """As int8 has it, in NumPy."""
  scale = np.abs(matrix).max(axis=0) / np.float32(127)
  return (np.round(matrix / scale) * scale).astype(np.float32)


def test_int8_draws_the_tokens_of_the_float32_model_with_rounded_weights():
  step, params, carry, token = step_of(model())
  packed = pack_step(step, params, carry, token, dtype="int8")
  assert len(matrices(packed)) == 2
  got = draw(packed.step, packed.weights, carry)
  # By hand: the recurrent matrix and the output's; the table is no matrix.
  by_hand = model()
  layer = by_hand.stack.layers[0].params
  for matrix in (layer.recurrent, by_hand.output):
    matrix[...] = jnp.asarray(rounded(np.asarray(matrix[...])))
  want = draw(*step_of(by_hand)[:3])
  np.testing.assert_array_equal(got.tokens, want.tokens)
  np.testing.assert_allclose(got.scores, want.scores, atol=1e-4)
  assert len(np.unique(got.tokens)) > 3


@pytest.mark.parametrize("dtype", decoding.DTYPES)
def test_a_model_that_computes_in_bfloat16_keeps_its_dtypes(dtype):
  step, params, carry, token = step_of(model(jnp.bfloat16, layers=2))
  packed = pack_step(step, params, carry, token, dtype=dtype)
  tokens = jnp.array([1, 2, 3])
  got = packed.step(packed.weights, carry, tokens)
  want = step(params, carry, tokens)
  assert jax.tree.map(lambda x: x.dtype, got) == jax.tree.map(
    lambda x: x.dtype, want
  )
  assert_near(got, want, 0.3)


def test_narrow_matrices_are_as_many_bytes():
  step, params, carry, token = step_of(model(layers=2))
  sizes = [
    sum(
      m.entries.nbytes
      for m in matrices(pack_step(step, params, carry, token, dtype=dtype))
    )
    for dtype in ("float32", "bfloat16", "int8")
  ]
  if not products.unavailable():
    assert sizes[0] == 4 * sizes[2]
  assert sizes[1] == 2 * sizes[2] > 0


@pytest.mark.skipif(
  products.unavailable() != "", reason=f"it {products.unavailable()}"
)
def test_no_token_makes_a_wide_copy_of_narrow_weights():
  big = language_model(11, features=256, rngs=nnx.Rngs(0))
  step, params, carry, token = step_of(big)
  packed = pack_step(step, params, carry, token, dtype="int8")
  compiled = draw.lower(packed.step, packed.weights, carry).compile()
  wide = 4 * 256 * 4 * 256
  assert compiled.memory_analysis().temp_size_in_bytes < wide / 4


def test_another_dtype_is_refused():
  with pytest.raises(ValueError, match="float32.*got 'int4'"):
    pack_step(lambda p, x: x @ p, jnp.eye(2), jnp.eye(2), dtype="int4")
