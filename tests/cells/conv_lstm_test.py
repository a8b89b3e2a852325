"""The ConvLSTM against Flax's, in one to three dimensions."""

import itertools

import jax
import numpy as np
import pytest

from recurrent import unroll
from recurrent.cells import ConvLSTM, ConvLSTMParams
from tests.cells.cases import assert_close

BATCH, TIME, D, H = 2, 3, 2, 4


def as_flax(params, cell):
  """Our parameters in Flax's places.

  Its gates stand in the order i, g, f, o; its step adds one to the forget
  gate; it has a second bias.
  """
  turned = lambda array: np.concatenate(
    [np.split(np.asarray(array), 4, axis=-1)[k] for k in (0, 2, 1, 3)], axis=-1
  )
  bias = np.asarray(params.bias) - np.repeat([0, 1, 0, 0], H).astype("f4")
  return {
    "params": {
      "ih": {"kernel": turned(params.kernel), "bias": turned(bias)},
      "hh": {
        "kernel": turned(params.recurrent),
        "bias": np.zeros(4 * H, np.float32),
      },
    }
  }


@pytest.mark.parametrize(
  ("spatial", "kernel_size"),
  [((5,), 3), ((3, 4), 2), ((3, 4), 3), ((2, 3, 4), 2)],
)
@pytest.mark.usefixtures("standard_promotion")
def test_it_is_the_one_of_flax(spatial, kernel_size):
  linen = pytest.importorskip("flax.linen")
  cell = ConvLSTM(H, spatial=spatial, kernel_size=kernel_size)
  theirs = linen.ConvLSTMCell(H, kernel_size=(kernel_size,) * len(spatial))
  random = np.random.default_rng(0)
  normal = lambda *shape: random.normal(size=shape).astype(np.float32)
  params = jax.tree.map(
    lambda x: x + 0.3 * normal(*x.shape), cell.init(jax.random.key(0), D)
  )
  inputs = normal(BATCH, TIME, *spatial, D)
  weights = normal(BATCH, TIME, *spatial, H)

  def ours(params, inputs):
    carry, outputs = unroll(cell, params, None, inputs)
    return (outputs * weights).sum(), (outputs, carry.hidden, carry.cell)

  def flax(variables, inputs):
    carry = theirs.initialize_carry(jax.random.key(0), inputs[:, 0].shape)
    outputs = []
    for t in range(TIME):
      carry, output = theirs.apply(variables, carry, inputs[:, t])
      outputs.append(output)
    outputs = jax.numpy.stack(outputs, axis=1)
    return (outputs * weights).sum(), (outputs, carry[1], carry[0])

  (_, got), d_ours = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(
    params, inputs
  )
  variables = as_flax(params, cell)
  (_, want), d_flax = jax.jit(jax.value_and_grad(flax, (0, 1), has_aux=True))(
    variables, inputs
  )
  # float32 rounds at 6e-8; sums of up to 27 * 4 products, three time steps
  # deep.
  assert_close(got, want, 1e-5)
  assert_close(d_ours[1], d_flax[1], 1e-5)
  # A constant that is added has no part in the gradient.
  shifted = as_flax(d_ours[0], cell)["params"]
  forget = np.repeat([0, 0, 1, 0], H).astype("f4")
  shifted["ih"]["bias"] = shifted["ih"]["bias"] + forget
  for part in ("ih", "hh"):
    kernels = (shifted[part]["kernel"], d_flax[0]["params"][part]["kernel"])
    assert_close(*kernels, 1e-5)
  assert_close(shifted["ih"]["bias"], d_flax[0]["params"]["ih"]["bias"], 1e-5)


@pytest.mark.parametrize("forget_bias", [1.0, -2.5])
def test_the_parameters_have_the_promised_shapes(forget_bias):
  cell = ConvLSTM(H, spatial=(8, 6), kernel_size=5, forget_bias=forget_bias)
  params = cell.init(jax.random.key(0), D)
  assert type(params) is ConvLSTMParams
  assert jax.tree.map(np.shape, params) == (
    (5, 5, D, 4 * H),
    (5, 5, H, 4 * H),
    (4 * H,),
  )
  i, f, g, o = np.split(np.asarray(params.bias), 4)
  assert (f == forget_bias).all() and not np.concatenate([i, g, o]).any()
  # Uniform with variance 1 / fan_in; 1600 draws, 5 standard deviations.
  for kernel, width in ((params.kernel, D), (params.recurrent, H)):
    assert (np.abs(kernel) <= np.sqrt(3 / (25 * width))).all()
    np.testing.assert_allclose(np.var(kernel) * 25 * width, 1, rtol=0.12)


def test_a_pixel_is_seen_a_window_further_at_every_time_step():
  cell = ConvLSTM(1, spatial=(9, 9))
  params = jax.tree.map(np.ones_like, cell.init(jax.random.key(0), 1))
  image = np.zeros((1, 3, 9, 9, 1), np.float32)
  image[0, 0, 4, 4] = 1
  _, outputs = unroll(cell, params, None, image)
  _, without = unroll(cell, params, None, np.zeros_like(image))
  changed = np.asarray(outputs != without)[0, ..., 0]
  for time_step, row, column in itertools.product(range(3), range(9), range(9)):
    near = max(abs(row - 4), abs(column - 4)) <= time_step + 1
    assert changed[time_step, row, column] == near
