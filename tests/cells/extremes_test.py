"""Tests closed and open gates, and decays near 1, over 100,000 time steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recurrent import unroll
from recurrent.cells import GRU, LRU, LSTM, QRNN
from tests.cells.cases import assert_same_bits, methods

TIME_STEPS = 100_000
H = 2

# Without LLVM's optimisations the reverse loop of "fused" copies the stacked
# carries at every time step, which takes half a minute here.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 2}
)

# What holds the carry: columns of the bias that are at 1e4, and at -1e4.
HOLD = {
  LSTM(H): (slice(H, 2 * H), slice(0, H)),
  GRU(H): (slice(H, 2 * H), slice(0, 0)),
  QRNN(H): (slice(H, 2 * H), slice(0, 0)),
}


def zero_params(cell):
  drawn = jax.eval_shape(lambda: cell.init(jax.random.key(0), 1))
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), drawn)


@pytest.mark.parametrize(
  ("cell", "method"), [(c, m) for c in HOLD for m in methods(c)], ids=str
)
def test_gates_at_1e4_keep_the_carry_and_its_gradient_to_the_bit(cell, method):
  params = zero_params(cell)
  above, below = HOLD[cell]
  params.bias[above], params.bias[below] = 1e4, -1e4
  start = cell.initial_carry(params, (1,))
  # tanh of the LSTM's cell is its hidden state: that one is not held.
  held = list(start._fields)[-1]
  start = start._replace(**{held: jnp.array([[0.3, -1.7]])})

  @jit
  def run(start, inputs):
    def last(start):
      carry, outputs = unroll(cell, params, start, inputs, method=method)
      return getattr(carry, held).sum(), (carry, outputs)

    return jax.grad(last, has_aux=True)(start)

  inputs = np.ones((1, TIME_STEPS, 1), np.float32)
  gradient, (carry, outputs) = run(start, inputs)
  assert_same_bits(getattr(carry, held), getattr(start, held))
  np.testing.assert_array_equal(getattr(gradient, held), np.ones((1, H)))
  assert np.isfinite(outputs).all()


@pytest.mark.parametrize("method", methods(LRU(1)))
def test_a_decay_of_one_less_1e_7_is_as_good_as_float32_holds_it(method):
  cell = LRU(1)
  zero = zero_params(cell)
  params = zero._replace(
    log_rate=zero.log_rate + np.float32(np.log(1e-7)),
    log_phase=zero.log_phase - 50,
  )
  params.kernel[0] = 1
  start = cell.initial_carry(params, (1,))
  start = start._replace(real=start.real + 1e3)
  inputs = np.ones((1, TIME_STEPS, 1), np.float32)
  carry, _ = jit(lambda x: unroll(cell, params, start, x, method=method))(
    inputs
  )
  decay = np.exp(-1e-7)
  powers = decay ** np.arange(TIME_STEPS + 1)
  want = 1e3 * powers[-1] + powers[:-1].sum()
  # float32 below one is 6e-8 apart: the decay is wrong by up to half of that,
  # at each of 100,000 time steps, and a sum of 1e5 by as much again.
  assert abs(carry.real.item() / want - 1) <= TIME_STEPS * 2.0**-24
