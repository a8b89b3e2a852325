"""The TPU kernels, interpreted: slow, so apart from the laws of the cells.

`tests/executors/tpu_compile_test.py` compiles them for TPUs.
"""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recurrent import explain, kernels, unroll
from recurrent.cells import CELLS, GRU, LSTM, LSTMVariant
from recurrent.executors import EXECUTORS, Setting, choose
from tests.cells.cases import Case, assert_close, ensemble, everything, results
from tests.cells.others import (
  Counted,
  Heads,
  InnerJit,
  LearnedStart,
  PeepholeLSTM,
)

ABLE = [n for n in CELLS if not EXECUTORS["tpu_kernel"].why_not(CELLS[n](6))]
KINDS = ("rnn", "lstm", "gru", "lstm_peephole", "lru", "rg_lru")
TABLE = ABLE if os.environ.get("RECURRENT_ALL_LAWS") else KINDS
OTHERS = [PeepholeLSTM(6), LearnedStart(6), Heads(6), InnerJit(6)]


def drawn(cell, batch=3, time=7, dtype=np.float64):
  """A case with holes, resets and a given carry."""
  random = np.random.default_rng(0)
  normal = lambda *shape: random.normal(size=shape).astype(dtype)
  noisy = lambda x: np.asarray(x) + dtype(0.2) * normal(*x.shape)
  params = jax.tree.map(noisy, cell.init(jax.random.key(0), 5))
  carry = jax.tree.map(noisy, cell.initial_carry(params, (batch,)))
  if hasattr(carry, "normaliser"):
    carry = carry._replace(normaliser=0.5 + abs(carry.normaliser))
  inputs = normal(batch, time, 5)
  if isinstance(cell, Heads):
    inputs = {"x": inputs, "gap": np.abs(normal(batch, time, 1))}
  return Case(
    params,
    carry,
    inputs,
    mask=random.random((batch, time)) < 0.8,
    resets=random.random((batch, time)) < 0.2,
    weights=(
      normal(batch, time, cell.features),
      jax.tree.map(lambda x: normal(*x.shape), carry),
    ),
  )


both_directions = pytest.mark.parametrize(
  "reverse", [False, True], ids=["forward", "reverse"]
)


# The loop.


@pytest.mark.usefixtures("x64")
@both_directions
@pytest.mark.parametrize("flags", [False, True])
@pytest.mark.parametrize(
  ("batch", "time", "block"),
  # One block; a last block that is short in both axes; time steps one by one.
  [(3, 5, (3, 5)), (20, 11, (16, 4)), (3, 4, (3, 1))],
)
def test_the_loop_is_lax_scan(monkeypatch, batch, time, block, flags, reverse):
  monkeypatch.setattr(kernels.tpu, "blocks", lambda *_: block)
  random = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(random.normal(size=shape))
  fixed = {"matrix": normal(6, 6) / 6, "vector": normal(6), "unread": normal(9)}
  rows, carry = normal(batch, 6), [normal(batch, 6), normal(batch, 2, 6)]
  xs = {"x": normal(time, batch, 6), "on": None, "unread": normal(time, batch)}
  if flags:
    xs["on"] = jnp.asarray(random.random((time, batch)) < 0.5)
  closed_over = normal(6)

  def time_step(fixed, rows, carry, now):
    one, two = carry
    wide = lambda x: jnp.broadcast_to(x, one.shape)
    new = jnp.tanh(one @ fixed["matrix"] + wide(fixed["vector"]) + now["x"])
    if flags:
      on = now["on"] if now["on"].ndim == 2 else now["on"][:, None]
      new = jnp.where(wide(on), new, rows)
    two = two + jnp.stack([new, wide(closed_over)], axis=1)
    return [new, two], (two.sum(1), new)

  got = kernels.tpu.scan(time_step, fixed, rows, carry, xs, reverse)
  want = jax.lax.scan(
    functools.partial(time_step, fixed, rows), carry, xs, reverse=reverse
  )
  assert_close(got, want, 1e-14)


def test_blocks_fit_and_are_as_large_as_they_may_be():
  shape = lambda *shape: [jax.ShapeDtypeStruct(shape, jnp.bfloat16)]
  blocks = kernels.tpu.blocks
  # [32, 2048] in bfloat16, in two buffers: 256 KiB, 24 to 6 MiB.
  assert blocks(32, 64, shape(32, 2048)) == (32, 24)
  assert blocks(32, 5, shape(32, 2048)) == (32, 5)
  # A single row takes the room of a tile's.
  assert blocks(1, 64, shape(1, 2048)) == (1, 32)
  assert blocks(1000, 64, shape(1000, 2048)) == (64, 12)
  assert blocks(16, 64, shape(16, 1 << 20)) == (16, 1)


# Cells.


@both_directions
@pytest.mark.parametrize("name", TABLE)
def test_a_cell_runs_as_by_the_plain_scan(name, reverse):
  # 37 time steps are a block and 5; neither 3 nor 6 makes a tile.
  cell = CELLS[name](6)
  case = drawn(cell, time=37, dtype=np.float32)
  want = everything(cell, method="scan", reverse=reverse)(case)
  got = everything(cell, method="tpu_kernel", reverse=reverse)(case)
  # float32 rounds at 6e-8, some hundred times.
  assert_close(got, want, 1e-5)


