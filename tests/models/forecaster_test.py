"""Tests of the forecaster."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from recurrent import cells, nn
from recurrent.models import forecaster
from recurrent.models.forecaster import Forecaster, Head, Window

LENGTH, HORIZON, VARIABLES, KNOWN = 12, 7, 2, 3


def _window(seed=0):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return Window(
    normal(2, LENGTH, VARIABLES),
    jnp.asarray(rng.random((2, LENGTH, VARIABLES)) > 0.3),
    jnp.ones((2, LENGTH), bool),
    normal(2, LENGTH + HORIZON, KNOWN),
    jnp.broadcast_to(jnp.arange(LENGTH, dtype=jnp.float32), (2, LENGTH)),
    jnp.array([1, 2]),
  )


@nnx.jit
def call(model, window):
  """The parameters of a forecast."""
  return model(window).params


def _model(seed=0, kind="gru", **options):
  rngs = nnx.Rngs(seed)

  def stack():
    if kind == "transformer":
      block = nn.TransformerBlock(8, heads=2, context=16, rngs=rngs)
      return nn.Stack([block])
    return nn.Stack([nn.Recurrent(cells.GRU(8), 8, rngs=rngs)])

  if options.get("decoding") == "encoder_decoder":
    options["decoder"] = stack()
  if options.pop("imputes", False):
    layer = nn.Recurrent(cells.GRU(8), 2 * VARIABLES, rngs=rngs)
    options["imputer"] = nn.Imputer(layer, VARIABLES, rngs=rngs)
  if options.pop("decays", False):
    options["gap_layer"] = nn.Recurrent(cells.GRUD(8), VARIABLES, rngs=rngs)
  values = {"horizon": HORIZON, "variables": VARIABLES, "known": KNOWN}
  return Forecaster(stack(), **{**values, **options}, rngs=rngs)


CASES = [
  {"decoding": decoding, "segment": segment, "normalization": normalization}
  for decoding in forecaster.DECODINGS
  for segment, normalization in ((1, "instance"), (3, "last"))
]
CASES += [
  {"decoding": "recursive", "shows_gaps": True, "imputes": True, "segment": 2},
  {"decoding": "recursive", "shows_gaps": True, "decays": True, "series": 5},
  {"decoding": "direct", "decays": True},
  {"decoding": "recursive", "kind": "transformer", "segment": 4, "series": 2},
]
CASES += [{"head": Head(kind), "dropout": 0.1} for kind in forecaster.HEADS]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_kind_forecasts_and_has_gradients(case):
  model, window = _model(**case), _window()
  targets = jnp.ones((2, HORIZON))

  def loss(model):
    found = model(window, key=jax.random.key(0))
    return model.head.losses(found.params, targets).mean(), found

  grad = nnx.jit(nnx.value_and_grad(loss, has_aux=True))
  (value, found), grads = grad(model)
  assert found.params.shape == (2, HORIZON, model.head.size)
  assert found.params.dtype == jnp.float32 and bool(jnp.isfinite(value))
  assert (found.imputation is not None) == case.get("imputes", False)
  for path, grad in jax.tree.leaves_with_path(grads):
    assert bool(jnp.isfinite(grad).all()), path


@pytest.mark.parametrize("normalization", ["last", "instance"])
@pytest.mark.parametrize("decoding", forecaster.DECODINGS)
def test_a_normalised_forecast_moves_with_its_window(normalization, decoding):
  """Adding a number to a window adds it to the forecast."""
  head = "student_t" if normalization == "last" else "quantiles"
  model = _model(
    decoding=decoding, normalization=normalization, head=Head(head), segment=2
  )
  window = _window()
  moved = window._replace(values=window.values.at[..., 0].add(100.0))
  plain, other = call(model, window), call(model, moved)
  point = model.head.point
  np.testing.assert_allclose(point(other), point(plain) + 100, atol=1e-3)
  if normalization == "instance":
    scaled = window._replace(values=window.values * 50)
    np.testing.assert_allclose(
      point(call(model, scaled)), 50 * point(plain), rtol=2e-3, atol=2e-3
    )


@pytest.mark.parametrize("decoding", forecaster.DECODINGS)
def test_values_that_are_not_read_do_not_matter(decoding):
  """`mask` leaves time steps out, as --missing=drop does."""
  model, window = _model(decoding=decoding, normalization="last"), _window()
  window = window._replace(
    mask=window.mask.at[:, 3].set(False).at[1].set(False),
    observed=jnp.ones_like(window.observed),
  )
  other = window._replace(values=window.values.at[:, 3].set(77.0))
  np.testing.assert_allclose(call(model, window), call(model, other), atol=1e-6)


def test_the_known_future_is_read():
  for decoding in forecaster.DECODINGS:
    model, window = _model(decoding=decoding), _window()
    other = window._replace(known=window.known.at[:, LENGTH + 2].add(5.0))
    change = jnp.abs(call(model, other) - call(model, window)).max(axis=(0, 2))
    assert float(change[2]) > 1e-3 and not change[:2].any()


def test_the_number_of_the_series_is_read():
  model, window = _model(series=2), _window()
  other = window._replace(series=window.series[::-1])
  assert not np.allclose(call(model, other), call(model, window))


@pytest.mark.parametrize("kind", forecaster.HEADS)
def test_the_loss_of_a_head_is_least_at_the_distribution_of_the_targets(kind):
  rng = np.random.default_rng(0)
  targets = jnp.asarray(stats.t.rvs(5, 3, 2, 20000, random_state=rng))
  head = Head(kind)
  right = {
    "point": [stats.t.ppf(0.5, 5, 3, 2)],
    "quantiles": stats.t.ppf(head.levels, 5, 3, 2),
    "gaussian": [3.0, 2 * np.sqrt(5 / 3)],
    "student_t": [3.0, 2.0, 5.0],
  }[kind]
  best = jnp.asarray(right, jnp.float32)
  loss = lambda p: float(
    head.losses(jnp.broadcast_to(p, (20000, len(p))), targets).mean()
  )
  for place in range(len(best)):
    for change in (-0.5, 0.5):
      assert loss(best) < loss(best.at[place].add(change))


@pytest.mark.parametrize("kind", ["quantiles", "gaussian", "student_t"])
def test_quantiles_ascend_and_their_middle_is_the_point(kind):
  head = Head(kind)
  raw = jax.random.normal(jax.random.key(0), (4, 5, head.size))
  params = head.constrain(raw)
  found = head.quantiles(params)
  assert (np.diff(found, axis=-1) >= 0).all()
  np.testing.assert_allclose(found[..., 4], head.point(params), atol=1e-6)


def test_a_point_has_no_quantiles():
  assert Head("point").quantiles(np.zeros((2, 1))) is None
  errors = jnp.array([[0.5], [3.0]])
  wanted = {"mae": [0.5, 3], "mse": [0.25, 9], "huber": [0.125, 2.5]}
  for loss, values in wanted.items():
    found = Head("point", loss=loss).losses(errors, jnp.zeros(2))
    np.testing.assert_allclose(found, values)


def test_wrong_arguments_are_refused_by_name():
  for options, message in (
    ({"decoding": "magic"}, "decoding must be one of"),
    ({"normalization": "batch"}, "normalization must be one of"),
    ({"head": Head("cauchy")}, "head.kind must be one of"),
    ({"decays": True, "segment": 2}, "segment must be 1"),
  ):
    with pytest.raises(ValueError, match=message):
      _model(**options)
