"""Laws that every cell in `CELLS` must satisfy; a new cell gets all of them."""

import dataclasses
import functools
import operator
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import test_util
from jax.flatten_util import ravel_pytree

from recurrent import unroll
from recurrent.cells import CELLS, GatedCell
from recurrent.cells.base import param_shapes
from recurrent.executors import EXECUTORS
from recurrent.kernels.cpu import unavailable
from recurrent.numerics import cast
from tests.cells.cases import (
  Case,
  assert_close,
  assert_same_bits,
  cases,
  ensemble,
  error,
  everything,
  floats,
  forward,
  inputs_for,
  jacobian,
  jit,
  joined,
  law,
  loss,
  losses,
  methods,
  one_case,
  output_shape,
  over_time,
  results,
  scaled,
)

FEATURES = 4
MIDDLE = ((3, 7, 2),)
SMALL = ((3, 4, 2),)

# Every law takes every cell with `make laws`; by default these, one of each
# kind, take all laws, and the others those that are marked `every`.
KINDS = ("rnn", "lstm", "gru_reset_before", "lru")
TABLE = CELLS if os.environ.get("RECURRENT_ALL_LAWS") else KINDS


def ways(names):
  return [(n, m) for n in names for m in methods(CELLS[n](1))]


each_cell = pytest.mark.parametrize("name", TABLE)
each_way = pytest.mark.parametrize(("name", "method"), ways(TABLE))
every_cell = pytest.mark.parametrize("name", CELLS)
every_way = pytest.mark.parametrize(("name", "method"), ways(CELLS))
both_directions = pytest.mark.parametrize(
  "reverse", [False, True], ids=["forward", "reverse"]
)


def test_the_laws_try_every_method():
  tried = {method for name in CELLS for method in methods(CELLS[name](1))}
  # Those for other platforms have tests of their own: `methods` says which.
  here = {n for n, e in EXECUTORS.items() if e.platform in ("", "cpu")}
  here -= {"cpu_kernel"} if unavailable() else set()
  assert tried == here


# One definition, many executors.


@each_cell
@both_directions
@pytest.mark.usefixtures("x64")
@law
@given(data=st.data())
def test_every_executor_gives_what_the_plain_scan_gives(name, reverse, data):
  # Ragged in every way, or the least that still has a time.
  features, shape = data.draw(
    st.sampled_from([(FEATURES, (3, 7, 2)), (1, (1, 4, 3))])
  )
  cell = CELLS[name](features)
  case = data.draw(cases(cell, (shape,)))
  want = everything(cell, method="scan", reverse=reverse)(case)
  # Neither 7 nor 4 is a multiple of 3. The sums run in another order: a few
  # hundred roundings of 1e-16.
  for how in (
    *({"method": method} for method in methods(cell)[1:]),
    {"method": "auto", "remat": 3},
    *([{"remat": "gates"}] if isinstance(cell, GatedCell) else []),
  ):
    got = everything(cell, reverse=reverse, **how)(case)
    assert_close(got, want, 1e-12)


@every_cell
@pytest.mark.usefixtures("x64")
@law
@given(data=st.data(), scale=st.sampled_from([1, 1, 1e4]))
def test_executors_are_near_float64_in_float32_saturated_or_not(
  name, data, scale
):
  cell = CELLS[name](FEATURES)
  case = data.draw(cases(cell, MIDDLE, dtype=np.float32))
  case = case._replace(inputs=scaled(case.inputs, scale))
  wide = lambda x: x.astype(np.float64) if x.dtype == np.float32 else x
  want = everything(cell, method="scan")(jax.tree.map(wide, case))
  errors = lambda method: jax.tree.map(
    error, everything(cell, method=method)(case), want
  )
  # float32 rounds at 6e-8; a product of 7 Jacobians makes 100 of it. Where a
  # gate is shut and sums of 1e4 cancel, the plain scan is no nearer.
  allowed = jax.tree.map(lambda x: max(3e-5, 4 * x), errors("scan"))
  for method in methods(cell)[1:]:
    assert jax.tree.all(jax.tree.map(operator.le, errors(method), allowed))


