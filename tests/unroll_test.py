"""Tests of `unroll`: its arguments, its cost, and cells not in `CELLS`.

The laws of the cells in `CELLS` are in `tests/cells/laws_test.py`.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import recurrent
from recurrent import restart, unroll
from recurrent.cells import (
  GRU,
  LSTM,
  RNN,
  GRUCarry,
  GRUResetBefore,
  LSTMCarry,
  LSTMVariant,
  RNNCarry,
  structures,
)
from recurrent.kernels import cpu
from recurrent.unroll import METHODS, RENAMED, resolve_method
from tests.cells.cases import Case, assert_close, everything, results
from tests.cells.others import (
  Counted,
  Heads,
  InnerJit,
  LearnedStart,
  PeepholeLSTM,
  Switched,
)

# Arguments.

CELL = LSTM(4)
BATCH, TIME = 2, 3


@functools.lru_cache
def drawn():
  return CELL.init(jax.random.key(0), 5)


def call(**change):
  arguments = {
    "cell": CELL,
    "params": drawn(),
    "carry": None,
    "inputs": np.ones((BATCH, TIME, 5), np.float32),
    **change,
  }
  # Abstractly: a wrong argument must be found before anything is computed.
  return jax.eval_shape(lambda: unroll(**arguments))


def carry_like(shape, dtype=np.float32):
  return LSTMCarry(*(np.zeros(shape, dtype) for _ in "hc"))


WRONG = {
  "rank of the inputs": (
    {"inputs": np.ones((3, 5), np.float32)},
    ["inputs must be [batch, time, features]", "(3, 5)", "vmap"],
  ),
  "no time steps": (
    {"inputs": np.ones((2, 0, 5), np.float32)},
    ["inputs must have at least one time step", "(2, 0, 5)"],
  ),
  "inputs that do not fit": (
    {"inputs": (np.ones((2, 3, 5)), np.ones((2, 4, 5)))},
    ["inputs must share [batch, time]", "(2, 3, 5)", "(2, 4, 5)"],
  ),
  "no inputs": ({"inputs": ()}, ["inputs must"]),
  "mask of another shape": (
    {"mask": np.ones((2, 4), bool)},
    ["mask must be [batch, time] = (2, 3)", "got (2, 4)"],
  ),
  "mask with time first": (
    {"mask": np.ones((3, 2), bool)},
    ["mask must be [batch, time] = (2, 3)", "got (3, 2)", "transpose"],
  ),
  "mask of floats": (
    {"mask": np.ones((2, 3), np.float32)},
    ["mask must be Boolean", "got float32"],
  ),
  "resets with time first": (
    {"resets": np.ones((3, 2), bool)},
    ["resets must be [batch, time] = (2, 3)", "got (3, 2)", "transpose"],
  ),
  "resets of integers": (
    {"resets": np.ones((2, 3), np.int32)},
    ["resets must be Boolean", "got int32"],
  ),
  "carry of another batch": (
    {"carry": carry_like((3, 4))},
    ["carry must be", "(2, 4)", "got", "(3, 4)"],
  ),
  "carry of another dtype": (
    {"carry": carry_like((2, 4), jnp.bfloat16)},
    ["carry must be", "float32", "got", "bfloat16"],
  ),
  "carry of a cell with fewer parts": (
    {"carry": RNNCarry(np.zeros((2, 4), np.float32))},
    ["carry must be LSTMCarry", "got RNNCarry"],
  ),
  "carry of another cell with the same parts": (
    {"carry": tuple(carry_like((2, 4)))},
    ["carry must be LSTMCarry", "got ("],
  ),
  "method there is not": (
    {"method": "magic"},
    ["method must be one of", "'scan'", "'fused'", "'magic'"],
  ),
  "method the cell cannot run": (
    {"cell": GRUResetBefore(4), "method": "fused"},
    ["GRUResetBefore", "fused", 'use method="scan"'],
  ),
  "remat of nothing": ({"remat": 0}, ["remat must be at least 1", "got 0"]),
  "remat backwards": ({"remat": -2}, ["remat must be at least 1", "got -2"]),
  "remat of halves": ({"remat": 1.5}, ["remat must be", "got 1.5"]),
  "remat of another word": ({"remat": "all"}, ["remat must be", "got 'all'"]),
  "gates of the plain scan": (
    {"remat": "gates", "method": "scan"},
    [
      "remat='gates'",
      "method='scan'",
      "use one of fused, cpu_kernel, tpu_kernel",
    ],
  ),
  "gates of a cell in one piece": (
    {"cell": GRUResetBefore(4), "remat": "gates"},
    ["remat='gates'", "GRUResetBefore", "use a number of time steps"],
  ),
  "integer inputs": (
    {"inputs": np.ones((2, 3, 5), np.int32)},
    ["inputs must be", "float", "int32"],
  ),
  "Boolean inputs": (
    {"inputs": np.ones((2, 3, 5), bool)},
    ["inputs must be", "float", "bool"],
  ),
}


@pytest.mark.parametrize(("change", "parts"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_named_with_what_came_and_what_is_wanted(
  change, parts
):
  with pytest.raises(ValueError) as caught:
    call(**change)
  for part in parts:
    assert part in str(caught.value)


def test_auto_stands_for_the_fastest_method_that_runs_the_cell():
  fastest = "fused" if cpu.unavailable() else "cpu_kernel"
  assert resolve_method(LSTM(4), "auto") == fastest
  assert resolve_method(GRUResetBefore(4), "auto") == "scan"
  for method in ("scan", "fused"):
    assert resolve_method(LSTM(4), method) == method


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_the_old_name_of_a_method_is_refused_with_the_new_one(old, new):
  assert old not in METHODS and new in METHODS
  with pytest.raises(ValueError, match=f"{old!r} is now called {new!r}"):
    call(method=old)


def test_what_is_public_is_there():
  for name in recurrent.__all__:
    assert hasattr(recurrent, name)


def test_numpy_arguments_and_an_empty_batch_will_do():
  flags = np.ones((0, TIME), bool)
  inputs = np.ones((0, TIME, 5), np.float32)
  carry, outputs = call(inputs=inputs, mask=flags, resets=flags)
  assert outputs.shape == (0, TIME, 4) and carry.hidden.shape == (0, 4)


def test_restart_takes_the_initial_carry_where_told():
  old, new = (GRUCarry(np.full((3, 2), value)) for value in (1.0, 2.0))
  carry = restart(np.array([True, False, True]), new, old)
  assert carry.hidden.tolist() == [[2, 2], [1, 1], [2, 2]]
  assert restart(None, new, old) is old


# Cost.


def loops(jaxpr):
  """The scans of a jaxpr, outermost only, in order."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "scan":
      yield eqn
    else:
      for inner in inner_jaxprs(eqn):
        yield from loops(inner)


