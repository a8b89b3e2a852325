"""Tests of `load` of all modules; loaded parameters remain trainable."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from recurrent import cells
from recurrent.nn import (
  Bidirectional,
  Recurrent,
  Residual,
  Stack,
  TransformerBlock,
)

D, H = 3, 4


def rngs(seed=0):
  # Of the generators of keys, "rbg" is the one that compiles fastest.
  return nnx.Rngs(jax.random.key(seed, impl="rbg"))


def recurrent(seed=0, cell="lstm", **options):
  return Recurrent(cells.get(cell)(H), D, rngs=rngs(seed), **options)


def bidirectional(seed=0):
  return Bidirectional(cells.LSTM(H), D, rngs=rngs(seed))


def stack(seed=0):
  above = Recurrent(cells.GRU(2 * H), 2 * H, rngs=rngs(seed))
  return Stack([bidirectional(seed), Residual(above)])


MAKERS = [recurrent, bidirectional, stack]


def arrays(module):
  """Its parameters as NumPy arrays, in the structure that `load` takes."""
  is_variable = lambda leaf: isinstance(leaf, nnx.Variable)
  return jax.tree.map(
    lambda p: np.array(p[...]), module.params, is_leaf=is_variable
  )


def values(module):
  return jax.tree.leaves(nnx.state(module, nnx.Param))


def same(one, other):
  return all(map(np.array_equal, values(one), values(other)))


@pytest.mark.parametrize("make", MAKERS)
def test_a_module_with_another_ones_parameters_is_the_other(make):
  one, other = make(0), make(1)
  assert not same(one, other)
  one.load(arrays(other))
  assert same(one, other)
  assert nnx.split(one)[0] == nnx.split(other)[0]


@pytest.mark.parametrize("cell", cells.CELLS)
def test_the_parameters_of_every_cell_can_be_loaded(cell):
  one, other = recurrent(0, cell), recurrent(1, cell)
  one.load(other.cell_params())
  assert same(one, other)


@pytest.mark.parametrize("make", MAKERS)
def test_an_optimiser_made_before_trains_what_is_loaded(make):
  module = make()
  optimizer = nnx.Optimizer(module, optax.sgd(1.0), wrt=nnx.Param)
  module.load(arrays(make(1)))
  gradients = jax.tree.map(jnp.ones_like, nnx.state(module, nnx.Param))
  optimizer.update(module, gradients)
  for after, loaded in zip(values(module), values(make(1)), strict=True):
    np.testing.assert_allclose(after, loaded - 1, rtol=1e-6)


def test_arrays_that_are_assigned_are_loaded_into_the_parameters():
  module, other = recurrent(), recurrent(1)
  kernel = module.params.kernel
  for plain in (
    other.cell_params(),
    nnx.data(other.cell_params()),
    other.params._replace(bias=other.params.bias[...]),
  ):
    module.load(recurrent(2).cell_params())
    module.params = plain
    assert module.params.kernel is kernel
    assert same(module, other)
  with pytest.raises(ValueError, match="must be LSTMParams, got a tuple of 2"):
    module.params = (np.zeros(3), np.zeros(3))


def test_a_learnt_carry_that_is_assigned_stays_a_parameter():
  module = recurrent(learn_carry=True)
  carry = cells.LSTMCarry(np.ones(H, np.float32), np.ones(H, np.float32))
  module.start = carry
  assert isinstance(module.start.hidden, nnx.Param)
  np.testing.assert_array_equal(module.initial_carry(2).cell, np.ones((2, H)))


def test_an_array_that_changes_later_changes_no_parameter():
  module, given = recurrent(), arrays(recurrent(1))
  module.load(given)
  given.kernel[:] = 7
  assert not (module.params.kernel[...] == 7).any()


def test_a_list_of_one_direction_is_that_direction():
  module = Stack([recurrent(), Recurrent(cells.LSTM(H), H, rngs=rngs())])
  given = [[params] for params in arrays(module)]
  given[1] = [given[1][0]._replace(bias=np.full(4 * H, 2, np.float32))]
  module.load(given)
  assert (module.layers[1].params.bias[...] == 2).all()


def wrong_leaf(field, value):
  """Parameters of `stack` with another leaf in its backward LSTM."""

  def change(params):
    (forward, backward), above = params
    return (forward, backward._replace(**{field: value})), above

  return change


@pytest.mark.parametrize(
  ("change", "said"),
  [
    (
      wrong_leaf("kernel", np.zeros((D + 1, 4 * H), np.float32)),
      r"params\[0\]\[1\].kernel must be float32\[3, 16\], got float32\[4, 16\]",
    ),
    (
      wrong_leaf("bias", np.zeros(4 * H, np.float64)),
      r"params\[0\]\[1\].bias must be float32\[16\], got float64\[16\]",
    ),
    (
      wrong_leaf("bias", None),
      r"params\[0\]\[1\].bias must be an array, got NoneType",
    ),
    (
      lambda params: (params[0], params[0][0]),
      r"params\[1\] must be GRUParams, got LSTMParams",
    ),
    (
      lambda params: (params[0][:1], params[1]),
      r"params\[0\] must be a sequence of 2, got a tuple of 1",
    ),
    (
      lambda params: params[:1],
      "params must be a sequence of 2, got a tuple of 1",
    ),
    (
      lambda params: (params[0], [params[1], params[1]]),
      r"params\[1\] must be GRUParams, got a list of 2",
    ),
  ],
)
def test_what_does_not_fit_is_named_and_nothing_is_changed(change, said):
  module = stack()
  with pytest.raises(ValueError, match=said):
    module.load(change(arrays(stack(1))))
  assert same(module, stack())


def test_a_layer_without_a_cell_is_named():
  block = TransformerBlock(4, heads=2, context=4, rngs=rngs())
  with pytest.raises(ValueError, match=r"layers\[0\] is a TransformerBlock"):
    Stack([block]).load([()])