@pytest.mark.parametrize(
  ("name", "method"),
  [way for way in ways(TABLE) if way[1] not in ("newton", "cpu_kernel")],
)
@settings(law, max_examples=2)
@given(data=st.data())
def test_long_bfloat16_gradients_are_near_those_of_float32(name, method, data):
  cell = CELLS[name](FEATURES)
  # Long enough, 4096 time steps in all, that a sum kept in bfloat16 would show.
  case = data.draw(cases(cell, ((8, 512, 2),), dtype=np.float32))
  # Contractive, since chaos would amplify every rounding. Inputs and weights
  # around one, so that sums over time do not cancel.
  params = cell.init(jax.random.key(1), 2)
  case = case._replace(
    params=jax.tree.map(lambda x: x / 2, params),
    inputs=scaled(case.inputs, 0.1, offset=1),
    mask=None,
    resets=None,
    weights=jax.tree.map(np.ones_like, case.weights),
  )
  want = everything(cell, method=method)(case)
  narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), floats(case.inputs))
  case = case._replace(inputs=joined(narrow, case.inputs))
  for remat in (None, 2):
    got = everything(cell, method=method, remat=remat)(case)
    assert_close(got.outputs, want.outputs, 2e-2)
    # bfloat16 rounds at 4e-3; a sum that is kept in it stops at some 256
    # addends, and is wrong by half here.
    assert_close(got.d_params, want.d_params, 3e-2)


@each_cell
@settings(law, max_examples=2)
@given(data=st.data())
def test_a_hundred_thousand_time_steps_stay_near_float64(name, data, x64):
  cell = CELLS[name](FEATURES)
  case = data.draw(cases(cell, ((1, 100_000, 2),)))
  # Contractive, as above: then an error is forgotten, unless it is in the sum.
  case = case._replace(params=jax.tree.map(lambda x: x / 4, case.params))
  want = forward(cell)(case)
  narrow = lambda x: x.astype(np.float32) if x.dtype == np.float64 else x
  got = forward(cell)(jax.tree.map(narrow, case))
  # float32 rounds at 6e-8, some ten times a time step.
  assert_close(got, want, 1e-5)


@each_way
@pytest.mark.usefixtures("x64")
@law
@given(data=st.data())
def test_no_flags_are_flags_that_do_nothing(name, method, data):
  cell = CELLS[name](FEATURES)
  case = data.draw(cases(cell, SMALL))
  run = everything(cell, method=method)
  plain = case._replace(mask=None, resets=None)
  idle = case._replace(
    mask=np.ones_like(case.mask), resets=np.zeros_like(case.resets)
  )
  assert_close(run(plain), run(idle), 1e-13)


@each_way
@pytest.mark.usefixtures("x64")
@settings(law, max_examples=4)
@given(data=st.data())
def test_vmap_is_a_loop(name, method, data):
  cell = CELLS[name](FEATURES)
  pair = [data.draw(cases(cell, SMALL)) for _ in range(2)]
  stack = lambda *cases: jax.tree.map(lambda *x: np.stack(x), *cases)
  got = ensemble(cell, method=method)(stack(*pair))
  want = stack(*map(everything(cell, method=method), pair))
  assert_close(got, want, 1e-12)


# Gradients.


@every_cell
@pytest.mark.usefixtures("x64")
@settings(law, max_examples=5)
@given(data=st.data())
def test_every_gradient_is_the_finite_difference(name, data):
  cell = CELLS[name](FEATURES)
  case = data.draw(cases(cell, SMALL))
  point = ravel_pytree((case.params, case.carry, floats(case.inputs)))[0]
  step = 1e-5 * jnp.eye(len(point))
  point = jnp.broadcast_to(point, step.shape)
  high, low = (losses(cell)(x, case) for x in (point + step, point - step))
  gradients = everything(cell, method="auto")(case)[2:]
  got = ravel_pytree(gradients)[0]
  # step**2 times a third derivative, great where a norm divides by little,
  # and 1e-16 / step.
  assert_close(got, (high - low) / 2e-5, 1e-7)