def inner_jaxprs(eqn):
  for value in jax.tree.leaves(list(eqn.params.values())):
    value = getattr(value, "jaxpr", value)
    if hasattr(value, "eqns"):
      yield value


def products(jaxpr):
  """How many matrix products bear on what the jaxpr returns."""
  count, live = 0, set(map(id, jaxpr.outvars))
  for eqn in reversed(jaxpr.eqns):
    if live.isdisjoint(map(id, eqn.outvars)):
      continue
    live.update(map(id, eqn.invars))
    count += eqn.primitive.name == "dot_general"
    count += sum(map(products, inner_jaxprs(eqn)))
  return count


def carried(scan):
  """Shapes of what a scan hands on: stacked outputs have one axis more."""
  body = scan.params["jaxpr"].jaxpr.outvars
  pairs = zip(body, scan.outvars, strict=True)
  return [a.aval.shape for a, b in pairs if a.aval.shape == b.aval.shape]


def gradient_loops(cell, method):
  """Forward and reverse loops of a gradient, and the weights' shapes.

  A loop that differs from one kind of device to another is there once for each.
  """
  batch, time, in_features = 2, 9, 3
  params = cell.init(jax.random.key(0), in_features)
  inputs = jnp.ones((batch, time, in_features))
  flags = jnp.ones((batch, time), bool)

  def run(params, inputs, mask, resets):
    carry, outputs = unroll(
      cell, params, None, inputs, mask=mask, resets=resets, method=method
    )
    return outputs.sum() + sum(leaf.sum() for leaf in carry)

  jaxpr = jax.make_jaxpr(jax.grad(run))(params, inputs, flags, flags)
  found = list(loops(jaxpr.jaxpr))
  pairs = zip(found[: len(found) // 2], found[len(found) // 2 :], strict=True)
  for forward, reverse in pairs:
    assert not forward.params["reverse"] and reverse.params["reverse"]
    yield forward, reverse, {leaf.shape for leaf in params}


@pytest.mark.parametrize("cell", [RNN(7), LSTM(7), GRU(7)], ids=repr)
def test_fused_has_one_product_a_time_step_and_no_weight_gradient_in_the_loop(
  cell,
):
  found = list(gradient_loops(cell, "fused"))
  # One on a CPU, one elsewhere, but for the RNN, which has nothing to split.
  assert len(found) == 1 + (type(cell) is not RNN)
  for forward, reverse, weights in found:
    assert products(forward.params["jaxpr"].jaxpr) == 1
    assert products(reverse.params["jaxpr"].jaxpr) == 1
    assert weights.isdisjoint(carried(forward))
    assert weights.isdisjoint(carried(reverse))
    # The carry, and the sum of the initial carry's gradients.
    assert set(carried(reverse)) == {(2, 7)}


def test_the_plain_scan_has_what_fused_has_not():
  # Otherwise the test above sees nothing.
  ((forward, reverse, weights),) = gradient_loops(LSTM(7), "scan")
  assert products(forward.params["jaxpr"].jaxpr) == 1
  assert products(reverse.params["jaxpr"].jaxpr) == 2
  assert not weights.isdisjoint(carried(reverse))


@pytest.mark.parametrize("method", ["scan", "fused"])
def test_remat_saves_memory(method):
  cell = LSTM(32)
  params = cell.init(jax.random.key(0), 32)
  inputs = jnp.ones((4, 256, 32))

  def bytes_used(remat):
    run = lambda params, inputs: unroll(
      cell, params, None, inputs, method=method, remat=remat
    )[1].sum()
    compiled = jax.jit(jax.grad(run)).lower(params, inputs).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  # The least any executor keeps of 256 time steps, the hidden state and four
  # gates, would be 256 * 4 * 5 * 32 floats = 655 kB; of 2 * 16 an eighth.
  assert bytes_used(None) > 655_000
  assert bytes_used(16) < bytes_used(None) / 3


@pytest.mark.parametrize("method", ["fused", "cpu_kernel"])
def test_recomputed_gates_take_no_memory_and_no_second_loop(method):
  if method == "cpu_kernel" and (reason := cpu.unavailable()):
    pytest.skip(f"it {reason}")
  cell, batch, time = LSTM(32), 4, 2048
  params = cell.init(jax.random.key(0), 32)

  def compiled(remat, time):
    run = lambda params, inputs: unroll(
      cell, params, None, inputs, method=method, remat=remat
    )[1].sum()
    shape = jax.ShapeDtypeStruct((batch, time, 32), jnp.float32)
    return jax.jit(jax.grad(run)).lower(params, shape).compile()

  used = lambda remat: compiled(remat, time).memory_analysis()
  # A hidden state of all time steps.
  one = 4 * batch * time * 32
  # Carries are two of it, outputs and their cotangents two, copies of the
  # inputs one; the gates would be four, their projections and cotangents too.
  assert used(None).temp_size_in_bytes > 10 * one
  assert used("gates").temp_size_in_bytes < 6 * one
  # In 256 time steps there is one chunk: XLA's loops forward and back are all
  # there are, and by a number of time steps there is one more.
  loops = lambda remat: compiled(remat, 256).as_text().count(" while(")
  assert loops("gates") == loops(None) == (2 if method == "fused" else 0)


# Cells that are not in the table.


def case_of(cell, dtype=np.float64, time=7):
  """A case with holes and resets; `Heads` takes two arrays."""
  batch, in_features = 3, 2
  random = np.random.default_rng(0)
  normal = lambda *shape: random.normal(size=shape).astype(dtype)
  params = cell.init(jax.random.key(0), in_features)
  noisy = lambda x: np.asarray(x) + 0.3 * normal(*x.shape)
  params = jax.tree.map(noisy, params)
  carry = jax.tree.map(
    lambda x: noisy(x) if x.dtype == dtype else np.asarray(x),
    cell.initial_carry(params, (batch,)),
  )
  inputs = normal(batch, time, in_features)
  if isinstance(cell, Heads):
    inputs = {"x": inputs, "gap": np.abs(normal(batch, time, 1))}
  return Case(
    params,
    carry,
    inputs,
    mask=random.random((batch, time)) < 0.7,
    resets=random.random((batch, time)) < 0.3,
    weights=(
      normal(batch, time, cell.features),
      jax.tree.map(lambda x: normal(*x.shape), carry),
    ),
  )


@pytest.mark.parametrize(
  ("remat", "reverse"),
  [(None, False), (None, True), (3, False), ("gates", True)],
)
@pytest.mark.parametrize(
  "cell", [PeepholeLSTM(4), LearnedStart(4), Heads(4), InnerJit(4)], ids=repr
)
def test_a_cell_of_ones_own_gets_right_gradients(cell, reverse, remat, x64):
  case = case_of(cell)
  want = everything(cell, method="scan", reverse=reverse)(case)
  got = everything(cell, method="fused", reverse=reverse, remat=remat)(case)
  # The sums run in another order: a few hundred roundings of 1e-16.
  assert_close(got, want, 1e-12)
  assert all(np.any(leaf) for leaf in jax.tree.leaves(want.d_params))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
  ("cell", "method"),
  [
    (LSTM(4), "fused"),
    (LSTM(4), "cpu_kernel"),
    (GRU(5), "cpu_kernel"),
    (RNN(4, activation="relu"), "cpu_kernel"),
    (LSTMVariant(4, coupled=True), "cpu_kernel"),
    (GRU(4), "tpu_kernel"),
    (LSTM(4, structure=structures.Heads(2)), "fused"),
    (PeepholeLSTM(4), "fused"),
    (PeepholeLSTM(4), "tpu_kernel"),
  ],
  ids=str,
)
def test_recomputed_gates_are_those_of_the_plain_scan(
  cell, method, reverse, x64, monkeypatch
):
  if method == "cpu_kernel" and (reason := cpu.unavailable()):
    pytest.skip(f"it {reason}")
  # Two chunks of 16 time steps, and five time steps more.
  module = importlib.import_module("recurrent.unroll")
  monkeypatch.setattr(module, "GATES_ROWS", 1)
  case = case_of(cell, time=37)
  want = everything(cell, method="scan", reverse=reverse)(case)
  how = {"method": method, "reverse": reverse, "remat": "gates"}
  got = jax.jit(functools.partial(results, cell=cell, **how))(case)
  # The sums run in another order: a few hundred roundings of 1e-16.
  assert_close(got, want, 1e-12)


def test_a_learned_start_has_the_gradient_of_its_finite_difference(x64):
  cell = LearnedStart(4)
  case = case_of(cell)._replace(carry=None)
  run = everything(cell, method="fused")

  def total(start):
    out = run(case._replace(params=case.params._replace(start=start)))
    pairs = zip(
      jax.tree.leaves((out.outputs, out.carry)),
      jax.tree.leaves(case.weights),
      strict=True,
    )
    return sum(float((x * w).sum()) for x, w in pairs)

  start = case.params.start
  want = [
    (total(start + step) - total(start - step)) / 2e-5
    for step in 1e-5 * np.eye(4)
  ]
  # step**2 times a third derivative, and 1e-16 / step: both near 1e-10.
  assert_close(run(case).d_params.start, np.array(want), 1e-8)


@pytest.mark.parametrize("method", ["scan", "fused"])
def test_a_carry_may_hold_a_count(method, x64):
  cell = Counted(4)
  case = case_of(cell)

  def run(params, inputs):
    carry, outputs = unroll(
      cell,
      params,
      case.carry,
      inputs,
      mask=case.mask,
      resets=case.resets,
      method=method,
    )
    return (outputs * case.weights[0]).sum(), carry.time_steps

  gradients, time_steps = jax.jit(jax.grad(run, argnums=(0, 1), has_aux=True))(
    case.params, case.inputs
  )
  for row in range(3):
    count = 0
    for real, reset in zip(case.mask[row], case.resets[row], strict=True):
      count = int(real) + (0 if reset and real else count)
    assert int(time_steps[row]) == count
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("method", ["scan", "fused"])
@pytest.mark.parametrize(
  "on",
  [np.ones((2, 3, 1), np.int32), np.ones((2, 3), np.float32)],
  ids=["integers", "no features"],
)
def test_only_some_leaf_of_the_inputs_need_be_features(on, method):
  cell = Switched(4)
  params = cell.init(jax.random.key(0), 2)
  x = np.ones((2, 3, 2), np.float32)
  # Against the cell without the switch, which is on throughout.
  want = unroll(RNN(4), params, None, x, method=method)
  got = unroll(cell, params, None, {"x": x, "on": on}, method=method)
  assert_close(got, want, 1e-7)  # one rounding of float32


def test_a_gate_under_jit_keeps_the_weights_out_of_the_loop():
  _, reverse, weights = next(gradient_loops(InnerJit(7), "fused"))
  assert weights.isdisjoint(carried(reverse))


def test_a_parameter_of_the_gate_is_summed_in_float32():
  cell = PeepholeLSTM(4)
  case = case_of(cell, np.float32, time=600)._replace(mask=None, resets=None)
  case = case._replace(
    params=jax.tree.map(lambda x: x / 2, cell.init(jax.random.key(1), 2)),
    inputs=1 + case.inputs / 10,
    weights=jax.tree.map(np.ones_like, case.weights),
  )
  want = everything(cell, method="fused")(case)
  case = case._replace(inputs=jnp.asarray(case.inputs, jnp.bfloat16))
  got = everything(cell, method="fused")(case)
  # bfloat16 rounds at 4e-3; a sum over time that is kept in it stops at some
  # 256 addends.
  assert_close(got.d_params.peephole, want.d_params.peephole, 3e-2)


def test_gradients_of_gradients_agree(x64):
  cell = LSTM(3)
  case = case_of(cell)

  def curvature(params, method):
    first = results(case._replace(params=params), cell, method=method)
    return sum((leaf**2).sum() for leaf in first.d_params)

  scan, fused = (
    jax.jit(jax.grad(functools.partial(curvature, method=method)))(case.params)
    for method in ("scan", "fused")
  )
  # Two passes of sums in another order.
  assert_close(fused, scan, 1e-11)


def test_the_plain_scan_has_forward_derivatives(x64):
  cell = LSTM(3)
  case = case_of(cell)
  run = lambda inputs: unroll(
    cell, case.params, case.carry, inputs, method="scan"
  )[1]
  tangent = np.ones_like(case.inputs)
  _, got = jax.jit(lambda x, t: jax.jvp(run, (x,), (t,)))(case.inputs, tangent)
  run = jax.jit(run)
  step = 1e-5 * tangent
  want = (run(case.inputs + step) - run(case.inputs - step)) / 2e-5
  # step**2 times a third derivative, and 1e-16 / step: both near 1e-10.
  assert_close(got, want, 1e-8)


@pytest.mark.parametrize("method", ["scan", "fused"])
def test_one_time_step_is_a_step(method):
  case = case_of(LSTM(4), np.float32, time=1)
  run = functools.partial(unroll, LSTM(4), case.params, case.carry)
  carry, outputs = run(case.inputs, method=method)
  projected = LSTM(4).project(case.params, case.inputs[:, 0])
  want = LSTM(4).step(case.params, case.carry, projected)
  # The product has one more axis: float32's 6e-8, a few times.
  assert_close((carry, outputs[:, 0]), want, 1e-6)
  flags = np.ones((3, 1), bool)
  got = run(case.inputs, mask=flags, resets=~flags, method=method)
  assert_close(got, (carry, outputs), 1e-6)
