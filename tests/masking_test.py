"""Tests of `length_mask`, and of `seq_lengths` wherever a mask may be given."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import recurrent
from recurrent import cells, length_mask, nn
from tests.cells.cases import assert_same_bits

B, T, D, H = 4, 5, 3, 4
CELL = cells.GRU(H)
LENGTHS = np.array([5, 2, 0, 1])
MASK = np.array(
  [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], bool
)
INPUTS = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
# Padding may hold anything.
INPUTS = np.where(MASK[..., None], INPUTS, np.float32(np.nan))


@pytest.mark.parametrize(
  "lengths",
  [
    LENGTHS,
    LENGTHS.tolist(),
    LENGTHS.astype(np.uint8),
    jnp.asarray(LENGTHS, jnp.int32),
  ],
  ids=["NumPy", "list", "uint8", "JAX"],
)
def test_the_mask_is_true_at_the_first_time_steps_of_each_row(lengths):
  np.testing.assert_array_equal(length_mask(lengths, T), MASK)


def test_a_mask_may_be_longer_than_an_8_bit_length_can_count():
  mask = length_mask(np.array([200], np.uint8), 300)
  assert mask.shape == (1, 300)
  assert int(mask.sum()) == 200


@pytest.mark.parametrize(
  ("lengths", "words"),
  [
    ([6, 1], "from 0 to 5 time steps, got 6"),
    ([1, -1], "from 0 to 5 time steps, got -1"),
    ([1.0, 2.0], r"integers \[batch\], got float64"),
    ([[1], [2]], r"integers \[batch\], got int64 \(2, 1\)"),
    ([True, False], r"integers \[batch\], got bool"),
  ],
)
def test_wrong_lengths_are_refused(lengths, words):
  with pytest.raises(ValueError, match=f"^seq_lengths must be {words}"):
    length_mask(lengths, T)


def test_inside_jit_lengths_are_clipped():
  mask = jax.jit(length_mask, static_argnums=1)(jnp.array([9, -3, 2]), 3)
  np.testing.assert_array_equal(mask, [[1, 1, 1], [0, 0, 0], [1, 1, 0]])


def functional(run):
  params = CELL.init(jax.random.key(0), D)
  return functools.partial(run, CELL, params, None, INPUTS)


RNGS = nnx.Rngs(0)
POOLING = nn.Pooling("last", D)
TAKE_LENGTHS = {
  "unroll": functional(recurrent.unroll),
  "newton": functional(recurrent.newton),
  "trace": functional(recurrent.trace),
  "Recurrent": functools.partial(
    nn.Recurrent(CELL, D, rngs=RNGS), None, INPUTS
  ),
  "Bidirectional": functools.partial(
    nn.Bidirectional(CELL, D, rngs=RNGS), None, INPUTS
  ),
  "Stack": functools.partial(
    nn.Stack([nn.Recurrent(CELL, D, rngs=RNGS)]), None, INPUTS
  ),
  "Pooling": functools.partial(POOLING, INPUTS),
}


@pytest.mark.parametrize("run", TAKE_LENGTHS.values(), ids=TAKE_LENGTHS)
def test_lengths_are_a_mask_in_other_words(run):
  got, want = run(seq_lengths=LENGTHS), run(mask=MASK)
  assert_same_bits(got, want)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))


@pytest.mark.parametrize("run", TAKE_LENGTHS.values(), ids=TAKE_LENGTHS)
def test_lengths_that_do_not_fit_are_refused(run):
  with pytest.raises(ValueError, match="^give mask or seq_lengths, got both"):
    run(seq_lengths=LENGTHS, mask=MASK)
  words = r"^seq_lengths must be \[batch\] = \(4,\), got \(3,\)"
  with pytest.raises(ValueError, match=words):
    run(seq_lengths=LENGTHS[:3])
  with pytest.raises(ValueError, match="from 0 to 5 time steps, got 6"):
    run(seq_lengths=LENGTHS + 1)


def test_inputs_of_no_sequence_are_named_before_lengths():
  with pytest.raises(ValueError, match=r"^inputs must be \[batch, time"):
    recurrent.unroll(
      CELL, CELL.init(jax.random.key(0), D), None, INPUTS[0, 0], seq_lengths=[1]
    )


@pytest.mark.several_devices
def test_lengths_may_be_sharded_as_the_rows_are():
  mesh = jax.make_mesh(
    (2,),
    ("data",),
    axis_types=(jax.sharding.AxisType.Explicit,),
    devices=jax.devices()[:2],
  )
  run = functional(recurrent.unroll)
  want = run(mask=MASK)
  with jax.set_mesh(mesh):
    rows = jax.NamedSharding(mesh, jax.P("data"))
    put = lambda x: jax.device_put(jnp.asarray(x), rows)
    params = CELL.init(jax.random.key(0), D)
    got = recurrent.unroll(
      CELL, params, None, put(INPUTS), seq_lengths=put(LENGTHS)
    )
  np.testing.assert_allclose(got[1], want[1], atol=1e-6)