@each_cell
@pytest.mark.usefixtures("x64")
def test_the_scan_differentiates_twice_in_both_modes(name):
  cell = CELLS[name](2)
  case = one_case(cell, (1, 3, 2))

  @jax.jit
  def total(params, carry, inputs):
    inputs = joined(inputs, case.inputs)
    here = case._replace(params=params, carry=carry, inputs=inputs)
    return loss(here, cell, method="scan")[0]

  point = (case.params, case.carry, floats(case.inputs))
  test_util.check_grads(
    total, jax.tree.map(jnp.asarray, point), order=2, atol=1e-5, rtol=1e-5
  )


def forward_of(function, along):
  """The derivative along a direction."""
  return lambda x: jax.jvp(function, (x,), (along,))[1]


def reverse_of(function, along):
  """The gradient of the slope along a direction."""
  return jax.grad(lambda x: jnp.vdot(jax.grad(function)(x), along))


DERIVATIVES = {
  "forward": forward_of,
  "reverse over reverse": reverse_of,
  "forward over reverse": lambda f, v: forward_of(jax.grad(f), v),
  "reverse over forward": lambda f, v: jax.grad(forward_of(f, v)),
  "forward over forward": lambda f, v: forward_of(forward_of(f, v), v),
}


@functools.lru_cache
def differentiated(cell, method, way):
  """A function of the case's numbers as one vector, by a way of JAX's."""
  case = one_case(cell, (2, 4, 2))
  point = (case.params, case.carry, floats(case.inputs))
  start, unravel = ravel_pytree(point)
  along = jnp.asarray(np.random.default_rng(1).normal(size=start.shape))

  def value(point):
    params, carry, inputs = unravel(point)
    inputs = joined(inputs, case.inputs)
    here = case._replace(params=params, carry=carry, inputs=inputs)
    return jnp.sin(loss(here, cell, method=method)[0])

  return jit(DERIVATIVES[way](value, along))(start)


def differentiable_ways():
  """Cells, methods and ways to differentiate: each method is tried in each way.

  The rules of differentiation are those of a method. By default the cells that
  it runs therefore take turns at the ways; all of them take all with `make
  laws`.
  """
  able = {"auto": list(TABLE)}
  for name, method in ways(TABLE):
    if method != "scan":
      able.setdefault(method, []).append(name)
  for method, names in able.items():
    for turn, way in enumerate(DERIVATIVES):
      chosen = names if TABLE is CELLS else [names[turn % len(names)]]
      yield from ((name, method, way) for name in chosen)


@pytest.mark.parametrize(("name", "method", "way"), [*differentiable_ways()])
@pytest.mark.usefixtures("x64")
def test_derivatives_of_every_kind_are_those_of_the_scan(name, method, way):
  cell = CELLS[name](2)
  want = differentiated(cell, "scan", way)
  assert_close(differentiated(cell, method, way), want, 1e-10)


# Arguments.


def refusal(cell, method, params, inputs):
  """What `unroll` says to such arguments; they are abstract."""
  run = lambda params, inputs: unroll(cell, params, None, inputs, method=method)
  with pytest.raises(ValueError) as error:
    jax.eval_shape(run, params, inputs)
  return str(error.value)


