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


def pallas(cell, reverse, params, initial, carry, ticks, recompute=False):
  """As all executors: the carry and the outputs."""
  if isinstance(cell, LinearCell):
    scan = kernels.pallas.linear_scan
    return linear(scan, cell, reverse, params, initial, carry, ticks)
  return _gated(cell, reverse, recompute, params(), initial, carry, ticks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _gated(cell, reverse, recompute, params, initial, carry, ticks):
  del recompute
  loop = functools.partial(tick, cell)
  return kernels.pallas.scan(loop, params, initial, carry, ticks, reverse)


_gated.defvjp(
  functools.partial(forward, loop=kernels.pallas.scan),
  functools.partial(backward, loop=kernels.pallas.scan, gate_in_bulk=True),
)


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
