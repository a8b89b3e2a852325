import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recurrent import newton, unroll
from recurrent.cells import (
  GRU,
  LSTM,
  RNN,
  SLSTM,
  Diagonal,
  Heads,
  LayerNormGRU,
)
from tests.cells.cases import assert_close


def drawn(cell, time, seed=0):
  keys = jax.random.split(jax.random.key(seed))
  inputs = jax.random.normal(keys[0], (2, time, 3))
  return cell.init(keys[1], 3), inputs


@functools.partial(jax.jit, static_argnums=(0, 3))
def solved(cell, params, inputs, options=()):
  return newton(cell, params, None, inputs, **dict(options))


@pytest.mark.parametrize("time", [100, 10_000])
@pytest.mark.parametrize(
  "cell",
  [
    RNN(8),
    LSTM(8),
    GRU(8),
    SLSTM(8),
    LayerNormGRU(16),
    LSTM(8, structure=Heads(4)),
    LSTM(8, structure=Diagonal()),
    GRU(8, structure=Diagonal()),
  ],
  ids=str,
)
def test_it_finds_the_scan_within_its_tolerance(cell, time):
  params, inputs = drawn(cell, time)
  carry, outputs, report = solved(cell, params, inputs)
  assert report.converged
  assert report.residual <= 50 * np.finfo(np.float32).eps
  # Exact blocks are Newton's method: the digits double every iteration.
  assert report.iterations <= (8 if cell.channelwise else 60)
  want = jax.jit(functools.partial(unroll, cell, method="scan"))(
    params, None, inputs
  )
  # What is left of an error that is halved in each iteration.
  assert_close((carry, outputs), want, 1e-4)


def test_one_rows_great_carry_does_not_end_the_iterations_of_the_others():
  cell = RNN(8)
  params, inputs = drawn(cell, 50)
  carry = jax.tree.map(
    lambda x: x.at[0].set(1e30), cell.initial_carry(params, (2,))
  )
  # Its time steps are not real, so that it stays.
  mask = jnp.ones((2, 50), bool).at[0].set(False)
  got = newton(cell, params, carry, inputs, mask=mask)
  want = unroll(cell, params, carry, inputs, mask=mask, method="scan")
  assert got[2].converged and got[2].iterations > 5
  assert_close(got[1], want[1], 1e-4)


def test_an_slstm_that_has_not_begun_does_not_end_the_iterations():
  # The logarithm of nothing, which is held where rows are padded at the left.
  cell = SLSTM(8)
  params, inputs = drawn(cell, 50)
  mask = jnp.asarray(np.arange(50) >= np.array([[3], [50]]))
  got = newton(cell, params, None, inputs, mask=mask)
  want = unroll(cell, params, None, inputs, mask=mask, method="scan")
  assert got[2].converged
  assert_close(got[:2], want, 1e-4)


def test_a_looser_tolerance_takes_fewer_iterations():
  cell = RNN(8)
  args = (cell, *drawn(cell, 200))
  loose, tight = (
    solved(*args, (("tolerance", tolerance),))[2] for tolerance in (1e-2, 1e-5)
  )
  assert loose.iterations < tight.iterations
  assert tight.residual < loose.residual <= 1e-2


def test_damping_changes_the_way_but_not_the_solution():
  cell = GRU(8)
  args = (cell, *drawn(cell, 200))
  _, plain, undamped = solved(*args)
  _, outputs, damped = solved(*args, (("damping", 0.3),))
  assert damped.iterations != undamped.iterations
  assert_close(outputs, plain, 1e-4)


@pytest.mark.parametrize("cell", [LSTM(8), SLSTM(8)], ids=str)
def test_without_iterations_enough_the_loop_runs_and_the_report_says_so(cell):
  params, inputs = drawn(cell, 64)
  carry, outputs, report = solved(
    cell, params, inputs, (("max_iterations", 2),)
  )
  assert not report.converged and report.iterations == 2
  want = unroll(cell, params, None, inputs, method="fused")
  assert_close((carry, outputs), want, 1e-6)


def test_iterations_that_explode_end_at_once():
  cell = RNN(8, activation="relu")
  params, inputs = drawn(cell, 400)
  params = params._replace(recurrent=1.02 * params.recurrent)
  _, outputs, report = solved(cell, params, 1e30 * inputs)
  want = unroll(cell, params, None, 1e30 * inputs, method="scan")[1]
  # They end before the greatest number of iterations, 100.
  assert report.iterations < 100
  assert_close(
    jnp.nan_to_num(outputs) / 1e30, jnp.nan_to_num(want) / 1e30, 1e-4
  )


@pytest.mark.parametrize(
  ("option", "value"),
  [
    ("tolerance", 0.0),
    ("tolerance", -1.0),
    ("max_iterations", 0),
    ("damping", 1.0),
    ("damping", -0.1),
  ],
)
def test_options_out_of_range_are_refused(option, value):
  cell = RNN(2)
  params, inputs = drawn(cell, 3)
  with pytest.raises(ValueError, match=option):
    newton(cell, params, None, inputs, **{option: value})