@every_way
def test_parameters_of_another_shape_are_refused_by_name(name, method):
  cell, width = CELLS[name](FEATURES), 3
  inputs = avals_of_inputs(cell, 2, 3, width, dtype=np.float32)
  leaves, structure = jax.tree_util.tree_flatten_with_path(
    param_shapes(cell, width)
  )
  for place, (path, leaf) in enumerate(leaves):
    *front, last = leaf.shape or (0,)
    others = {(*front, last + 1), (*front, max(last // 4, 1)), (1, last)}
    for shape in (others | {leaf.shape[::-1]}) - {leaf.shape}:
      changed = [leaf for _, leaf in leaves]
      changed[place] = jax.ShapeDtypeStruct(shape, leaf.dtype)
      said = refusal(cell, method, structure.unflatten(changed), inputs)
      # A kernel that is higher is that of wider inputs, if there is no other.
      what = f"params{jax.tree_util.keystr(path)} must be {leaf.shape}"
      assert what in said or "inputs must be" in said
      assert str(shape) in said or "as params are for" in said


@every_way
def test_inputs_and_parameters_of_two_widths_are_refused(name, method):
  cell = CELLS[name](FEATURES)
  inputs = avals_of_inputs(cell, 2, 3, 3, dtype=np.float32)
  for width in (2, 4):
    said = refusal(cell, method, param_shapes(cell, width), inputs)
    assert f"inputs must be {width} wide, as params are for, got 3" in said
  for features in (FEATURES - 1, FEATURES + 4):
    params = param_shapes(CELLS[name](features), 3)
    assert "params" in refusal(cell, method, params, inputs)


@every_way
def test_no_rows_have_no_outputs_and_gradients_of_zero(name, method):
  cell = CELLS[name](FEATURES)
  params = cell.init(jax.random.key(0), 2)
  random, flags = np.random.default_rng(0), np.ones((0, 5), bool)
  case = Case(
    params,
    cell.initial_carry(params, (0,)),
    inputs_for(cell, random, 0, 5, 2),
    flags,
    flags,
    (np.zeros((0, 5, *output_shape(cell))), cell.initial_carry(params, (0,))),
  )
  for remat in (None, 2):
    got = jit(
      functools.partial(results, cell=cell, method=method, remat=remat)
    )(case)
    assert got.outputs.shape == (0, 5, *output_shape(cell))
    assert avals(got.carry) == avals(case.carry)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(got))


# Extremes.


@each_cell
@pytest.mark.parametrize("sign", [1, -1])
@settings(law, max_examples=4)
@given(data=st.data())
def test_saturated_gates_are_finite_and_near_float64(name, sign, data, x64):
  cell = CELLS[name](FEATURES)
  case = data.draw(cases(cell, MIDDLE))
  # Sums of some 1e4 of either sign, by the inputs; biases stay as they are.
  case = case._replace(inputs=sign * 1e4 * (1 + abs(case.inputs)))
  narrow = lambda x: x.astype(np.float32) if x.dtype == np.float64 else x
  got = everything(cell)(jax.tree.map(narrow, case))
  want = everything(cell)(case)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((got, want)))
  assert_close((got.outputs, got.carry), (want.outputs, want.carry), 1e-5)


NORMED = {"lstm_layer_norm", "gru_layer_norm"}


@each_way
@settings(law, max_examples=2)
@given(data=st.data())
def test_a_carry_of_1e30_is_finite_or_saturates(name, method, data, x64):
  if name in NORMED:
    pytest.skip("the square of 1e30 is beyond float32: the norm is then zero")
  cell = CELLS[name](FEATURES)
  case = data.draw(cases(cell, SMALL))
  case = case._replace(carry=jax.tree.map(np.sign, case.carry))
  case = case._replace(carry=jax.tree.map(lambda x: 1e30 * x, case.carry))
  narrow = lambda x: x.astype(np.float32) if x.dtype == np.float64 else x
  got = forward(cell, method=method)(jax.tree.map(narrow, case))
  want = forward(cell, method="scan")(case)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
  assert_close(got, want, 1e-4)


# Masks.

GARBAGE = (np.nan, np.inf, -np.inf, 1e38, -0.0, 1.0)


@every_way
@settings(law, max_examples=6)
@given(data=st.data(), garbage=st.tuples(*[st.sampled_from(GARBAGE)] * 2))
def test_what_stands_at_masked_time_steps_changes_no_bit(
  name, method, data, garbage
):
  cell = CELLS[name](FEATURES)
  case = data.draw(cases(cell, MIDDLE, dtype=np.float32))
  run = everything(cell, method=method)
  want = run(case)

  def spoilt(leaf):
    leaf = leaf.copy()
    leaf[~case.mask] = np.array(garbage).astype(leaf.dtype)
    return leaf

  inputs = jax.tree.map(spoilt, case.inputs)
  got = run(case._replace(inputs=inputs, resets=case.resets ^ ~case.mask))
  assert_same_bits(got, want)
  assert not np.asarray(got.outputs)[~case.mask].any()
  for leaf in jax.tree.leaves(got.d_inputs):
    assert not np.asarray(leaf)[~case.mask].any()
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))


