"""Sums and noise over rows that are divided over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from recurrent import losses, rows, sharding
from recurrent.metrics import Mean

ROWS, WHOLE = sharding.ROWS, sharding.WHOLE
several = pytest.mark.several_devices
VALUES = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


def on_devices(run, *args, devices=4, out=WHOLE, axes=None):
  """Runs a function in `jax.shard_map`, all arguments split by rows."""
  mesh = sharding.make_mesh(devices)
  each = jax.shard_map(run, mesh=mesh, in_specs=ROWS, out_specs=out)
  return jax.jit(each)(*args)


def test_outside_of_shard_map_nothing_changes():
  tree = {"a": jnp.ones(2), "b": (jnp.zeros(()),)}
  assert rows.total(tree) is tree
  assert rows.vary_alike(tree) is tree
  assert not rows.axes_of(tree)


@several
@pytest.mark.parametrize("devices", [2, 8])
def test_a_total_is_that_of_all_rows(devices):
  def run(values):
    # A count is the same on every device.
    return rows.total((values.sum(), jnp.float32(values.size)))

  total, count = on_devices(run, VALUES, devices=devices)
  assert count == VALUES.size
  np.testing.assert_allclose(total, VALUES.sum(), rtol=1e-5)


WEIGHTS = (VALUES > 0).astype(np.float32) + (np.arange(8) == 7)[:, None]


def composed(scale, values, weights):
  """A loss of several means, one of them within another."""
  scaled = jnp.tanh(values * scale)
  mean = Mean.of(scaled, weights).value()
  spread = Mean.of((scaled - mean) ** 2).value()
  return mean / (1 + spread) + losses.activation_penalty(
    scaled[:, :, None], weights > 0
  )


@several
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_a_loss_of_means_has_the_gradient_of_all_rows(devices):
  scale = np.linspace(0.5, 1.5, 3, dtype=np.float32)
  whole = lambda s, *args: composed(jnp.broadcast_to(s, VALUES.shape), *args)
  want = jax.value_and_grad(whole)(scale, VALUES, WEIGHTS)

  def run(values, weights):
    own = rows.vary(jnp.asarray(scale), rows.axes_of(values))
    loss = lambda s: composed(
      jnp.broadcast_to(s, values.shape), values, weights
    )
    value, grad = jax.value_and_grad(loss)(own)
    return value, rows.total(grad)

  found = on_devices(run, VALUES, WEIGHTS, devices=devices)
  for a, b in zip(found, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@several
def test_a_mean_without_any_weight_is_zero_and_not_nan():
  run = lambda x: Mean.of(x, jnp.zeros_like(x)).value()
  assert on_devices(run, VALUES) == 0


KEYS = {
  "threefry": lambda: jax.random.key(3),
  "folded": lambda: jax.random.fold_in(jax.random.key(3), 5),
  "raw": lambda: jax.random.PRNGKey(3),
  "rbg": lambda: jax.random.key(3, impl="rbg"),
}


@several
@pytest.mark.parametrize("devices", [2, 8])
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("shape", [(8,), (8, 5), (16, 3, 2)])
def test_noise_does_not_depend_on_the_number_of_devices(shape, key, devices):
  key = KEYS[key]()
  want = jax.random.bernoulli(key, 0.3, shape)
  like = jnp.zeros(shape[:1])
  run = lambda x: rows.bernoulli(key, 0.3, (*x.shape, *shape[1:]), x)
  np.testing.assert_array_equal(run(like), want)
  found = on_devices(run, like, devices=devices, out=ROWS)
  np.testing.assert_array_equal(found, want)


@several
@pytest.mark.usefixtures("x64")
def test_noise_in_double_precision_is_that_of_one_device_too():
  key, like = jax.random.key(0), jnp.zeros(8)
  run = lambda x: rows.bernoulli(key, 0.3, (*x.shape, 4), x)
  found = on_devices(run, like, devices=8, out=ROWS)
  np.testing.assert_array_equal(found, jax.random.bernoulli(key, 0.3, (8, 4)))


@several
def test_rows_may_be_divided_over_two_axes():
  mesh = jax.make_mesh(
    (4, 2), ("data", "replica"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  key, like = jax.random.key(0), jnp.zeros(16)
  both = PartitionSpec(("data", "replica"))
  run = lambda x: (
    rows.bernoulli(key, 0.5, (*x.shape, 3), x),
    rows.total(x.sum() + 1),
  )
  each = jax.shard_map(run, mesh=mesh, in_specs=both, out_specs=(both, WHOLE))
  drawn, total = jax.jit(each)(like)
  np.testing.assert_array_equal(drawn, jax.random.bernoulli(key, 0.5, (16, 3)))
  assert total == 8


# What `sharding.on_own_rows` does where that cannot be.


@several
@pytest.mark.parametrize(
  ("why", "run", "args"),
  [
    ("mean over the rows", lambda x, y: (x.mean(), y), (VALUES, VALUES)),
    ("equal parts", lambda x, y: (x.sum(), y), (VALUES[:6], VALUES[:6])),
    ("equal parts", lambda x, y: (x.sum() * y, y), (VALUES, np.float32(2))),
    (
      "a loop whose carry begins replicated",
      lambda x, y: (
        rows.total(
          jax.lax.scan(lambda c, v: (c + v, None), jnp.zeros(3), x)[0].sum()
        ),
        y,
      ),
      (VALUES, VALUES),
    ),
  ],
)
def test_the_compiler_divides_what_devices_cannot_do_alone(
  why, run, args, caplog
):
  mesh = sharding.make_mesh(4)
  specs = (ROWS, ROWS), (WHOLE, ROWS)
  found = jax.jit(sharding.on_own_rows(run, mesh, *specs))(*args)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5), found, run(*args)
  )
  assert "compiler divides the work over 4 devices" in caplog.text
  if why == "equal parts":
    assert "are not 4 equal parts" in caplog.text


def test_on_one_device_a_function_stays_as_it_is():
  run = lambda x: x
  assert sharding.on_own_rows(run, sharding.make_mesh(1), (ROWS,), ROWS) is run
