"""Ways to run a cell over time. To add one: a file here, a row in EXECUTORS.

All take (cell, reverse, params, initial, carry, ticks), where `params` is a
function that gives the parameters in the dtype to compute in, and `ticks` are
time-major; all return (carry, outputs). `unroll` does everything around it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from recurrent.cells.base import (
  Cell,
  GatedCell,
  LinearCell,
  MatrixCell,
  param_shapes,
)
from recurrent.executors import cudnn, mosaic_gpu
from recurrent.executors.chunkwise import chunkwise
from recurrent.executors.fused import bulk_gradients, fused
from recurrent.executors.linear import associative, kernel
from recurrent.executors.native import kind, native
from recurrent.executors.newton import Newton, NewtonReport, newton, solve
from recurrent.executors.pallas import pallas, remark
from recurrent.executors.pallas import why_not as no_pallas
from recurrent.executors.scan import scan
from recurrent.kernels.native import DTYPES, unavailable


class Setting(NamedTuple):
  """Where and on what a cell is to run.

  Attributes:
    dtype: to compute in.
    carry_dtype: of the carry.
    platform: JAX's default backend.
    devices: how many there are.
  """

  dtype: Any
  carry_dtype: Any
  platform: str
  devices: int

  @classmethod
  def here(cls, dtype=jnp.float32, carry_dtype=jnp.float32) -> "Setting":
    """That of this machine."""
    dtype, carry_dtype = map(jnp.dtype, (dtype, carry_dtype))
    return cls(dtype, carry_dtype, jax.default_backend(), jax.device_count())


class Executor(NamedTuple):
  """One way to run a cell.

  Attributes:
    run: the loop.
    why_not: why a cell cannot run by it, as "it ..."; empty if it can.
    merit: why "auto" would take it.
    why_not_here: why no cell can run by it in a setting, as "it ...".
    for_bulk: what to do with the parameters before the bulk projection.
    remark: what to know before running by it on this machine; may be empty.
    projects: whether it projects by itself: its ticks hold plain inputs.
  """

  run: Callable[..., Any]
  why_not: Callable[[Cell], str]
  merit: str
  why_not_here: Callable[[Setting], str] = lambda setting: ""
  for_bulk: Callable[[Any], Any] = bulk_gradients
  remark: Callable[[], str] = lambda: ""
  projects: bool = False


def _only(kind: type, reason: str) -> Callable[[Cell], str]:
  return lambda cell: "" if isinstance(cell, kind) else reason


_NOT_GATED = "has no `recur` and `gate`: it is no GatedCell"
_NOT_MATRIX = "has no keys and values: it is no MatrixCell"
_NOT_LINEAR = "has no decay and drive: it is no LinearCell"


def _no_newton(cell: Cell) -> str:
  if not isinstance(cell, GatedCell):
    return _NOT_GATED
  params = param_shapes(cell, 1)
  carry = jax.eval_shape(lambda p: cell.initial_carry(p, ()), params)
  if any(leaf.shape != (cell.features,) for leaf in jax.tree.leaves(carry)):
    return "has a carry with leaves that are not [features] in each row"
  return ""


def _no_native_here(setting: Setting) -> str:
  if setting.platform != "cpu":
    return f"is for CPUs, not for {setting.platform}"
  if setting.dtype not in DTYPES or setting.dtype != setting.carry_dtype:
    return (
      "computes in float32 or float64, carry and all, not in"
      f" {setting.dtype} with a carry of {setting.carry_dtype}"
    )
  return unavailable()


EXECUTORS: dict[str, Executor] = {
  "scan": Executor(
    scan,
    lambda cell: "",
    "it runs any cell, and nothing else runs this one",
    for_bulk=lambda params: params,
  ),
  "fused": Executor(
    fused,
    _only(GatedCell, _NOT_GATED),
    "weight gradients are bulk products, outside the reverse loop",
  ),
  "associative": Executor(
    associative,
    _only(LinearCell, _NOT_LINEAR),
    "log T passes, each parallel over time",
  ),
  "kernel": Executor(
    kernel,
    _only(LinearCell, _NOT_LINEAR),
    "chunks side by side, and a reverse pass that is the same scan",
  ),
  "chunkwise": Executor(
    chunkwise,
    _only(MatrixCell, _NOT_MATRIX),
    "attention within chunks: no matrix is written down for every tick",
  ),
  "native": Executor(
    native,
    lambda cell: "" if kind(cell) else "has no loop in C++",
    "a tick stays in registers",
    _no_native_here,
  ),
  "newton": Executor(
    newton,
    _no_newton,
    "all ticks at once, in rounds",
  ),
  "pallas": Executor(
    pallas,
    no_pallas,
    "weights and carry stay on the chip",
    remark=remark,
  ),
  "mosaic_gpu": Executor(
    mosaic_gpu.mosaic_gpu,
    mosaic_gpu.why_not,
    "weights and carry stay on the multiprocessor",
    mosaic_gpu.why_not_here,
  ),
  "cudnn": Executor(
    cudnn.cudnn,
    cudnn.why_not,
    "one call of cuDNN's",
    cudnn.why_not_here,
    remark=lambda: "without mask and resets",
    projects=True,
  ),
}


def choose(cell: Cell, setting: Setting) -> str:
  """What "auto" stands for: never what was not timed on a TPU or GPU."""
  if isinstance(cell, MatrixCell):
    return "chunkwise"
  if isinstance(cell, LinearCell):
    return "kernel"
  if not isinstance(cell, GatedCell):
    return "scan"
  # A call in C++ is one device's: what is sharded would be gathered for it.
  if kind(cell) and setting.devices == 1 and not _no_native_here(setting):
    return "native"
  return "fused"


__all__ = [
  "EXECUTORS",
  "Executor",
  "Newton",
  "NewtonReport",
  "Setting",
  "choose",
  "solve",
]
