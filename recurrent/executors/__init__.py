"""Executors: functions that run a cell over time, one for each method.

To add one, write a file here and add an entry to `EXECUTORS`
(docs/add_an_executor.md).

An executor takes (cell, reverse, params, initial, carry, time_steps) and
returns (carry, outputs). `params` is a function that returns the parameters in
the dtype to compute in. `time_steps` (`recurrent.masking.TimeSteps`) holds the
projected inputs, the mask and the resets, time-major. `unroll` checks,
transposes and projects before it calls an executor.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from recurrent.cells.base import (
  Cell,
  GatedCell,
  LinearCell,
  MatrixCell,
  param_shapes,
)
from recurrent.executors import (
  chunkwise,
  cpu_kernel,
  cudnn,
  gpu_kernel,
  tpu_kernel,
)
from recurrent.executors.choice import Table, choose, table
from recurrent.executors.fused import bulk_gradients, fused
from recurrent.executors.linear import associative, linear_scan, loop_of
from recurrent.executors.newton import Newton, NewtonReport, newton, solve
from recurrent.executors.scan import scan
from recurrent.kernels import cpu
from recurrent.setting import Setting


class Executor(NamedTuple):
  """A function that runs a cell over time, and when it can be used.

  Attributes:
    run: the function; the module's docstring gives its arguments.
    why_not: returns why `run` cannot run a cell, as a predicate of the cell
      ("has no ..."); empty if it can. `unroll` has called
      `cells.noise.unwrapped` on the cells that these functions get.
    why_not_here: returns why `run` cannot run any cell in a setting, as a
      predicate of the executor ("is for ..."); empty if it can.
    platform: the only platform that `run` is made for; empty: any. Elsewhere it
      is refused, or interpreted and slow.
    for_bulk: applied to the parameters before the inputs are projected in bulk.
    projects: whether `run` projects the inputs itself. If so, `time_steps`
      holds the plain inputs.
    how: returns a note on how `run` runs a cell in a setting, such as by which
      of its loops; may be empty.
    recompute: whether `run` takes the option `recompute`, for gated cells. With
      it only the carries are stored, and the reverse pass recomputes all other
      values.
  """

  run: Callable[..., Any]
  why_not: Callable[[Cell], str]
  why_not_here: Callable[[Setting], str] = lambda setting: ""
  platform: str = ""
  for_bulk: Callable[[Any], Any] = bulk_gradients
  projects: bool = False
  how: Callable[[Cell, Setting], str] = lambda cell, setting: ""
  recompute: bool = False


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


EXECUTORS: dict[str, Executor] = {
  "scan": Executor(
    scan,
    lambda cell: "",
    for_bulk=lambda params: params,
  ),
  "fused": Executor(
    fused,
    _only(GatedCell, _NOT_GATED),
    recompute=True,
  ),
  "associative": Executor(
    associative,
    _only(LinearCell, _NOT_LINEAR),
  ),
  "linear_scan": Executor(
    linear_scan,
    _only(LinearCell, _NOT_LINEAR),
    how=loop_of,
  ),
  "chunkwise": Executor(
    chunkwise.chunkwise,
    _only(MatrixCell, _NOT_MATRIX),
    how=chunkwise.how,
  ),
  "cpu_kernel": Executor(
    cpu_kernel.cpu_kernel,
    cpu_kernel.why_not,
    cpu.why_not_here,
    platform="cpu",
    projects=True,
    how=lambda cell, setting: cpu.why_slow_here(setting),
    recompute=True,
  ),
  "newton": Executor(
    newton,
    _no_newton,
  ),
  "tpu_kernel": Executor(
    tpu_kernel.tpu_kernel,
    tpu_kernel.why_not,
    platform="tpu",
    how=tpu_kernel.how,
    recompute=True,
  ),
  "gpu_kernel": Executor(
    gpu_kernel.gpu_kernel,
    gpu_kernel.why_not,
    gpu_kernel.why_not_here,
    platform="gpu",
    recompute=True,
  ),
  "cudnn": Executor(
    cudnn.cudnn,
    cudnn.why_not,
    cudnn.why_not_here,
    platform="gpu",
    how=lambda cell, setting: "without mask and resets",
    projects=True,
  ),
}


__all__ = [
  "EXECUTORS",
  "Executor",
  "Newton",
  "NewtonReport",
  "Setting",
  "Table",
  "choose",
  "solve",
  "table",
]
