"""Tests of the imputer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from recurrent import cells, nn


def _imputer(variables=2):
  rngs = nnx.Rngs(0)
  layer = nn.Recurrent(cells.GRU(8), 2 * variables, rngs=rngs)
  return nn.Imputer(layer, variables, rngs=rngs)


def _data(share=0.5):
  rng = np.random.default_rng(0)
  values = rng.normal(size=(3, 9, 2)).astype(np.float32)
  observed = rng.random(values.shape) > share
  return jnp.asarray(np.where(observed, values, np.nan)), jnp.asarray(observed)


def test_observed_values_stay_and_only_they_have_an_error():
  values, observed = _data()
  filled, error = _imputer()(values, observed)
  assert bool(jnp.isfinite(filled).all())
  np.testing.assert_array_equal(filled[observed], values[observed])
  assert float(error[observed].min()) > 0 and not error[~observed].any()


def test_no_prediction_sees_its_own_or_a_later_value():
  values, observed = _data()
  imputer = _imputer()
  filled, error = imputer(values, observed)
  changed = values.at[:, 5:].set(9.0)
  other, _ = imputer(changed, observed.at[:, 5].set(False))
  np.testing.assert_array_equal(other[:, :5], filled[:, :5])
  alone, _ = imputer(values, observed.at[:, 5].set(False))
  np.testing.assert_array_equal(other[:, 5], alone[:, 5])


def test_gradients_are_finite_though_missing_values_are_nan():
  values, observed = _data()
  grads = nnx.grad(lambda m: m(values, observed)[1].sum())(_imputer())
  assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(grads))
  assert float(optax.tree.norm(grads)) > 0


def test_masked_time_steps_are_zero_and_do_not_count():
  values, observed = _data()
  mask = jnp.arange(9)[None] < jnp.array([9, 4, 0])[:, None]
  filled, error = _imputer()(values, observed, mask=mask)
  assert not filled[~mask].any() and not error[~mask].any()


def test_a_layer_of_another_width_is_refused():
  rngs = nnx.Rngs(0)
  layer = nn.Recurrent(cells.GRU(8), 3, rngs=rngs)
  with pytest.raises(ValueError, match="inputs of width 4, got 3"):
    nn.Imputer(layer, 2, rngs=rngs)
