"""`"pallas"`: the loop of "fused" or "kernel" as one TPU kernel.

The recurrent weights stay in VMEM, `gate` and its pullback are traced into the
kernels; what is bulk in "fused" is bulk here.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from recurrent import kernels
from recurrent.cells.base import GatedCell, LinearCell, param_shapes
from recurrent.executors.fused import CARRIES, tangent
from recurrent.executors.fused import backward as loop_backward
from recurrent.executors.fused import forward as loop_forward
from recurrent.executors.fused import run as loop_run
from recurrent.executors.linear import linear
from recurrent.executors.scan import tick
from recurrent.kernels import transforms


def by_kernels(scan, linear_scan):
  """An executor of gated and linear cells, of the kernels for each.

  Args:
    scan: a loop, as `kernels.pallas.scan`.
    linear_scan: the linear recurrence, as `kernels.pallas.linear_scan`.

  Returns:
    As all executors: a function that gives the carry and the outputs.
  """

  def fast_run(cell, reverse, recompute, params, initial, carry, ticks):
    del recompute
    loop = functools.partial(tick, cell)
    return scan(loop, params, initial, carry, ticks, reverse)

  def new_in(out, kept):
    """What `forward` made: the rest of what it keeps are its arguments."""
    return out, kept[-1]

  def fast_forward(*args):
    return new_in(*loop_forward(*args, loop=scan))

  def plain_forward(*args):
    return new_in(*loop_forward(*args))

  def fast_backward(*args):
    return loop_backward(*args, loop=scan, gate_in_bulk=True)

  def run(*args):
    return transforms.kernel(fast_run, loop_run, args[:3], *args[3:])

  def forward(*args):
    static, args = args[:3], args[3:]
    out, (carries, mixed) = transforms.kernel(
      fast_forward, plain_forward, static, *args
    )
    # Within the kernel the name is not seen.
    return out, (*args, (checkpoint_name(carries, CARRIES), mixed))

  def backward(*args):
    return transforms.kernel(fast_backward, loop_backward, args[:3], *args[3:])

  passes = transforms.Passes(run, forward, tangent, backward)

  def execute(cell, reverse, params, initial, carry, ticks, recompute=False):
    if isinstance(cell, LinearCell):
      return linear(linear_scan, cell, reverse, params, initial, carry, ticks)
    static = (cell, reverse, recompute)
    return transforms.call(passes, static, params(), initial, carry, ticks)

  return execute


pallas = by_kernels(kernels.pallas.scan, kernels.pallas.linear_scan)


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