@each_way
@law
@given(data=st.data(), row=st.integers(0, 2), given_carry=st.booleans())
def test_a_row_without_a_real_time_step_keeps_its_carry(
  name, method, data, row, given_carry
):
  cell = CELLS[name](FEATURES)
  case = data.draw(cases(cell, MIDDLE, dtype=np.float32))
  case.mask[row] = False
  if not given_carry:
    start = cell.initial_carry(case.params, (len(case.mask),))
    case = case._replace(carry=start)
  got = everything(cell, method=method)(case)
  at_row = functools.partial(jax.tree.map, lambda x: np.asarray(x)[row])
  assert_same_bits(at_row(got.carry), at_row(case.carry))
  assert_same_bits(at_row(got.d_carry), at_row(case.weights[1]))
  assert not np.asarray(got.outputs)[row].any()
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))


# Time.


@each_cell
@both_directions
@pytest.mark.usefixtures("x64")
@law
@given(data=st.data())
def test_two_parts_are_the_whole(name, reverse, data):
  cell = CELLS[name](FEATURES)
  case = data.draw(cases(cell, SMALL))
  run = forward(cell, reverse=reverse)
  outputs, carry = run(case)
  for cut in range(1, outputs.shape[1]):
    parts = [over_time(case, slice(cut)), over_time(case, slice(cut, None))]
    if reverse:
      parts.reverse()
    first, between = run(parts[0])
    second, last = run(parts[1]._replace(carry=between))
    both = [second, first] if reverse else [first, second]
    assert_close((jnp.concatenate(both, 1), last), (outputs, carry), 1e-12)


@each_cell
@both_directions
@pytest.mark.usefixtures("x64")
@law
@given(data=st.data())
def test_a_reset_is_a_fresh_start(name, reverse, data):
  cell = CELLS[name](FEATURES)
  case = data.draw(cases(cell, SMALL))
  run = forward(cell, reverse=reverse)
  start, after = (1, slice(2)) if reverse else (2, slice(2, None))
  case.mask[:, start] = case.resets[:, start] = True
  # A carry of garbage: nothing of it may come through.
  case = case._replace(carry=jax.tree.map(lambda x: x * np.nan, case.carry))
  outputs, carry = run(case)
  fresh = over_time(case._replace(carry=None), after)
  fresh.resets[:, start - (after.start or 0)] = False
  assert_close((outputs[:, after], carry), run(fresh), 1e-12)


@each_cell
@pytest.mark.usefixtures("x64")
@law
@given(data=st.data())
def test_reverse_is_flip_run_flip(name, data):
  cell = CELLS[name](FEATURES)
  case = data.draw(cases(cell, SMALL))
  outputs, carry = forward(cell, reverse=False)(
    over_time(case, slice(None, None, -1))
  )
  got = forward(cell, reverse=True)(case)
  assert_close(got, (outputs[:, ::-1], carry), 1e-12)


@each_way
@both_directions
@law
@given(data=st.data())
def test_an_output_depends_on_its_own_row_and_past_since_the_reset(
  name, method, reverse, data
):
  cell = CELLS[name](FEATURES)
  case = data.draw(cases(cell, SMALL, dtype=np.float32))
  batch, time = case.mask.shape
  # [batch, time, batch, time], over the units and input features.
  blocks = jax.tree.leaves(jacobian(cell, method=method, reverse=reverse)(case))
  depends = np.any(
    [
      np.asarray(block != 0).any(axis=(2, *range(5, block.ndim)))
      for block in blocks
    ],
    axis=0,
  )
  order = range(time)[:: -1 if reverse else 1]
  may = np.zeros_like(depends)
  for row in range(batch):
    past = []
    for t in (t for t in order if case.mask[row, t]):
      past = [t] if case.resets[row, t] else [*past, t]
      may[row, t, row, past] = True
  assert not depends[~may].any()
  # Rectified units may all be off, and a series may have nothing observed.
  if method == "scan" and name not in ("rnn_relu", "indrnn", "gru_d"):
    assert depends[may].all()


