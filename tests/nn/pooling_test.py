import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from jax.test_util import check_grads

from recurrent.cells import GRU
from recurrent.nn import Bidirectional, Pooling, Recurrent
from tests.cells.cases import jit, law

B, T, H = 4, 6, 4
KINDS = ("last", "ends", "mean", "max", "attention")
# Holes, padding in front and behind, and nothing at all.
MASK = np.array(
  [[1] * T, [1, 1, 0, 1, 0, 0], [0, 0, 1, 1, 1, 0], [0] * T], bool
)
each_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind, dtype=np.float64):
  module = Pooling(kind, H)
  if kind == "attention":
    query = np.random.default_rng(1).normal(size=H)
    module.query[...] = jnp.asarray(query, dtype)
  return module


def drawn(seed=0, dtype=np.float64):
  return np.random.default_rng(seed).normal(size=(B, T, H)).astype(dtype)


def garbage(outputs):
  """NaN and infinities where the mask is False."""
  bad = np.resize([np.nan, np.inf, -np.inf], outputs.shape)
  return np.where(MASK[..., None], outputs, bad).astype(outputs.dtype)


def by_hand(kind, row, mask, query):
  """One row, from the real time steps alone."""
  real = row[mask]
  if not len(real):
    return np.zeros(H)
  if kind == "attention":
    weights = np.exp(real @ query)
    return weights @ real / weights.sum()
  return {
    "last": lambda: real[-1],
    "ends": lambda: np.concatenate([real[-1, : H // 2], real[0, H // 2 :]]),
    "mean": lambda: real.mean(axis=0),
    "max": lambda: real.max(axis=0),
  }[kind]()


@each_kind
@law
@given(mask=npst.arrays(bool, (B, T)), seed=st.integers(0, 99))
def test_it_pools_the_real_time_steps(x64, kind, mask, seed):
  module, outputs = make(kind), drawn(seed)
  query = None if module.query is None else np.asarray(module.query[...])
  want = [by_hand(kind, *row, query) for row in zip(outputs, mask, strict=True)]
  np.testing.assert_allclose(module(outputs, mask), want, atol=1e-12)


@each_kind
def test_without_a_mask_all_time_steps_are_real(kind):
  module, outputs = make(kind, np.float32), drawn(dtype=np.float32)
  np.testing.assert_array_equal(
    module(jnp.asarray(outputs)), module(outputs, np.ones((B, T), bool))
  )


@each_kind
def test_what_is_not_real_has_no_part_and_no_gradient(kind):
  graphdef, params = nnx.split(make(kind, np.float32))

  @jit
  def results(outputs):
    def loss(params, outputs):
      pooled = nnx.merge(graphdef, params)(outputs, MASK)
      return jnp.sum(jnp.sin(pooled)), pooled

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, outputs)

  outputs = drawn(dtype=np.float32)
  clean, dirty = results(outputs), results(garbage(outputs))
  jax.tree.map(np.testing.assert_array_equal, dirty, clean)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(dirty))
  gradient = np.asarray(dirty[1][1])
  assert not gradient[~MASK].any() and gradient[MASK].any()


@each_kind
def test_gradients_are_those_of_finite_differences(x64, kind):
  graphdef, params = nnx.split(make(kind))
  pool = lambda params, outputs: nnx.merge(graphdef, params)(outputs, MASK)
  check_grads(jax.jit(pool), (params, drawn()), order=1, modes=["rev"])


@each_kind
def test_bfloat16_stays_and_its_sums_are_float32(kind):
  module = make(kind, np.float32)
  # A sum of 2,000 ones in bfloat16 stops at 256.
  outputs = jnp.ones((1, 2000, H), jnp.bfloat16)
  pooled = module(outputs)
  assert pooled.dtype == jnp.bfloat16
  np.testing.assert_allclose(pooled.astype(np.float32), 1, atol=0.01)


@pytest.mark.parametrize("kind", ["last", "ends"])
def test_the_ends_are_the_hidden_states_that_a_layer_leaves(kind):
  inputs, rngs = drawn(dtype=np.float32), nnx.Rngs(0)
  if kind == "last":
    layer = Recurrent(GRU(H), H, rngs=rngs)
    carry, outputs = layer(None, inputs, mask=MASK)
    want = carry.hidden
  else:
    layer = Bidirectional(GRU(H // 2), H, rngs=rngs)
    carries, outputs = layer(None, inputs, mask=MASK)
    want = jnp.concatenate([carry.hidden for carry in carries], axis=-1)
  np.testing.assert_array_equal(Pooling(kind, H)(outputs, MASK), want)


def test_attention_starts_as_the_mean_and_learns():
  module, outputs = Pooling("attention", H), drawn(dtype=np.float32)
  mean = Pooling("mean", H)(outputs, MASK)
  np.testing.assert_allclose(module(outputs, MASK), mean, atol=1e-6)
  loss = lambda module: jnp.sum(module(outputs, MASK)[:, 0])
  assert np.abs(nnx.grad(loss)(module).query[...]).max() > 0.1


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"kind": "first"}, "kind must be one of .*'attention'.*'first'"),
    ({"features": 0}, "features must be a positive integer, got 0"),
    ({"kind": "ends", "features": 3}, "features must be even.*got 3"),
  ],
)
def test_bad_choices_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    Pooling(**{"kind": "last", "features": H} | options)


@pytest.mark.parametrize(
  ("outputs", "mask", "message"),
  [
    (np.ones((B, H), np.float32), None, "outputs must be"),
    (np.ones((B, T, H + 1), np.float32), None, "outputs must be"),
    (np.ones((B, T, H), np.float32), MASK.T, "mask must be"),
    (np.ones((B, T, H), np.float32), MASK.astype(int), "mask must be"),
  ],
)
def test_what_is_no_sequence_is_refused(outputs, mask, message):
  with pytest.raises(ValueError, match=message):
    Pooling("mean", H)(outputs, mask)
