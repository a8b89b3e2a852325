"""`"tpu_kernel"` runs the loop of "fused" or "linear_scan" as one TPU kernel.

The recurrent weights stay in VMEM, and `gate` and its pullback are traced into
the kernels. The bulk products of "fused" are computed outside the kernels here
as well.
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
from recurrent.executors.scan import time_step
from recurrent.kernels import transforms


@functools.cache
def by_kernels(name):
  """Makes an executor of gated and linear cells from a module of kernels.

  Args:
    name: the module in `recurrent.kernels`, which has `scan`, a loop, and
      `linear_scan`, the linear recurrence. It is imported by this call.

  Returns:
    An executor, which also takes `recompute`.
  """
  module = getattr(kernels, name)
  scan, linear_scan = module.scan, module.linear_scan

  def fast_run(cell, reverse, recompute, params, initial, carry, time_steps):
    del recompute
    loop = functools.partial(time_step, cell)
    return scan(loop, params, initial, carry, time_steps, reverse)

  def new_in(out, kept):
    """Keeps the new ones of the saved values: the others are arguments."""
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
    # `jax.checkpoint` does not see a name that is given inside the kernel.
    return out, (*args, (checkpoint_name(carries, CARRIES), mixed))

  def backward(*args):
    return transforms.kernel(fast_backward, loop_backward, args[:3], *args[3:])

  passes = transforms.Passes(run, forward, tangent, backward)

  def execute(
    cell, reverse, params, initial, carry, time_steps, recompute=False
  ):
    if isinstance(cell, LinearCell):
      return linear(
        linear_scan, cell, reverse, params, initial, carry, time_steps
      )
    static = (cell, reverse, recompute)
    return transforms.call(passes, static, params(), initial, carry, time_steps)

  return execute


def tpu_kernel(*args, **options):
  """Runs the cell; the arguments are those of every executor."""
  return by_kernels("tpu")(*args, **options)


def why_not(cell) -> str:
  """Returns why the kernels cannot run a cell; empty if they can."""
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


def how(cell, setting) -> str:
  """Returns how this method runs in a setting, for `recurrent.explain`."""
  del cell
  here = setting.platform
  return "" if here == "tpu" else f"interpreted on {here}, slowly"
