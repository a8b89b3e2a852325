"""`Recurrent`: the one place where a Flax NNX module meets a cell."""

from typing import Any

import jax
from flax import nnx

from recurrent.cells.base import Cell
from recurrent.types import Activations, Array, Carry, Float, Mask, Params
from recurrent.unroll import unroll


class Recurrent(nnx.Module):
  """A cell with its parameters, run over a sequence.

  Args:
    cell: any cell; static, equal by value.
    in_features: width D of the inputs.
    reverse: from the last tick to the first.
    method: see `recurrent.unroll`.
    remat: see `recurrent.unroll`.
    rngs: source of the keys that draw the parameters.
  """

  def __init__(
    self,
    cell: Cell,
    in_features: int,
    *,
    reverse: bool = False,
    method: str = "auto",
    remat: int | None = None,
    rngs: nnx.Rngs,
  ):
    self.cell = cell
    self.reverse = reverse
    self.method = method
    self.remat = remat
    self.params = nnx.data(
      jax.tree.map(nnx.Param, cell.init(rngs.params(), in_features))
    )

  def cell_params(self) -> Params:
    """The cell's NamedTuple of plain arrays."""
    return jax.tree.map(
      lambda param: param[...],
      self.params,
      is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
    )

  def initial_carry(self, batch_size: int) -> Carry:
    """The carry before the first tick, [batch, ...]."""
    return self.cell.initial_carry(self.cell_params(), (batch_size,))

  def __call__(
    self,
    carry: Carry | None,
    inputs: Activations,
    *,
    mask: Mask | None = None,
    resets: Mask | None = None,
  ) -> tuple[Carry, Float[Array, "B T H"]]:
    """Runs the cell; arguments and results as in `recurrent.unroll`."""
    return unroll(
      self.cell,
      self.cell_params(),
      carry,
      inputs,
      mask=mask,
      resets=resets,
      reverse=self.reverse,
      method=self.method,
      remat=self.remat,
    )

  def project(self, inputs: Float[Array, "*B D"]) -> Any:
    """What `step` consumes, for inputs with any batch axes."""
    return self.cell.project(
      self.cell.narrow(self.cell_params(), inputs.dtype), inputs
    )

  def step(
    self, carry: Carry, projected: Any, dtype: jax.typing.DTypeLike
  ) -> tuple[Carry, Float[Array, "*B H"]]:
    """One tick after `project`, as decoders need it, computed in `dtype`."""
    params = self.cell.narrow(self.cell_params(), dtype)
    return self.cell.step(params, carry, projected)
