"""`"gpu_kernel"` runs the loop of "fused" or "linear_scan" as one GPU kernel.

It is the counterpart of `"tpu_kernel"`, with more restrictions: the weights
must fit into the shared memory of one multiprocessor, and every operation of a
time step except products with weights must be elementwise over the units.
"""

import functools

import jax
import jax.numpy as jnp

from recurrent import kernels
from recurrent.cells.base import LinearCell, param_shapes
from recurrent.executors import tpu_kernel
from recurrent.executors.fused import backward, forward, plain_loop
from recurrent.masking import TimeSteps

CAPABILITY = "9.0"


def gpu_kernel(*args, **options):
  """Runs the cell; the arguments are those of every executor."""
  return tpu_kernel.by_kernels("gpu")(*args, **options)


@functools.lru_cache
def why_not(cell) -> str:
  """Returns why the kernels cannot run a cell; empty if they can."""
  reason = tpu_kernel.why_not(cell)
  if reason or isinstance(cell, LinearCell):
    return reason
  if not cell.takes_vectors:
    return "takes inputs that are not vectors"
  reasons = []

  def loop(time_step, fixed, rows, carry, xs, reverse):
    reasons.append(kernels.gpu.unfit(time_step, fixed, rows, carry, xs))
    return plain_loop(time_step, fixed, rows, carry, xs, reverse)

  def both(params):
    flags = jnp.ones((1, 2), bool)
    carry = cell.initial_carry(params, (2,))
    time_steps = TimeSteps(
      cell.project(params, jnp.ones((1, 2, 1))), flags, flags
    )
    args = (cell, False, False, params, carry, carry, time_steps)
    results, kept = forward(*args, loop=loop)
    backward(cell, False, False, kept, results, loop=loop, gate_in_bulk=True)

  jax.eval_shape(both, param_shapes(cell, 1))
  return next(filter(None, reasons), "")


def why_not_here(setting) -> str:
  """Returns why the kernels cannot run in a setting; empty if they can."""
  if setting.platform != "gpu":
    return f"is for NVIDIA GPUs, not for {setting.platform}"
  # Only CUDA devices have the attribute; others pass this check.
  found = getattr(jax.devices()[0], "compute_capability", CAPABILITY)
  if found != CAPABILITY:
    return f"is for compute capability {CAPABILITY}, not for {found}"
  narrow = setting.dtype in (jnp.float32, jnp.bfloat16)
  if not narrow or setting.carry_dtype != jnp.float32:
    return (
      "computes in float32 or bfloat16 with a carry of float32, not in"
      f" {setting.widths}"
    )
  return ""