@pytest.mark.usefixtures("x64")
@both_directions
@pytest.mark.parametrize("cell", [LSTM(130), *OTHERS], ids=repr)
def test_every_gradient_is_right_to_float64(cell, reverse):
  case = drawn(cell, batch=9 if cell.features == 130 else 3)
  want = everything(cell, method="scan", reverse=reverse)(case)
  got = everything(cell, method="tpu_kernel", reverse=reverse)(case)
  assert_close(got, want, 1e-12)
  assert all(np.any(leaf) for leaf in jax.tree.leaves(got.d_params))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("cell", [GRU(6), PeepholeLSTM(6)], ids=repr)
def test_rows_and_time_steps_may_come_in_blocks(monkeypatch, cell):
  monkeypatch.setattr(kernels.tpu, "blocks", lambda *_: (16, 4))
  case = drawn(cell, batch=20, time=11)
  want = everything(cell, method="scan")(case)
  # Not `everything`, whose function may have been traced with other blocks.
  got = jax.jit(lambda case: results(case, cell, method="tpu_kernel"))(case)
  assert_close(got, want, 1e-12)


@pytest.mark.parametrize("name", ["gru", "lstm_peephole"])
def test_bfloat16_is_multiplied_narrow_and_summed_wide(name):
  # As in the laws: 4096 time steps, contractive, and sums that do not cancel.
  cell = CELLS[name](6)
  case = drawn(cell, batch=8, time=512, dtype=np.float32)
  case = case._replace(
    params=jax.tree.map(lambda x: x / 2, case.params),
    inputs=1 + case.inputs / 10,
    mask=None,
    resets=None,
    weights=jax.tree.map(np.ones_like, case.weights),
  )
  want = everything(cell, method="scan")(case)
  narrow = case._replace(inputs=jnp.asarray(case.inputs, jnp.bfloat16))
  got = everything(cell, method="tpu_kernel")(narrow)
  assert got.outputs.dtype == jnp.bfloat16
  assert {x.dtype for x in jax.tree.leaves(got.carry)} == {jnp.dtype("float32")}
  assert_close(got.outputs, want.outputs, 2e-2)
  # A sum kept in bfloat16 stops at some 256 addends, and is wrong by half.
  assert_close(got.d_params, want.d_params, 3e-2)


def test_a_reset_stops_a_nan_in_both_passes():
  cell = LSTM(6)
  case = drawn(cell, dtype=np.float32)
  case.mask[:], case.resets[:, 0] = True, True
  bad = case._replace(carry=jax.tree.map(lambda x: x * np.nan, case.carry))
  run = everything(cell, method="tpu_kernel")
  assert_close(run(bad)._replace(d_carry=0), run(case)._replace(d_carry=0), 0)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(run(bad).d_carry))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["lstm_peephole", "rg_lru"])
def test_vmap_is_a_loop(name):
  cell = CELLS[name](6)
  case = drawn(cell)
  pair = [case, case._replace(inputs=case.inputs[::-1], mask=~case.mask)]
  stack = lambda *cases: jax.tree.map(lambda *x: np.stack(x), *cases)
  got = ensemble(cell, method="tpu_kernel")(stack(*pair))
  want = stack(*map(everything(cell, method="scan"), pair))
  assert_close(got, want, 1e-12)


@pytest.mark.several_devices
@pytest.mark.usefixtures("x64")
def test_over_devices_it_runs_under_shard_map():
  cell = GRU(6)
  case = drawn(cell, batch=16)
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  rows = jax.sharding.PartitionSpec("data")

  def total(params, method):
    run = lambda params, carry, inputs: unroll(
      cell, params, carry, inputs, method=method
    )[1]
    if method == "tpu_kernel":
      run = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(jax.sharding.PartitionSpec(), rows, rows),
        out_specs=rows,
        check_vma=False,
      )
    outputs = run(params, case.carry, case.inputs)
    return jnp.sum(outputs * case.weights[0])

  got, want = (
    jax.jit(jax.value_and_grad(functools.partial(total, method=method)))(
      case.params
    )
    for method in ("tpu_kernel", "scan")
  )
  assert_close(got, want, 1e-12)


# Where it runs.


@pytest.mark.parametrize("name", TABLE)
def test_it_lowers_to_one_tpu_kernel_a_pass(name):
  cell = CELLS[name](128)
  params = cell.init(jax.random.key(0), 8)
  inputs = jnp.ones((8, 16, 8))

  def total(params, inputs):
    return unroll(cell, params, None, inputs, method="tpu_kernel")[1].sum()

  calls = lambda platform, function: (
    jax.jit(function)
    .trace(params, inputs)
    .lower(lowering_platforms=(platform,))
    .as_text()
    .count("tpu_custom_call")
  )
  assert calls("tpu", total) == 1
  assert calls("tpu", jax.grad(total)) == 2
  assert calls("cpu", jax.grad(total)) == 0


def test_auto_does_not_choose_it_and_explain_says_that_it_is_slow_here():
  for name in ABLE:
    assert choose(CELLS[name](6), Setting.here()).method != "tpu_kernel"
  said = explain(LSTM(6), method="tpu_kernel")
  assert "runs by 'tpu_kernel', interpreted on cpu, slowly: asked for" in said
  assert "tpu_kernel: possible, interpreted on cpu, slowly" in said


def test_cells_that_it_cannot_run_are_refused_with_the_reason():
  for cell, reason in [
    (CELLS["mgu"](6), "neither a GatedCell nor a LinearCell"),
    (Counted(6), "carry that is not all real vectors"),
  ]:
    with pytest.raises(ValueError, match=reason):
      explain(cell, method="tpu_kernel")


def test_a_projection_in_the_gate_has_its_gradient():
  cell = LSTMVariant(6, memory=9)
  case = drawn(cell, dtype=np.float32)
  want = everything(cell, method="scan")(case)
  assert_close(everything(cell, method="tpu_kernel")(case), want, 1e-5)
