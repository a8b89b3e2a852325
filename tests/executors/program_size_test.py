"""Limits the number of instructions, and so compile time, of gradients."""

import jax
import jax.numpy as jnp
import pytest

from recurrent import unroll
from recurrent.cells import CELLS
from recurrent.kernels.cpu import unavailable

METHODS = {
  "lstm": ("scan", "fused", "cpu_kernel", "newton", "tpu_kernel"),
  "gru": ("scan", "fused", "cpu_kernel", "newton", "tpu_kernel"),
  "lru": ("scan", "linear_scan", "tpu_kernel"),
  "mlstm": ("scan", "linear_scan", "chunkwise"),
}
WAYS = [
  *((name, method, None) for name in METHODS for method in METHODS[name]),
  ("lstm", "fused", "gates"),
  ("lstm", "cpu_kernel", "gates"),
  ("lstm", "scan", 64),
  ("lru", "linear_scan", 64),
]


def instructions(name, method, remat, time_steps):
  cell = CELLS[name](4)
  params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
  inputs = jax.ShapeDtypeStruct((2, time_steps, 3), jnp.float32)

  def total(params, inputs):
    how = {"method": method, "remat": remat}
    return jnp.sum(unroll(cell, params, None, inputs, **how)[1] ** 2)

  compiled = jax.jit(jax.grad(total)).lower(params, inputs).compile()
  return sum(" = " in line for line in compiled.as_text().splitlines())


# 64 time steps are one chunk of "chunkwise", without a loop over chunks.
# XLA fuses large arrays otherwise than small ones: a few instructions.
@pytest.mark.parametrize(("name", "method", "remat"), WAYS)
def test_a_program_is_as_large_for_4096_time_steps_as_for_1024(
  name, method, remat
):
  if method == "cpu_kernel" and unavailable():
    pytest.skip(f"it {unavailable()}")
  short, long = (instructions(name, method, remat, t) for t in (1024, 4096))
  assert abs(long - short) < 0.05 * short


def test_the_associative_scan_grows_by_a_level_for_every_doubling():
  # So it is not above; and otherwise the test above sees nothing.
  sizes = [
    instructions("lru", "associative", None, t) for t in (256, 512, 1024)
  ]
  assert sizes[1] - sizes[0] > 100 and sizes[2] - sizes[1] > 100
