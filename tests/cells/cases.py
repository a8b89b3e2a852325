"""Random test cases for the laws of the cells, and functions that run them.

Hypothesis draws masks, resets and seeds. Shapes come from a short list, so
every function is compiled once per cell, method and shape.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from jax.flatten_util import ravel_pytree

from recurrent import unroll
from recurrent.cells import GRUD, Observations
from recurrent.executors import EXECUTORS, Setting

# `why_not_here` of a method for a CPU; all of them compute in float32.
HERE = Setting(jnp.dtype("float32"), jnp.dtype("float32"), "cpu", 1)

# Batch, time, in_features: three different sizes, and a small single row.
SHAPES = ((3, 7, 2), (1, 4, 3))

# LLVM's optimisation level 0 compiles in half the time, and only values are
# tested.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)

# The fixture `x64` may be shared by all examples of a test. Cases are small and
# made from seeds, so Hypothesis need not shrink or explain them.
law = settings(
  max_examples=16,
  deadline=None,
  derandomize=True,
  database=None,
  phases=[Phase.explicit, Phase.generate],
  # The first draw compiles a cell's `init`, which a busy machine makes slow.
  suppress_health_check=[
    HealthCheck.function_scoped_fixture,
    HealthCheck.too_slow,
  ],
)


class Case(NamedTuple):
  """Arguments of `unroll`, and the weights of the loss on what it returns."""

  params: Any
  carry: Any
  inputs: Any
  mask: Any
  resets: Any
  weights: Any


class Results(NamedTuple):
  """What `unroll` returns, and the gradients of the loss."""

  outputs: Any
  carry: Any
  d_params: Any
  d_carry: Any
  d_inputs: Any


def methods(cell):
  """The methods, other than "auto", that must run this cell under the laws.

  Those for other platforms than a CPU have tests of their own: see
  `tests/kernels/tpu_test.py`, where the kernels are interpreted, which is too
  slow for all laws, `tests/kernels/gpu_test.py` and
  `tests/executors/cudnn_test.py`. docs/cells.md holds what is expected here.
  """
  return tuple(
    name
    for name, executor in EXECUTORS.items()
    if executor.platform in ("", "cpu")
    and not executor.why_not(cell)
    and not executor.why_not_here(HERE)
  )


def output_shape(cell):
  """The shape of one time step's outputs in one row."""
  return (*getattr(cell, "spatial", ()), cell.features)


def inputs_for(cell, random, *shape, dtype=np.float32):
  """Draws normal inputs for a cell; shape is [*batch, in_features].

  About 70 % of the values of `Observations` are observed. Their times may be
  negative, which has no effect on the laws.
  """
  *batch, width = shape
  shape = (*batch, *getattr(cell, "spatial", ()), width)
  normal = lambda: random.normal(size=shape).astype(dtype)
  if isinstance(cell, GRUD):
    return Observations(normal(), random.random(shape) < 0.7, normal())
  return normal()


def floats(tree):
  """The tree with None in place of the leaves that are not floats."""
  real = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
  return jax.tree.map(lambda x: x if real(x) else None, tree)


def joined(reals, tree):
  """Inverse of `floats`: puts the leaves of `tree` where `reals` has None."""
  return jax.tree.map(
    lambda real, x: x if real is None else real,
    reals,
    tree,
    is_leaf=lambda x: x is None,
  )


def scaled(inputs, scale, offset=0):
  """`offset + scale * inputs` for all leaves that are floats."""
  real = lambda x: (offset + scale * x).astype(x.dtype)
  return joined(jax.tree.map(real, floats(inputs)), inputs)


@functools.lru_cache
def drawn_by_init(cell, in_features):
  """Parameters from `init`, and an initial carry without batch, in NumPy."""
  params = cell.init(jax.random.key(0), in_features)
  return jax.tree.map(np.asarray, (params, cell.initial_carry(params, ())))


@st.composite
def flags(draw, batch, time):
  """Draws a mask [batch, time] with holes, padding or both."""
  holes = draw(npst.arrays(bool, (batch, time)))
  lengths = draw(st.lists(st.integers(0, time), min_size=batch, max_size=batch))
  padded = np.arange(time) < np.array(lengths)[:, None]
  return draw(st.sampled_from([holes, padded, holes & padded]))


@st.composite
def cases(draw, cell, shapes=SHAPES, dtype=np.float64):
  """Draws a `Case`, whose parameters are those of `init` plus noise."""
  batch, time, in_features = draw(st.sampled_from(shapes))
  random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  normal = lambda *shape: random.normal(size=shape).astype(dtype)
  params, start = drawn_by_init(cell, in_features)
  return Case(
    params=jax.tree.map(lambda x: x + 0.3 * normal(*x.shape), params),
    carry=jax.tree.map(lambda x: 0.5 * normal(batch, *x.shape), start),
    inputs=inputs_for(cell, random, batch, time, in_features, dtype=dtype),
    mask=draw(flags(batch, time)),
    resets=draw(npst.arrays(bool, (batch, time))),
    weights=(
      normal(batch, time, *output_shape(cell)),
      jax.tree.map(lambda x: normal(batch, *x.shape), start),
    ),
  )


