"""`"pallas"`: the loop of "fused" or "kernel" as one TPU kernel.

The recurrent weights stay in VMEM, `gate` and its pullback are traced into the
kernels; what is bulk in "fused" is bulk here.
"""

import functools

import jax
import jax.numpy as jnp

from recurrent import kernels
from recurrent.cells.base import GatedCell, LinearCell, param_shapes
from recurrent.executors.fused import backward, forward
from recurrent.executors.linear import linear
from recurrent.executors.scan import tick


@functools.cache
def by_kernels(name):
  """Makes an executor of gated and linear cells from a module of kernels.

  Args:
    name: the module in `recurrent.kernels`, which has `scan`, a loop, and
      `linear_scan`, the linear recurrence. It is imported by this call.

  Returns:
    As all executors: a function that gives the carry and the outputs.
  """
  module = getattr(kernels, name)
  scan, linear_scan = module.scan, module.linear_scan

  @functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
  def gated(cell, reverse, recompute, params, initial, carry, ticks):
    del recompute
    loop = functools.partial(tick, cell)
    return scan(loop, params, initial, carry, ticks, reverse)

  gated.defvjp(
    functools.partial(forward, loop=scan),
    functools.partial(backward, loop=scan, gate_in_bulk=True),
  )

  def run(cell, reverse, params, initial, carry, ticks, recompute=False):
    if isinstance(cell, LinearCell):
      return linear(linear_scan, cell, reverse, params, initial, carry, ticks)
    return gated(cell, reverse, recompute, params(), initial, carry, ticks)

  return run


def pallas(*args, **options):
  """As all executors: the carry and the outputs."""
  return by_kernels("pallas")(*args, **options)


def why_not(cell) -> str:
  """Why the kernels cannot run a cell, as "it ..."."""
  if isinstance(cell, LinearCell):
    return ""
  if not isinstance(cell, GatedCell):
    return "is neither a GatedCell nor a LinearCell"
  params = param_shapes(cell, 1)
  carry = jax.eval_shape(lambda p: cell.initial_carry(p, ()), params)
  if any(
    leaf.ndim != 1 or not jnp.issubdtype(leaf.dtype, jnp.floating)
    for leaf in jax.tree.leaves(carry)
  ):
    return "has a carry that is not all real vectors"
  return ""


def remark() -> str:
  """What to know of running here."""
  platform = jax.default_backend()
  return "" if platform == "tpu" else f"interpreted on {platform}: slow"