# The batch.


@each_cell
@pytest.mark.usefixtures("x64")
@law
@given(data=st.data(), order=st.permutations(range(3)))
def test_rows_in_another_order_come_out_in_that_order(name, data, order):
  cell = CELLS[name](FEATURES)
  case = data.draw(cases(cell, SMALL))
  in_order = functools.partial(jax.tree.map, lambda x: x[np.array(order)])
  run = forward(cell)
  got = run(Case(case.params, *in_order(case[1:])))
  assert_close(got, in_order(run(case)), 1e-12)


@each_cell
@pytest.mark.usefixtures("x64")
@settings(law, max_examples=4)
@given(data=st.data(), row=st.integers(0, 2))
def test_a_row_by_itself_comes_out_as_among_others(name, data, row):
  cell = CELLS[name](FEATURES)
  case = data.draw(cases(cell, SMALL))
  alone = functools.partial(jax.tree.map, lambda x: x[row : row + 1])
  run = forward(cell)
  got = run(Case(case.params, *alone(case[1:])))
  assert_close(got, alone(run(case)), 1e-12)


@each_way
@settings(law, max_examples=2)
@given(data=st.data())
def test_a_second_run_has_the_bits_of_the_first_and_jit_changes_little(
  name, method, data
):
  cell = CELLS[name](FEATURES)
  case = data.draw(cases(cell, SMALL, dtype=np.float32))
  run = everything(cell, method=method)
  assert_same_bits(run(case), run(case))
  assert_close(loss(case, cell, method=method)[1], run(case)[:2], 1e-6)


@each_cell
@pytest.mark.usefixtures("x64")
@settings(law, max_examples=3)
@given(data=st.data())
def test_the_parts_of_a_step_take_any_batch_axes(name, data):
  cell = CELLS[name](FEATURES)
  case = data.draw(cases(cell, ((6, 1, 2),)))
  params = jax.tree.map(jnp.asarray, case.params)
  now = jax.tree.map(lambda x: x[:, 0], case.inputs)
  carry, inputs = jax.tree.map(jnp.asarray, (case.carry, now))
  parts = {
    "project": (lambda carry, inputs: cell.project(params, inputs)),
    "step": (
      lambda carry, inputs: cell.step(
        params, carry, cell.project(params, inputs)
      )
    ),
  }
  if isinstance(cell, GatedCell):
    parts["recur"] = lambda carry, inputs: cell.recur(params, carry)
  for part in parts.values():
    row_by_row = jax.vmap(part)(carry, inputs)
    for axes in ((6,), (2, 3), (1, 3, 2)):
      shaped, flat = (
        functools.partial(
          jax.tree.map,
          lambda x, lead=lead, count=count: x.reshape(*lead, *x.shape[count:]),
        )
        for lead, count in ((axes, 1), ((6,), len(axes)))
      )
      got = part(shaped(carry), shaped(inputs))
      assert_close(flat(got), row_by_row, 1e-13)


# The carry.


@each_cell
@law
@given(data=st.data())
def test_no_carry_is_the_initial_carry(name, data):
  cell = CELLS[name](FEATURES)
  case = data.draw(cases(cell, SMALL, dtype=np.float32))
  start = cell.initial_carry(case.params, (len(case.mask),))
  run = forward(cell)
  got = run(case._replace(carry=None))
  assert_same_bits(got, run(case._replace(carry=start)))


def avals(tree):
  return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def avals_of_inputs(cell, *shape, dtype):
  inputs = inputs_for(cell, np.random.default_rng(0), *shape, dtype=dtype)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)


