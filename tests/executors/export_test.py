"""Tests of `jax.export`, and of lowering for other platforms."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax import export

from recurrent import unroll
from recurrent.cells import CELLS
from recurrent.kernels import cpu
from tests.cells.cases import assert_close

# One of each loop in C++, and one that never had any.
NAMES = ("lstm", "gru", "rnn", "lstm_coupled", "lru", "min_gru", "slstm")
ARGS = jnp.ones((2, 5, 3)), jnp.arange(10).reshape(2, 5) % 4 > 0

needs_loops = pytest.mark.skipif(
  cpu.unavailable() != "", reason=f"it {cpu.unavailable()}"
)


def layer(name, method, gradient):
  cell = CELLS[name](4)
  params = cell.init(jax.random.key(0), 3)
  leaves, structure = jax.tree.flatten(params)

  def run(leaves, inputs, mask):
    params = structure.unflatten(leaves)
    how = {"mask": mask, "resets": ~mask, "method": method}
    return unroll(cell, params, None, inputs, **how)[1].sum()

  return jax.jit(jax.grad(run) if gradient else run), leaves


@needs_loops
def test_here_auto_calls_the_loops_in_cpp():
  # Otherwise the tests below see nothing.
  for name in NAMES[:-1]:
    for gradient in (False, True):
      run, leaves = layer(name, "auto", gradient)
      assert "@recurrent_" in run.lower(leaves, *ARGS).as_text()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gradient", [False, True])
def test_what_auto_runs_by_can_be_exported_and_equals_the_scan(name, gradient):
  run, leaves = layer(name, "auto", gradient)
  exported = export.export(run)(leaves, *ARGS)
  if importlib.util.find_spec("flatbuffers"):  # which JAX does not require
    exported = export.deserialize(exported.serialize())
  want = layer(name, "scan", gradient)[0](leaves, *ARGS)
  assert_close(exported.call(leaves, *ARGS), want, 1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gradient", [False, True])
def test_what_is_lowered_for_a_tpu_calls_nothing_of_this_cpu(name, gradient):
  run, leaves = layer(name, "auto", gradient)
  traced = run.trace(leaves, *ARGS)
  for platforms in (("tpu",), ("cuda",), ("cpu", "tpu")):
    if len(platforms) == 1:
      text = traced.lower(lowering_platforms=platforms).as_text()
    else:
      text = export.export(run, platforms=platforms)(
        leaves, *ARGS
      ).mlir_module()
    assert "@recurrent_" not in text
