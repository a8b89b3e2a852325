"""What the laws are tried on: drawn arrays, and all that comes out of them.

Hypothesis draws flags and seeds; shapes come from a short list and every
function is compiled once per cell and method, so an example costs no compile.
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
from recurrent.cells import (
  GRUD,
  ConvLSTM,
  GatedCell,
  LinearCell,
  Observations,
)
from recurrent.cells.base import MatrixCell
from recurrent.executors.cpu_kernel import kind
from recurrent.kernels.cpu import unavailable

# Batch, time, in_features. The first is ragged in every way, the second is
# the least that still has a time.
SHAPES = ((3, 7, 2), (1, 4, 3))

# The laws are about values: LLVM at level 0 compiles in half the time.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)

# The fixture `x64` needs no renewal from example to example. Cases are small
# as they are, and made of seeds: there is little to shrink or to explain.
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

  Here "tpu_kernel" is interpreted, too slow for all laws: it has tests of its
  own in `tests/kernels/tpu_test.py`. "gpu_kernel" and "cudnn" need a GPU: see
  `tests/kernels/gpu_test.py` and `tests/executors/cudnn_test.py`.
  """
  if isinstance(cell, LinearCell):
    matrix = ("chunkwise",) if isinstance(cell, MatrixCell) else ()
    return ("scan", "associative", "linear_scan", *matrix)
  if not isinstance(cell, GatedCell):
    return ("scan",)
  in_cpp = ("cpu_kernel",) if kind(cell) and not unavailable() else ()
  # The blocks that "newton" solves are square, over leaves of one width.
  one_width = getattr(cell, "memory", 0) in (0, cell.features)
  if isinstance(cell, ConvLSTM) or not one_width:
    return ("scan", "fused", *in_cpp)
  return ("scan", "fused", *in_cpp, "newton")


def output_shape(cell):
  """The shape of one time step's outputs in one row."""
  return (*getattr(cell, "spatial", ()), cell.features)


def inputs_for(cell, random, *shape, dtype=np.float32):
  """Normal inputs for a cell; shape is [*batch, in_features].

  Of `Observations` some 70 % are observed. Times there may be negative, which
  no law minds.
  """
  *batch, width = shape
  shape = (*batch, *getattr(cell, "spatial", ()), width)
  normal = lambda: random.normal(size=shape).astype(dtype)
  if isinstance(cell, GRUD):
    return Observations(normal(), random.random(shape) < 0.7, normal())
  return normal()


def floats(tree):
  """The tree with None for leaves that have no gradient."""
  real = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
  return jax.tree.map(lambda x: x if real(x) else None, tree)


def joined(reals, tree):
  """What `floats` gave, or others like it, with the tree's other leaves."""
  return jax.tree.map(
    lambda real, x: x if real is None else real,
    reals,
    tree,
    is_leaf=lambda x: x is None,
  )


def scaled(inputs, scale, offset=0):
  """`offset + scale * inputs`, where they are numbers."""
  real = lambda x: (offset + scale * x).astype(x.dtype)
  return joined(jax.tree.map(real, floats(inputs)), inputs)


@functools.lru_cache
def drawn_by_init(cell, in_features):
  """The parameters as `init` draws them, and an empty carry, in NumPy."""
  params = cell.init(jax.random.key(0), in_features)
  return jax.tree.map(np.asarray, (params, cell.initial_carry(params, ())))


@st.composite
def flags(draw, batch, time):
  """A mask [batch, time]: full rows, padded ones, ones with holes, none."""
  holes = draw(npst.arrays(bool, (batch, time)))
  lengths = draw(st.lists(st.integers(0, time), min_size=batch, max_size=batch))
  padded = np.arange(time) < np.array(lengths)[:, None]
  return draw(st.sampled_from([holes, padded, holes & padded]))


@st.composite
def cases(draw, cell, shapes=SHAPES, dtype=np.float64):
  """A `Case`: parameters near `init`'s, but no bias of them zero."""
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
  """One `Case` in float64, with a hole in its mask and a reset."""
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
  """A random linear function of outputs and carry, so every cotangent is 1-ish.

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
  # As leaves, since the weights' tree may be another's: they know no dtype.
  leaves = zip(
    jax.tree.leaves((outputs, carry)),
    jax.tree.leaves(case.weights),
    strict=True,
  )
  total = sum(jnp.sum(x.astype(w.dtype) * w) for x, w in leaves)
  return total, (outputs, carry)


def results(case, cell, **how):
  """Both passes; only `floats` of the inputs have a gradient."""

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
  """The function from a `Case` to `Results` under these options."""
  return jit(functools.partial(results, cell=cell, **how))


@functools.lru_cache
def ensemble(cell, **how):
  """The same with one more axis on every array, the parameters' too."""
  return jit(jax.vmap(functools.partial(results, cell=cell, **how)))


@functools.lru_cache
def forward(cell, **how):
  """The function from a `Case` to `(outputs, carry)`: quicker to compile."""
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
  """The function to d outputs / d inputs, [B, T, H, B, T, ...] a leaf.

  H stands for all that an output has of one time step and row.
  """

  def outputs(reals, case):
    case = case._replace(inputs=joined(reals, case.inputs))
    out = loss(case, cell, **how)[1][0]
    return out.reshape(*out.shape[:2], -1)

  return jit(lambda case: jax.jacrev(outputs)(floats(case.inputs), case))


def over_time(case, at):
  """The case with its time axis cut."""
  return case._replace(
    inputs=jax.tree.map(lambda x: x[:, at], case.inputs),
    mask=case.mask[:, at],
    resets=case.resets[:, at].copy(),
    weights=(case.weights[0][:, at], case.weights[1]),
  )


def error(got, want):
  """The relative norm of the difference; a norm below 1e-3 counts as that."""
  got, want = (
    np.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64)
    for x in (got, want)
  )
  assert got.shape == want.shape
  assert np.isfinite(want).all()
  return np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-3)


def assert_close(got, want, tolerance):
  """Every leaf within the tolerance, as `error` has it."""

  def check(path, got, want):
    far = error(got, want)
    assert far <= tolerance, f"{jax.tree_util.keystr(path)}: {far:.1e}"

  jax.tree_util.tree_map_with_path(check, got, want)


def assert_same_bits(got, want):
  """Every leaf equal to the last bit, the sign of zero and NaNs included."""

  def check(path, got, want):
    got, want = np.asarray(got), np.asarray(want)
    same = (got.dtype, got.shape) == (want.dtype, want.shape)
    same = same and got.tobytes() == want.tobytes()
    assert same, f"{jax.tree_util.keystr(path)}: {got} is not {want}"

  jax.tree_util.tree_map_with_path(check, got, want)
