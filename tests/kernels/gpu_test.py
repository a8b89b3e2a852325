"""The GPU kernels, interpreted, and compiled as far as that needs no GPU.

JAX's interpreter runs the warpgroups of a kernel as threads of the CPU client.
It has one thread per device, so these tests need several devices.
"""

import functools
import operator
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret import params as interpreter
from jax.experimental.pallas import mosaic_gpu as plgpu

from recurrent import compile_for, explain, kernels, unroll
from recurrent.cells import (
  CELLS,
  GRU,
  LSTM,
  RNN,
  Diagonal,
  LowRank,
  LSTMVariant,
)
from recurrent.executors import EXECUTORS, Setting
from tests.cells.cases import assert_close, results
from tests.kernels.tpu_test import drawn

pytestmark = pytest.mark.several_devices

ABLE = [n for n in CELLS if not EXECUTORS["gpu_kernel"].why_not(CELLS[n](6))]
KINDS = ("rnn", "lstm", "gru", "slstm", "rg_lru")
TABLE = ABLE if os.environ.get("RECURRENT_ALL_LAWS") else KINDS

both_directions = pytest.mark.parametrize(
  "reverse", [False, True], ids=["forward", "reverse"]
)


@pytest.fixture
def gpu():
  """Chooses as on a machine with a GPU."""
  with compile_for("gpu"):
    yield


@pytest.fixture
def interpreted(monkeypatch, gpu):
  """Kernels that are interpreted on the CPU."""
  del gpu
  how = interpreter.InterpretGPUParams()
  kernel = functools.partial(plgpu.kernel, interpret=how)
  monkeypatch.setattr(plgpu, "kernel", kernel)
  # The interpreter has no loads and stores but plain ones.
  monkeypatch.setattr(kernels.gpu, "read", operator.getitem)
  monkeypatch.setattr(kernels.gpu, "write", operator.setitem)


def run(cell, case, **how):
  return jax.jit(lambda case: results(case, cell, **how))(case)


def same(cell, case, allowed, **how):
  got = run(cell, case, method="gpu_kernel", **how)
  want = run(cell, case, method="scan", **how)
  assert_close(got, want, allowed)
  return got


# Interpreted.


@pytest.mark.usefixtures("interpreted")
def test_the_loop_is_lax_scan():
  random = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
  fixed, rows = normal(6, 12) / 4, normal(3, 6)
  carry, xs = normal(3, 6), 1 + normal(2, 3, 12) ** 2

  def time_step(fixed, rows, carry, x):
    # In units that only fill a tile it is zero by zero, which must stay there.
    mixed = jnp.dot(carry / x[:, :6], fixed)
    moved = jnp.pad(mixed[:, :6], ((0, 0), (6, 0))) + mixed
    both = jnp.concatenate([moved[:, 6:], rows], axis=1)
    carry = jnp.tanh(both[:, :6] + moved[:, :6])
    return carry, both

  got = jax.jit(functools.partial(kernels.gpu.scan, time_step))(
    fixed, rows, carry, xs
  )
  want = jax.lax.scan(functools.partial(time_step, fixed, rows), carry, xs)
  assert_close(got, want, 2e-5)


@pytest.mark.usefixtures("interpreted")
@both_directions
@pytest.mark.parametrize("name", TABLE)
def test_a_cell_runs_as_by_the_plain_scan(name, reverse):
  cell = CELLS[name](6)
  case = drawn(cell, time=5, dtype=np.float32)
  # Two terms of bfloat16 have some 17 bits: 8e-6 a product.
  got = same(cell, case, 2e-5, reverse=reverse)
  assert all(np.any(leaf) for leaf in jax.tree.leaves(got.d_params))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("flags", [False, True])
def test_warpgroups_and_blocks_of_rows_work_together(flags):
  # Two of each; 70 units and 20 rows fill neither.
  case = drawn(RNN(70), batch=20, time=3, dtype=np.float32)
  if not flags:
    case = case._replace(mask=None, resets=None)
  same(RNN(70), case, 5e-5)


@pytest.mark.usefixtures("interpreted")
def test_bfloat16_is_multiplied_narrow_and_summed_wide():
  case = drawn(GRU(6), time=5, dtype=np.float32)
  case = case._replace(inputs=jnp.asarray(case.inputs, jnp.bfloat16))
  # Products of the same factors; of bfloat16 a rounding more or less.
  got = same(GRU(6), case, 1e-2)
  assert got.outputs.dtype == jnp.bfloat16
  assert {x.dtype for x in jax.tree.leaves(got.carry)} == {jnp.dtype("float32")}


