"""Checks of computations in bfloat16: their sums, and their rounding errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import jaxprs_in_params


def narrow_sums(function, *args):
  """Lists the operations of a function that accumulate sums in bfloat16.

  Such a sum stops growing after about 256 terms. Matrix products are listed if
  their result is bfloat16.

  Args:
    function: the function to trace; its inner loops are searched too.
    *args: its arguments.

  Returns:
    The operations, sorted, each with the shapes of its inputs and outputs.
  """
  jaxpr = jax.make_jaxpr(function)(*args).jaxpr
  return sorted({str(found) for found in _search(jaxpr)})


def _search(jaxpr):
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    summed = (
      name in ("reduce_sum", "cumsum", "dot_general") or "scatter-add" in name
    )
    [*before] = (v.aval for v in eqn.invars)
    [*after] = (v.aval for v in eqn.outvars)
    if summed and after[0].dtype == jnp.bfloat16:
      squeezed = name == "reduce_sum" and math.prod(
        before[0].shape
      ) == math.prod(after[0].shape)
      if not squeezed:
        yield name, *(x.str_short() for x in (*before, *after))
    for inner in jaxprs_in_params(eqn.params):
      yield from _search(inner)


def assert_rounds_as_bfloat16_does(module, call, *inputs):
  """Asserts that a module in bfloat16 is off by little more than it must be.

  The error that no implementation avoids is that of the computation in float32
  with parameters and inputs that were rounded to bfloat16. Roundings between
  the operations may add as much again, and half of it.

  Args:
    module: an NNX module with parameters in float32.
    call: a function of the module and the inputs to one array of outputs.
    *inputs: arrays in float32.
  """
  graphdef, params = nnx.split(module)
  run = jax.jit(lambda params, *xs: call(nnx.merge(graphdef, params), *xs))
  narrow = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)
  wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
  want = run(params, *inputs)
  got = run(params, *narrow(inputs))
  assert got.dtype == jnp.bfloat16
  far = lambda x: np.linalg.norm(np.asarray(x, np.float32) - want)
  least = far(run(*wide(narrow((params, *inputs)))))
  assert far(got) <= 2.5 * least, f"{far(got) / least:.1f} times the least"