def one_case(cell, shape):
  """Makes one `Case` in float64, with a hole in its mask and a reset."""
  batch, time, in_features = shape
  random = np.random.default_rng(0)
  normal = random.normal
  params, start = drawn_by_init(cell, in_features)
  row = lambda x: normal(size=(batch, *x.shape))
  time_steps = np.broadcast_to(np.arange(time), (batch, time))
  return Case(
    params=jax.tree.map(lambda x: x + 0.3 * normal(size=x.shape), params),
    carry=jax.tree.map(lambda x: 0.5 * row(x), start),
    inputs=inputs_for(cell, random, *shape, dtype=np.float64),
    mask=time_steps != 1,
    resets=time_steps == 2,
    weights=(
      normal(size=(batch, time, *output_shape(cell))),
      jax.tree.map(row, start),
    ),
  )


def loss(case, cell, **how):
  """A random linear function of outputs and carry, with weights around 1.

  Returns:
    The loss, and `(outputs, carry)`.
  """
  carry, outputs = unroll(
    cell,
    case.params,
    case.carry,
    case.inputs,
    mask=case.mask,
    resets=case.resets,
    **how,
  )
  # Leaf by leaf, since the weights may have another tree structure and dtype.
  leaves = zip(
    jax.tree.leaves((outputs, carry)),
    jax.tree.leaves(case.weights),
    strict=True,
  )
  total = sum(jnp.sum(x.astype(w.dtype) * w) for x, w in leaves)
  return total, (outputs, carry)


def results(case, cell, **how):
  """Runs `unroll` and its gradients; integer inputs have none."""

  def given(params, carry, reals):
    inputs = joined(reals, case.inputs)
    here = case._replace(params=params, carry=carry, inputs=inputs)
    return loss(here, cell, **how)

  (_, out), gradients = jax.value_and_grad(
    given, argnums=(0, 1, 2), has_aux=True
  )(case.params, case.carry, floats(case.inputs))
  return Results(*out, *gradients)


@functools.lru_cache
def everything(cell, **how):
  """The jitted function from a `Case` to `Results`, with these options."""
  return jit(functools.partial(results, cell=cell, **how))


@functools.lru_cache
def ensemble(cell, **how):
  """`everything`, vmapped over a new axis of all arrays and parameters."""
  return jit(jax.vmap(functools.partial(results, cell=cell, **how)))


@functools.lru_cache
def forward(cell, **how):
  """The jitted function from a `Case` to `(outputs, carry)` only."""
  return jit(lambda case: loss(case, cell, **how)[1])


@functools.lru_cache
def losses(cell):
  """The loss at many points, each (params, carry, inputs) as one vector."""

  def one(point, case):
    unravel = ravel_pytree((case.params, case.carry, floats(case.inputs)))[1]
    params, carry, reals = unravel(point)
    inputs = joined(reals, case.inputs)
    case = case._replace(params=params, carry=carry, inputs=inputs)
    return loss(case, cell, method="scan")[0]

  return jit(jax.vmap(one, in_axes=(0, None)))


@functools.lru_cache
def jacobian(cell, **how):
  """The jitted Jacobian of outputs by inputs, leaves [B, T, H, B, T, ...].

  H is the flattened shape of the outputs of one row and time step.
  """

  def outputs(reals, case):
    case = case._replace(inputs=joined(reals, case.inputs))
    out = loss(case, cell, **how)[1][0]
    return out.reshape(*out.shape[:2], -1)

  return jit(lambda case: jax.jacrev(outputs)(floats(case.inputs), case))


def over_time(case, at):
  """The case with its time axis indexed by `at`."""
  return case._replace(
    inputs=jax.tree.map(lambda x: x[:, at], case.inputs),
    mask=case.mask[:, at],
    resets=case.resets[:, at].copy(),
    weights=(case.weights[0][:, at], case.weights[1]),
  )


def error(got, want):
  """Norm of the difference over the norm of `want`, or over 1e-3 if larger."""
  got, want = (
    np.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64)
    for x in (got, want)
  )
  assert got.shape == want.shape
  assert np.isfinite(want).all()
  return np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-3)


def assert_close(got, want, tolerance):
  """Asserts that `error` of every leaf is at most the tolerance."""

  def check(path, got, want):
    far = error(got, want)
    assert far <= tolerance, f"{jax.tree_util.keystr(path)}: {far:.1e}"

  jax.tree_util.tree_map_with_path(check, got, want)


def assert_same_bits(got, want):
  """Asserts that every leaf has the same bits, including zeros and NaNs."""

  def check(path, got, want):
    got, want = np.asarray(got), np.asarray(want)
    same = (got.dtype, got.shape) == (want.dtype, want.shape)
    same = same and got.tobytes() == want.tobytes()
    assert same, f"{jax.tree_util.keystr(path)}: {got} is not {want}"

  jax.tree_util.tree_map_with_path(check, got, want)
