"""Compares a method on this machine's device with a loop on its CPU in float64.

A case has a carry, a mask, resets, and random weights of a loss, so that every
gradient is compared. All numbers are rounded to bfloat16 when they are drawn,
so that one reference serves every dtype.

How much may a result be off? Rounding errors grow as the cell makes them grow,
which the plain loop shows: on the CPU, in the same dtype, it is off by some e.
A method may be off by 4 e + 4 u, where u is half of the spacing of numbers at 1
in the dtype: its sums have another order, and the device's functions another
last bit. If the factors of its products have fewer bits than the dtype, u is
that of the factors, and e grows in proportion. Errors are norms of differences
over norms.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.methods import able
from recurrent import unroll
from recurrent.cells import CELLS, GRUD, Observations
from recurrent.executors import Setting
from recurrent.unroll import resolve_method

UNITS = {"float32": 2.0**-24, "bfloat16": 2.0**-8}  # u of each dtype
# Two terms of bfloat16 for each factor of a float32 product.
NARROW = {("gpu_kernel", "float32"): 2.0**-17}
FACTOR = 4  # of both `e` and `u`
# Rows, time steps and inputs: no multiples of a tile or of a block.
SHAPE = (20, 9, 5)
# With more, rounding errors double at each time step of a wide cell.
NOISE = 0.1
# Narrower and wider than the 64 units of a tile, and not wider than fits.
WIDTHS = {"float32": 40, "bfloat16": 72}


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


def methods(
  cells: Iterable[str], dtypes: Iterable[str]
) -> dict[str, dict[str, list[str]]]:
  """The methods that run here, by dtype and cell; that of "auto" is first.

  Args:
    cells: keys of `CELLS`.
    dtypes: names of dtypes.
  """
  found: dict[str, dict[str, list[str]]] = {}
  for dtype in dtypes:
    setting = Setting.here(jnp.dtype(dtype))
    found[dtype] = {}
    for name in cells:
      cell = CELLS[name](8)
      auto = resolve_method(cell, "auto", setting)
      others = [method for method in able(cell, setting) if method != auto]
      found[dtype][name] = [auto, *others]
  return found


def check(name: str, method: str, dtype: str) -> dict[str, Any]:
  """Runs a cell by a method, in both directions.

  Args:
    name: a key of `CELLS`.
    method: a key of `EXECUTORS`.
    dtype: a key of `UNITS`.

  Returns:
    `forward` and `gradients`, the largest errors; `allowed`, their limits; and
    `ok`, whether both keep to them.
  """
  cell = CELLS[name](WIDTHS[dtype])
  flags = method != "cudnn"  # it has neither a mask nor resets
  errors, limits = np.zeros(2), np.zeros(2)
  unit = NARROW.get((method, dtype), UNITS[dtype])
  for reverse in (False, True):
    case, want, growth = _reference(name, dtype, flags, reverse)
    with jax.default_matmul_precision("highest"):
      run = functools.partial(results, method=method, reverse=reverse)
      got = jax.jit(functools.partial(run, cell=cell))(narrow(case, dtype))
    errors = np.maximum(errors, _largest(got, want))
    limits = np.maximum(limits, FACTOR * unit * (growth + 1))
  return {
    **dict(zip(("forward", "gradients"), errors.tolist(), strict=True)),
    "allowed": limits.tolist(),
    # Written so that NaN is not.
    "ok": bool((errors <= limits).all()),
  }


@functools.cache
def _reference(name, dtype, flags, reverse):
  """A case, its results in float64, and the plain loop's errors in units."""
  cell = CELLS[name](WIDTHS[dtype])
  run = jax.jit(
    functools.partial(results, cell=cell, method="scan", reverse=reverse),
    compiler_options={"xla_backend_optimization_level": 0},
  )
  (cpu,) = jax.local_devices(backend="cpu")[:1]
  with jax.default_device(cpu), jax.default_matmul_precision("highest"):
    with jax.enable_x64(True):
      case = jax.tree.map(rounded, one_case(cell, SHAPE, NOISE))
      case = case._replace(
        mask=slanted(case.mask) if flags else None,
        resets=slanted(case.resets) if flags else None,
      )
      want = jax.tree.map(np.asarray, run(case))
    errors = _largest(run(narrow(case, dtype)), want)
  return case, want, errors / UNITS[dtype]


def _largest(got, want):
  """The largest error of the forward results, and of the gradients."""
  found = jax.tree.map(error, got, want)
  forward, gradients = found[:2], found[2:]
  return np.array([max(jax.tree.leaves(x)) for x in (forward, gradients)])


def rounded(x):
  """A NumPy array with its floats rounded to bfloat16."""
  real = np.issubdtype(x.dtype, np.floating)
  return x.astype(jnp.bfloat16).astype(x.dtype) if real else x


def slanted(flags):
  """Flags [batch, time], those of each row one time step after the last."""
  return np.stack([np.roll(row, k) for k, row in enumerate(flags)])


def narrow(case, dtype):
  """The case with inputs of a dtype, and all else in float32."""
  cast = lambda dtype: lambda x: x.astype(dtype)
  to = lambda tree, dtype: joined(jax.tree.map(cast(dtype), floats(tree)), tree)
  return to(case, jnp.float32)._replace(inputs=to(case.inputs, dtype))


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


@functools.lru_cache
def drawn_by_init(cell, in_features):
  """Parameters from `init`, and an initial carry without batch, in NumPy."""
  params = cell.init(jax.random.key(0), in_features)
  return jax.tree.map(np.asarray, (params, cell.initial_carry(params, ())))


def one_case(cell, shape, noise=0.3):
  """Makes one `Case` in float64, with a hole in its mask and a reset.

  Args:
    cell: the cell.
    shape: rows, time steps and width of the inputs.
    noise: the standard deviation of what is added to parameters from `init`.
  """
  batch, time, in_features = shape
  random = np.random.default_rng(0)
  normal = random.normal
  params, start = drawn_by_init(cell, in_features)
  row = lambda x: normal(size=(batch, *x.shape))
  time_steps = np.broadcast_to(np.arange(time), (batch, time))
  return Case(
    params=jax.tree.map(lambda x: x + noise * normal(size=x.shape), params),
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


def error(got, want):
  """Norm of the difference over the norm of `want`, or over 1e-3 if larger."""
  got, want = (
    np.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64)
    for x in (got, want)
  )
  assert got.shape == want.shape
  assert np.isfinite(want).all()
  return np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-3)
