"""Tests all methods under `jax.shard_map` and on explicit mesh axes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from recurrent import newton, unroll
from recurrent.cells import CELLS, LSTM
from recurrent.executors import EXECUTORS, Setting
from tests.cells.cases import (
  Case,
  assert_close,
  floats,
  inputs_for,
  results,
)

pytestmark = pytest.mark.several_devices

BATCH, TIME, WIDTH = 8, 6, 3
ROWS, WHOLE = PartitionSpec("data"), PartitionSpec()
# One of each kind: in C++, with a vector of gates, linear, complex, of
# matrices, with inputs or a carry that are no vectors, a plain cell.
NAMES = ("lstm", "gru", "rnn", "lru", "min_gru", "mlstm", "gru_d", "conv_lstm")
WAYS = [
  (name, method)
  for name in NAMES
  for method, executor in EXECUTORS.items()
  if not executor.why_not(CELLS[name](4))
  and not executor.why_not_here(
    Setting(jnp.dtype("float32"), jnp.dtype("float32"), "cpu", 1)
  )
]
every_way = pytest.mark.parametrize(("name", "method"), WAYS)


def make_mesh(kind):
  return jax.make_mesh(
    (4,), ("data",), axis_types=(kind,), devices=jax.devices()[:4]
  )


@functools.lru_cache
def drawn(name):
  cell = CELLS[name](4)
  random = np.random.default_rng(0)
  normal = lambda *shape: random.normal(size=shape).astype(np.float32)
  params = cell.init(jax.random.key(0), WIDTH)
  carry = cell.initial_carry(params, (BATCH,))
  like = lambda tree: jax.tree.map(lambda x: normal(*x.shape), tree)
  case = Case(
    jax.tree.map(lambda x: np.asarray(x) + normal(*x.shape) / 10, params),
    like(carry),
    inputs_for(cell, random, BATCH, TIME, WIDTH),
    random.random((BATCH, TIME)) < 0.7,
    random.random((BATCH, TIME)) < 0.3,
    None,
  )
  outputs = jax.eval_shape(lambda: unroll(cell, *case[:3], method="scan"))[1]
  return cell, case._replace(weights=(normal(*outputs.shape), like(carry)))


def on(mesh, case):
  """Puts a case on a mesh: parameters replicated, all else split by rows."""
  rows, whole = (NamedSharding(mesh, spec) for spec in (ROWS, WHOLE))
  params = jax.device_put(case.params, whole)
  return Case(params, *jax.device_put(case[1:], rows))


def variants(case):
  """The case with all optional arguments, and without them."""
  return case, case._replace(carry=None, mask=None, resets=None)


def both_passes(case, cell, method, remat=None):
  """Outputs, carry and gradients; without a carry, that of the inputs only."""
  if case.carry is not None:
    return results(case, cell, method=method, remat=remat)
  run = lambda params, inputs: unroll(
    cell, params, None, inputs, method=method, remat=remat
  )
  loss = lambda *args: jnp.sum(run(*args)[1] * case.weights[0])
  if floats(case.inputs) is not case.inputs and not cell.takes_vectors:
    return run(case.params, case.inputs)
  gradients = jax.grad(loss, argnums=(0, 1))(case.params, case.inputs)
  return run(case.params, case.inputs), gradients


@every_way
def test_in_shard_map_a_method_is_the_plain_scan(name, method):
  cell, whole = drawn(name)
  mesh = make_mesh(AxisType.Auto)
  for case in variants(whole):
    for remat in (None, 4) if method in ("scan", "fused") else (None,):
      run = functools.partial(
        both_passes, cell=cell, method=method, remat=remat
      )
      want = jax.jit(functools.partial(both_passes, cell=cell, method="scan"))(
        case
      )
      # What comes out is sharded by rows, but for the parameters' gradients.
      specs = jax.tree.map(lambda _: ROWS, want)
      if case.carry is not None:
        whole_tree = jax.tree.map(lambda _: WHOLE, want.d_params)
        specs = specs._replace(d_params=whole_tree)
      elif isinstance(specs[1], tuple) and len(specs[1]) == 2:
        params = jax.tree.map(lambda _: WHOLE, case.params)
        specs = specs[0], (params, specs[1][1])
      sharded = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(Case(WHOLE, ROWS, ROWS, ROWS, ROWS, ROWS),),
        out_specs=specs,
      )
      assert_close(jax.jit(sharded)(on(mesh, case)), want, 1e-5)


@every_way
def test_on_explicit_axes_a_method_is_the_plain_scan(name, method):
  cell, whole = drawn(name)
  mesh = make_mesh(AxisType.Explicit)
  for case in variants(whole):
    run = functools.partial(both_passes, cell=cell)
    want = jax.jit(functools.partial(run, method="scan"))(case)
    got = jax.jit(functools.partial(run, method=method))(on(mesh, case))
    assert_close(got, want, 1e-5)
    # (outputs, carry) or (carry, outputs): both are sharded by rows.
    out = got[:2] if case.carry is not None else got[0]
    for leaf in jax.tree.leaves(out):
      assert leaf.sharding.spec[0] == "data"


def test_on_explicit_axes_a_carry_keeps_its_sharding_from_window_to_window():
  cell, case = drawn("lstm")
  case = on(make_mesh(AxisType.Explicit), case)

  @jax.jit
  def windows(case):
    step = lambda carry, _: unroll(cell, case.params, carry, case.inputs)
    return jax.lax.scan(step, case.carry, length=3)[0]

  assert jax.tree.leaves(windows(case))[0].sharding.spec[0] == "data"


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_newton_reports_on_a_mesh(kind):
  cell, case = drawn("lstm")
  case = on(make_mesh(kind), case)
  run = jax.jit(functools.partial(newton, cell))
  carry, outputs, report = run(case.params, case.carry, case.inputs)
  assert report.converged and report.iterations > 1
  want = unroll(LSTM(4), *drawn("lstm")[1][:3], method="scan")
  assert_close((carry, outputs), want, 1e-5)


def test_outside_jit_explicit_axes_will_do():
  cell, whole = drawn("lstm")
  case = on(make_mesh(AxisType.Explicit), whole)
  got = unroll(cell, case.params, case.carry, case.inputs, mask=case.mask)
  want = unroll(cell, *whole[:3], mask=whole.mask, method="scan")
  assert_close(got, want, 1e-5)