@pytest.mark.usefixtures("interpreted")
def test_a_nan_stays_in_its_row_and_a_reset_stops_it():
  cell = LSTM(6)
  case = drawn(cell, dtype=np.float32)._replace(mask=None)
  case.resets[:] = False
  case.resets[0, 0] = True
  bad = case._replace(carry=jax.tree.map(np.array, case.carry))
  for leaf in bad.carry:
    leaf[:2] = np.nan
  got, want = (run(cell, x, method="gpu_kernel") for x in (bad, case))
  assert np.isnan(got.outputs[1]).all()
  rest = lambda tree: jax.tree.map(
    lambda x: x[np.array([0, 2])], (tree.outputs, tree.carry, tree.d_inputs)
  )
  assert_close(rest(got), rest(want), 0)


@pytest.mark.usefixtures("interpreted")
@both_directions
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("flags", [False, True])
def test_the_linear_scan_is_the_associative_one(flags, dtype, reverse):
  # Two segments of time steps and a rest; two blocks of elements and a rest.
  random = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(
    random.normal(size=shape) + 1j * random.normal(size=shape)
    if dtype == np.complex64
    else random.normal(size=shape),
    dtype,
  )
  shape = (19, 2, 70)
  args = normal(*shape) / 2, normal(*shape), normal(*shape[1:])
  weights = normal(*shape)
  resets = jnp.asarray(random.random((19, 2, 1)) < 0.2) if flags else None

  def both(scan):
    def loss(*args):
      states = scan(*args, resets=resets, reverse=reverse)
      return jnp.sum(states * weights).real, states

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(
      *args
    )

  got = both(kernels.gpu.linear_scan)
  assert_close(got, both(kernels.associative_scan), 1e-5)


# Compiled, as far as that goes without a GPU.


def lowered(cell, dtype, batch=16, time=16, differentiate=False):
  """How many kernels the program for CUDA has, their MLIR being made."""
  shape = jax.ShapeDtypeStruct
  params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 8))
  flags = shape((batch, time), jnp.bool_)
  args = (params, shape((batch, time, 8), dtype), flags, flags)

  def total(params, inputs, mask, resets):
    carry, outputs = unroll(
      cell,
      params,
      None,
      inputs,
      mask=mask,
      resets=resets,
      method="gpu_kernel",
    )
    outputs = outputs.astype(jnp.float32)
    return sum(jnp.sum(x * x) for x in (*jax.tree.leaves(carry), outputs))

  function = jax.grad(total) if differentiate else total
  traced = jax.jit(function).trace(*args)
  program = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert "stablehlo.while" not in program
  return program.count("@mosaic_gpu")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", TABLE)
def test_it_lowers_to_one_kernel_a_pass(name):
  cell = CELLS[name](64)
  assert lowered(cell, jnp.bfloat16) == 1
  assert lowered(cell, jnp.bfloat16, differentiate=True) == 2


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
  ("cell", "dtype"),
  [
    (LSTM(128), jnp.bfloat16),
    (GRU(128), jnp.bfloat16),
    (RNN(320), jnp.bfloat16),
    (LSTM(33), jnp.float32),
    (RNN(192), jnp.float32),
  ],
  ids=repr,
)
def test_the_widest_lower(cell, dtype):
  assert lowered(cell, dtype, batch=20, differentiate=True) == 2


@pytest.mark.usefixtures("gpu")
def test_weights_that_do_not_fit_are_refused_with_the_sizes():
  with pytest.raises(ValueError, match=r"512 units takes 2080 KiB of 227 KiB"):
    lowered(LSTM(512), jnp.bfloat16)


# What it takes.


def test_it_refuses_what_looks_across_units_and_says_what_that_is():
  reason = lambda cell: EXECUTORS["gpu_kernel"].why_not(cell)
  assert reason(CELLS["mgu"](6)) == "is neither a GatedCell nor a LinearCell"
  assert "not vectors in each row" in reason(CELLS["lstm_layer_norm"](6))
  assert "`slice` of weights" in reason(CELLS["lstm_peephole"](6))
  assert "from 6 to 4, no multiples" in reason(GRU(6, structure=LowRank(4)))
  assert reason(LSTM(6, structure=Diagonal()))
  assert reason(RNN(1)) == "has a single unit"
  assert reason(LSTMVariant(6, memory=12)) == ("has a carry of several widths")


def test_it_is_for_gpus_in_float32_and_bfloat16():
  here = EXECUTORS["gpu_kernel"].why_not_here
  wide = jnp.dtype("float32")
  assert not here(Setting(wide, wide, "gpu", 1))
  assert here(Setting(wide, wide, "tpu", 1)).endswith("not for tpu")
  assert "not in float64" in here(Setting(jnp.dtype("float64"), wide, "gpu", 1))
  with pytest.raises(ValueError, match="for NVIDIA GPUs, not for cpu"):
    explain(LSTM(6), method="gpu_kernel")
