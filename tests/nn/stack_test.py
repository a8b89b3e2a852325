"""Tests of `Stack`; where the kind of layer does not matter, it is `Echo`."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from recurrent import cells
from recurrent.cells.base import Cell
from recurrent.nn import Recurrent, Residual, Stack
from recurrent.types import Array

# Of the generators of keys, "rbg" is the one that compiles fastest.
KEY = jax.random.key(0, impl="rbg")
RNG = np.random.default_rng(0)


class Gain(NamedTuple):
  gain: Array


class Count(NamedTuple):
  hidden: Array


@dataclasses.dataclass(frozen=True)
class Echo(Cell):
  """The inputs, cut or repeated to `features`; the carry counts time steps."""

  def init(self, key, in_features):
    return Gain(jnp.ones(()))

  def initial_carry(self, params, batch_shape):
    return Count(jnp.zeros((*batch_shape, 1)))

  def project(self, params, inputs):
    columns = jnp.arange(self.features) % inputs.shape[-1]
    return params.gain * inputs[..., columns]

  def step(self, params, carry, projected):
    return Count(carry.hidden + 1), projected


def echoes(*widths, in_features=2, **kwargs):
  sizes = (in_features, *widths)
  return Stack(
    [
      Recurrent(Echo(width), below, rngs=nnx.Rngs(KEY))
      for below, width in zip(sizes, widths, strict=False)
    ],
    **kwargs,
  )


def layers_of(cell, widths, in_features):
  rngs = nnx.Rngs(KEY)
  sizes = (in_features, *widths)
  return [
    Recurrent(cells.get(cell)(width), below, rngs=rngs)
    for below, width in zip(sizes, widths, strict=False)
  ]


def run(stack, inputs, carries=None, **kwargs):
  return jax.jit(lambda x, kwargs: stack(carries, x, **kwargs))(inputs, kwargs)


def assert_close(got, expected):
  # float32, the same sums in another order, over a few time steps.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
    got,
    expected,
  )


# Layers and carries.


def test_layers_run_one_upon_another():
  layers = layers_of("gru", (4, 4), in_features=3)

  @jax.jit
  def one_by_one(inputs):
    below, middle = layers[0](None, inputs)
    above, outputs = layers[1](None, middle)
    return (below, above), outputs

  inputs = RNG.normal(size=(2, 5, 3)).astype(np.float32)
  assert_close(run(Stack(layers), inputs), one_by_one(inputs))


def test_there_is_one_carry_a_layer_of_its_width():
  stack = Stack(layers_of("lstm", (4, 3), in_features=3))
  carries = stack.initial_carry(7)
  assert jax.tree.map(jnp.shape, carries) == (
    cells.LSTMCarry((7, 4), (7, 4)),
    cells.LSTMCarry((7, 3), (7, 3)),
  )


def test_the_carry_that_comes_back_fits_in_again():
  stack = echoes(2, 2, 2)
  carries = stack.initial_carry(3)
  for _ in range(2):
    carries, _ = run(stack, jnp.ones((3, 4, 2)), carries)
  assert [c.hidden.tolist() for c in carries] == [[[8.0]] * 3] * 3


def test_mask_and_resets_reach_every_layer():
  mask = jnp.array([[True, True, True, False]])
  resets = jnp.array([[False, True, False, True]])
  carries, outputs = run(
    echoes(2, 2), jnp.ones((1, 4, 2)), mask=mask, resets=resets
  )
  assert [float(c.hidden[0, 0]) for c in carries] == [2, 2]
  assert outputs[0, :, 0].tolist() == [1, 1, 1, 0]


# Residuals.


def test_a_residual_adds_the_inputs_of_each_layer():
  _, outputs = run(echoes(2, 2, 2, residual=True), jnp.full((1, 3, 2), 5.0))
  # Twice as much after each of three layers.
  assert (outputs == 40).all()


def test_without_residual_nothing_is_added():
  _, outputs = run(echoes(2, 2, 2), jnp.full((1, 3, 2), 5.0))
  assert (outputs == 5).all()


def test_a_residual_is_added_only_where_widths_agree():
  _, outputs = run(echoes(4, 4, 3, residual=True), jnp.ones((1, 3, 2)))
  assert outputs.shape == (1, 3, 3)
  # Doubled by the second layer only.
  assert (outputs == 2).all()


def test_with_a_residual_too_outputs_are_zero_where_masked():
  mask = jnp.array([[True, False]])
  inputs = jnp.array([[[1.0, 1.0], [jnp.nan, jnp.inf]]])
  for options in ({"residual": True}, {"skip": True}):
    _, outputs = run(echoes(2, 2, **options), inputs, mask=mask)
    assert outputs[0, 0].any() and not outputs[0, 1].any()


# Skips.


def test_with_skips_layers_see_the_inputs_and_all_outputs_come_out():
  layers = [
    *layers_of("gru", (4,), in_features=3),
    *layers_of("lstm", (5,), in_features=3 + 4),
  ]
  inputs = RNG.normal(size=(2, 5, 3)).astype(np.float32)

  @jax.jit
  def by_hand(inputs):
    below, first = layers[0](None, inputs)
    seen = jnp.concatenate([inputs, first], axis=-1)
    above, second = layers[1](None, seen)
    return (below, above), jnp.concatenate([first, second], axis=-1)

  assert_close(run(Stack(layers, skip=True), inputs), by_hand(inputs))


def test_stepping_with_skips_is_running_with_skips():
  layers = [
    *layers_of("gru", (4,), in_features=3),
    *layers_of("lstm", (5,), in_features=3 + 4),
  ]
  stack = Stack(layers, skip=True)
  table = jnp.asarray(RNG.normal(size=(6, 3)).astype(np.float32))
  rows = jnp.asarray(RNG.integers(0, 6, (2, 5)))

  @jax.jit
  def both_ways(table, rows):
    step = stack.step_over(table)
    carries, outputs = jax.lax.scan(step, stack.initial_carry(2), rows.T)
    return (carries, jnp.swapaxes(outputs, 0, 1)), stack(None, table[rows])

  assert_close(*both_ways(table, rows))


def test_residual_and_skip_exclude_each_other():
  with pytest.raises(ValueError, match="exclude each other"):
    echoes(2, residual=True, skip=True)


def test_a_residual_layer_adds_its_inputs():
  layer = layers_of("gru", (3,), in_features=3)[0]
  inputs = RNG.normal(size=(2, 5, 3)).astype(np.float32)
  carry, outputs = layer(None, inputs)
  assert_close(Residual(layer)(None, inputs), (carry, outputs + inputs))
  # In a stack, and one token at a time.
  stack = Stack([Residual(layer), Residual(layer)])
  table, rows = jnp.asarray(inputs[0]), jnp.array([[0, 2, 1, 4]])
  step = stack.step_over(table)
  carries, stepped = jax.lax.scan(step, stack.initial_carry(1), rows.T)
  got = carries, jnp.swapaxes(stepped, 0, 1)
  assert_close(got, run(stack, table[rows]))


def test_a_residual_layer_of_another_width_is_refused():
  layer = Residual(layers_of("gru", (4,), in_features=3)[0])
  with pytest.raises(ValueError, match="as wide as inputs, got 4 for 3"):
    layer(None, jnp.ones((1, 2, 3)))


# Noise.


def test_the_key_reaches_every_layer_and_differs_between_them():
  cell = cells.Zoneout(cells.GRU(50), 0.5)
  layer = Recurrent(cell, 50, rngs=nnx.Rngs(KEY))
  stack = Stack([layer, layer])
  inputs = RNG.normal(size=(1, 1, 50)).astype(np.float32)
  (below, above), _ = run(stack, inputs, key=KEY)
  # A unit that is zoned out keeps its initial zero.
  kept = [np.asarray(x.hidden) == 0 for x in (below, above)]
  assert all(0 < k.mean() < 1 for k in kept)
  assert (kept[0] != kept[1]).any()
  quiet, _ = run(stack, inputs)
  assert all((np.asarray(x.hidden) != 0).all() for x in quiet)


# Dropout.


@pytest.mark.parametrize("layers,kept", [(1, 1.0), (2, 0.5), (3, 0.25)])
def test_dropout_is_between_layers_only_each_with_a_mask_of_its_own(
  layers, kept
):
  stack = echoes(*[50] * layers, in_features=50, dropout=0.5)
  _, outputs = run(stack, jnp.ones((10, 20, 50)), key=KEY)
  values = {0.0, 1 / kept} if layers > 1 else {1.0}
  assert set(np.unique(outputs).tolist()) == values
  # 10,000 independent entries: 5 standard deviations.
  np.testing.assert_allclose((outputs != 0).mean(), kept, atol=0.025)


def test_dropout_is_fresh_at_each_time_step():
  stack = echoes(50, 50, in_features=50, dropout=0.5)
  _, outputs = run(stack, jnp.ones((10, 20, 50)), key=KEY)
  kept = np.asarray(outputs) != 0
  agree = (kept[:, 1:] == kept[:, :-1]).mean()
  np.testing.assert_allclose(agree, 0.5, atol=0.025)


def test_without_a_key_nothing_is_dropped():
  _, outputs = run(echoes(2, 2, 2, dropout=0.9), jnp.ones((1, 3, 2)))
  assert (outputs == 1).all()


# One time step after another.


@pytest.mark.parametrize("cell", cells.vector_cells())
def test_stepping_over_a_table_is_running_over_its_rows(cell):
  # The second and third layer have a residual, the first has not.
  stack = Stack(layers_of(cell, (4, 4, 4), in_features=3), residual=True)
  table = jnp.asarray(RNG.normal(size=(6, 3)).astype(np.float32))
  rows = jnp.asarray(RNG.integers(0, 6, (2, 5)))

  @jax.jit
  def both_ways(table, rows):
    step = stack.step_over(table)
    carries, outputs = jax.lax.scan(step, stack.initial_carry(2), rows.T)
    return (carries, jnp.swapaxes(outputs, 0, 1)), stack(None, table[rows])

  assert_close(*both_ways(table, rows))


def test_stepping_over_a_table_as_wide_as_the_layer_has_a_residual():
  stack = echoes(2, 2, residual=True)
  step = stack.step_over(jnp.array([[1.0, 2.0], [3.0, 4.0]]))
  carries, outputs = step(stack.initial_carry(2), jnp.array([1, 0]))
  assert outputs.tolist() == [[12, 16], [4, 8]]
  assert [c.hidden.tolist() for c in carries] == [[[1.0], [1.0]]] * 2


def test_stepping_drops_nothing():
  stack = echoes(2, 2, 2, dropout=0.9)
  step = stack.step_over(jnp.array([[1.0, 2.0]]))
  _, outputs = step(stack.initial_carry(1), jnp.array([0]))
  assert outputs.tolist() == [[1, 2]]


@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_stepping_is_in_the_dtype_of_the_table(cell):
  stack = Stack(layers_of(cell, (4, 4), in_features=4), residual=True)
  carries = stack.initial_carry(1)
  step = stack.step_over(jnp.ones((2, 4), jnp.bfloat16))
  stepped, outputs = step(carries, jnp.array([1]))
  assert outputs.dtype == jnp.bfloat16
  assert {x.dtype for x in jax.tree.leaves(stepped)} == {jnp.dtype("float32")}
