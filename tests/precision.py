"""Finds operations that sum many numbers in bfloat16."""

import math

import jax
import jax.numpy as jnp
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
