import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from recurrent import cells, unroll
from recurrent.nn import Recurrent
from tests.cells.cases import inputs_for

D, H = 3, 4
# Of the generators of keys, "rbg" is the one that compiles fastest.
KEYS = [jax.random.key(seed, impl="rbg") for seed in range(2)]
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(2, 5, D)).astype(np.float32)
MASK = np.array([[1, 1, 0, 1, 1], [1, 1, 1, 0, 0]], bool)
RESETS = np.array([[0, 0, 0, 1, 0], [1, 0, 0, 0, 0]], bool)


def make(cell="lstm", seed=0, **kwargs):
  cell = cells.get(cell)(H) if isinstance(cell, str) else cell
  return Recurrent(cell, D, rngs=nnx.Rngs(KEYS[seed]), **kwargs)


def assert_same(got, expected):
  jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("cell", cells.CELLS)
def test_it_is_the_cell_with_parameters_of_its_own(cell):
  params = make(cell).cell_params()
  expected = cells.get(cell)(H).init(KEYS[0], D)
  assert jax.tree.structure(params) == jax.tree.structure(expected)
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"reverse": True},
    {"method": "scan"},
    {"method": "fused", "remat": 2},
    {"remat": "gates"},
  ],
)
def test_its_numbers_are_those_of_unroll(options):
  layer = make(**options)
  flags = {"mask": jnp.asarray(MASK), "resets": jnp.asarray(RESETS)}
  carry = jax.tree.map(lambda x: x + 0.5, layer.initial_carry(2))

  @jax.jit
  def both(inputs):
    params = layer.cell_params()
    return layer(carry, inputs, **flags), unroll(
      layer.cell, params, carry, inputs, **flags, **options
    )

  assert_same(*both(INPUTS))


@pytest.mark.parametrize("cell", cells.CELLS)
def test_modules_that_are_made_alike_have_equal_graphdefs(cell):
  one, other = (nnx.split(make(cell, seed))[0] for seed in (0, 1))
  assert one == other and hash(one) == hash(other)


@pytest.mark.parametrize(
  "other",
  [
    lambda: make("gru"),
    lambda: make(reverse=True),
    lambda: make(method="scan"),
    lambda: make(remat=2),
    lambda: make(cells.LSTM(H, forget_bias=2.0)),
  ],
)
def test_modules_that_are_made_differently_have_not(other):
  assert nnx.split(make())[0] != nnx.split(other())[0]


def test_it_is_the_same_after_split_and_merge():
  layer = make()
  assert_same(nnx.merge(*nnx.split(layer)).cell_params(), layer.cell_params())


def test_all_its_state_is_parameters():
  layer = make()
  assert nnx.split(layer)[1] == nnx.split(layer, nnx.Param, ...)[1]


def test_another_seed_draws_other_parameters():
  kernels = [make(seed=seed).cell_params().kernel for seed in (0, 1)]
  assert (kernels[0] != kernels[1]).all()


def test_two_layers_of_one_rngs_differ():
  rngs = nnx.Rngs(KEYS[0])
  one, other = (Recurrent(cells.LSTM(H), D, rngs=rngs) for _ in range(2))
  assert (one.cell_params().kernel != other.cell_params().kernel).all()


def test_a_compiled_function_of_it_is_traced_once():
  traces = []

  @jax.jit(static_argnums=0)
  def run(graphdef, params, inputs):
    traces.append(graphdef)
    return nnx.merge(graphdef, params)(None, inputs)

  for seed in (0, 1):
    run(*nnx.split(make(seed=seed)), jnp.asarray(INPUTS))
  assert len(traces) == 1


def test_its_parameters_can_be_written():
  layer = make()
  graphdef, params = nnx.split(layer)
  doubled = nnx.merge(graphdef, jax.tree.map(lambda x: 2 * x, params))
  assert_same(
    doubled.cell_params(), jax.tree.map(lambda x: 2 * x, layer.cell_params())
  )


@pytest.mark.parametrize("cell", cells.CELLS)
def test_step_after_project_is_a_time_step_of_the_whole(cell):
  layer = make(cell)
  inputs = inputs_for(layer.cell, np.random.default_rng(0), 2, 5, D)

  @jax.jit
  def time_step_by_time_step(carry, inputs):
    def time_step(carry, now):
      return layer.step(carry, layer.project(now), jnp.float32)

    time_steps = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), inputs)
    return jax.lax.scan(time_step, carry, time_steps)

  carry, outputs = time_step_by_time_step(layer.initial_carry(2), inputs)
  expected_carry, expected = jax.jit(lambda x: layer(None, x))(inputs)
  # The products are summed in another order: a few units in the last place.
  np.testing.assert_allclose(
    jnp.swapaxes(outputs, 0, 1), expected, rtol=1e-5, atol=1e-6
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    carry,
    expected_carry,
  )


@pytest.mark.parametrize(
  "wrong", [{"method": "sideways"}, {"remat": 0}, {"remat": "some"}]
)
def test_an_option_that_unroll_refuses_is_refused(wrong):
  [name] = wrong
  with pytest.raises(ValueError, match=name):
    make(**wrong)(None, jnp.asarray(INPUTS))


def test_a_learnt_carry_starts_as_the_cells_and_is_a_parameter():
  plain, learnt = make(), make(learn_carry=True)
  assert_same(learnt(None, INPUTS), plain(None, INPUTS))
  graphdef, params = nnx.split(learnt, nnx.Param)
  slopes = jax.grad(
    lambda p: jnp.sum(
      nnx.merge(graphdef, p)(None, INPUTS, resets=jnp.asarray(RESETS))[1]
    )
  )(params)
  assert jax.tree.leaves(slopes["start"])[0].shape == (H,)
  assert all((x != 0).all() for x in jax.tree.leaves(slopes["start"]))


def test_a_learnt_carry_is_what_rows_begin_and_restart_with():
  layer = make(learn_carry=True)
  layer.start = nnx.data(
    jax.tree.map(lambda x: nnx.Param(x[...] + 0.5), layer.start)
  )
  start = layer.initial_carry(2)
  assert jax.tree.map(jnp.shape, start) == cells.LSTMCarry((2, H), (2, H))
  assert all((x == 0.5).all() for x in jax.tree.leaves(start))
  resets = np.zeros((2, 5), bool)
  resets[:, 2] = True
  _, outputs = layer(None, INPUTS, resets=jnp.asarray(resets))
  params = layer.cell_params()
  for part in (slice(2), slice(2, None)):
    _, want = unroll(layer.cell, params, start, INPUTS[:, part])
    np.testing.assert_allclose(outputs[:, part], want, rtol=1e-6)


def test_the_key_draws_the_noise_of_the_cell():
  layer = make(cells.Zoneout(cells.LSTM(H), 0.5))
  runs = [layer(None, INPUTS, key=key)[1] for key in (*KEYS, KEYS[0], None)]
  assert_same(runs[0], runs[2])
  assert (runs[0] != runs[1]).any() and (runs[0] != runs[3]).any()