@every_cell
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("wide", [np.float32, np.float64])
@pytest.mark.parametrize(
  "compute", [jnp.bfloat16, jnp.float16, np.float32, np.float64]
)
def test_the_carry_is_a_fixed_point_of_the_step(name, wide, compute):
  cell = CELLS[name](FEATURES)
  for axes in ((), (2,), (2, 3)):
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 5))
    params = jax.eval_shape(lambda p: cast(p, wide), params)
    carry = jax.eval_shape(lambda p, a=axes: cell.initial_carry(p, a), params)
    inputs = avals_of_inputs(cell, *axes, 5, dtype=compute)

    def step(params, carry, inputs):
      params = cell.narrow(params, compute)
      return cell.step(params, carry, cell.project(params, inputs))

    stepped, outputs = jax.eval_shape(step, params, carry, inputs)
    assert type(stepped) is type(carry)
    assert avals(stepped) == avals(carry)
    assert avals(outputs) == ((*axes, *output_shape(cell)), compute)
    # The carry is as wide as the parameters, never as narrow as the inputs.
    for leaf in jax.tree.leaves(carry):
      assert leaf.dtype == wide
      assert leaf.shape[: len(axes)] == axes


@every_way
@pytest.mark.parametrize("compute", [jnp.bfloat16, jnp.float16, np.float32])
def test_a_sequence_keeps_the_dtypes(name, method, compute):
  if method == "cpu_kernel" and compute != np.float32:
    return  # which it refuses: tests/kernels/cpu_test.py
  cell = CELLS[name](FEATURES)
  params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 5))
  carry = jax.eval_shape(lambda p: cell.initial_carry(p, (2,)), params)
  inputs = avals_of_inputs(cell, 2, 3, 5, dtype=compute)
  flag = jax.ShapeDtypeStruct((2, 3), bool)
  shape = (2, 3, *output_shape(cell))
  weights = (jax.ShapeDtypeStruct(shape, np.float32), carry)
  case = Case(params, carry, inputs, flag, flag, weights)
  got = jax.eval_shape(everything(cell, method=method), case)
  assert avals(got.outputs) == (shape, compute)
  for leaves, want in (
    (got.carry, carry),
    (got.d_params, params),
    (got.d_carry, carry),
    (got.d_inputs, floats(inputs)),
  ):
    assert avals(leaves) == avals(want)


# The value.


@every_cell
@pytest.mark.usefixtures("x64")
def test_parameters_are_drawn_in_float32(name):
  drawn = param_shapes(CELLS[name](FEATURES), 3)
  assert {leaf.dtype for leaf in jax.tree.leaves(drawn)} == {
    jnp.dtype("float32")
  }


@every_cell
def test_a_cell_is_a_value(name):
  one, two, wider = (CELLS[name](features) for features in (3, 3, 5))
  assert one == two and hash(one) == hash(two) and repr(one) == repr(two)
  assert one != wider and repr(one) != repr(wider)
  assert one.features == 3
  with pytest.raises(dataclasses.FrozenInstanceError):
    one.features = 4


def test_no_two_rows_of_the_table_are_the_same_cell():
  cells = [build(3) for build in CELLS.values()]
  assert len(set(cells)) == len({repr(cell) for cell in cells}) == len(CELLS)


@every_cell
@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "3", None])
def test_a_width_that_is_none_is_refused(name, wrong):
  with pytest.raises(ValueError, match="features must be .*, got"):
    CELLS[name](wrong)


@each_cell
def test_two_calls_with_equal_cells_make_one_trace(name):
  traces = []

  @functools.partial(jax.jit, static_argnums=0)
  def run(cell, params, inputs):
    traces.append(cell)
    return unroll(cell, params, None, inputs)

  params = CELLS[name](FEATURES).init(jax.random.key(0), 2)
  inputs = inputs_for(CELLS[name](FEATURES), np.random.default_rng(0), 1, 2, 2)
  for _ in range(2):
    run(CELLS[name](FEATURES), params, inputs)
  assert len(traces) == 1
