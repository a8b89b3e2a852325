"""Random test cases for the laws of the cells, and functions that run them.

Hypothesis draws masks, resets and seeds. Shapes come from a short list, so
every function is compiled once per cell, method and shape.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from jax.flatten_util import ravel_pytree

from experiments.benchmarks.correctness import (
  Case,
  Results,
  drawn_by_init,
  error,
  floats,
  inputs_for,
  joined,
  loss,
  one_case,
  output_shape,
  results,
)
from recurrent.executors import EXECUTORS, Setting

# `why_not_here` of a method for a CPU; all of them compute in float32.
HERE = Setting(jnp.dtype("float32"), jnp.dtype("float32"), "cpu", 1)

__all__ = ["Results", "one_case"]  # other tests import them from here

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


def scaled(inputs, scale, offset=0):
  """`offset + scale * inputs` for all leaves that are floats."""
  real = lambda x: (offset + scale * x).astype(x.dtype)
  return joined(jax.tree.map(real, floats(inputs)), inputs)


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
