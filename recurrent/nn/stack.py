"""`Stack`: recurrent layers one upon another."""

from collections.abc import Callable, Sequence

import jax
from flax import nnx

from recurrent.nn.dropout import dropout
from recurrent.nn.recurrent import Recurrent
from recurrent.types import Activations, Array, Carry, Float, Int, Mask, PRNGKey


class Stack(nnx.Module):
  """Layers in order, with dropout between them and optional residuals.

  Args:
    layers: `Recurrent` modules, from the inputs up.
    dropout: rate between two layers, a fresh mask at each tick.
    residual: adds each layer's inputs to its outputs, where widths agree.
  """

  def __init__(
    self,
    layers: Sequence[Recurrent],
    *,
    dropout: float = 0.0,
    residual: bool = False,
  ):
    self.layers = nnx.List(layers)
    self.dropout = dropout
    self.residual = residual

  def initial_carry(self, batch_size: int) -> tuple[Carry, ...]:
    """One carry a layer, each [batch, ...]."""
    return tuple(layer.initial_carry(batch_size) for layer in self.layers)

  def __call__(
    self,
    carry: tuple[Carry, ...] | None,
    inputs: Activations,
    *,
    mask: Mask | None = None,
    resets: Mask | None = None,
    key: PRNGKey | None = None,
  ) -> tuple[tuple[Carry, ...], Float[Array, "B T H"]]:
    """Runs all layers over a sequence.

    Args:
      carry: one carry a layer, or None for the initial ones.
      inputs: [batch, time, features].
      mask: [batch, time], as in `recurrent.unroll`.
      resets: [batch, time], as in `recurrent.unroll`.
      key: draws the dropout masks; None for evaluation.

    Returns:
      One carry a layer, and the outputs of the last layer.
    """
    carries = [None] * len(self.layers) if carry is None else carry
    new_carries = []
    for index, layer in enumerate(self.layers):
      if index and key is not None:
        inputs = dropout(jax.random.fold_in(key, index), inputs, self.dropout)
      new_carry, outputs = layer(
        carries[index], inputs, mask=mask, resets=resets
      )
      new_carries.append(new_carry)
      inputs = self._join(inputs, outputs)
    return tuple(new_carries), inputs

  def step_over(
    self, table: Float[Array, "V D"]
  ) -> Callable[
    [tuple[Carry, ...], Int[Array, "B"]],
    tuple[tuple[Carry, ...], Float[Array, "B H"]],
  ]:
    """A step whose inputs are rows of a table, as in decoding tokens.

    What the first layer makes of a row does not depend on the carry, so it is
    computed for the whole table once and then looked up.

    Args:
      table: the inputs there can be, such as an embedding.

    Returns:
      `step(carry, row) -> (carry, outputs)`.
    """
    projected_table = self.layers[0].project(table)

    def step(carry, row):
      inputs = table[row]
      new_carries = []
      for index, layer in enumerate(self.layers):
        projected = (
          layer.project(inputs)
          if index
          else jax.tree.map(lambda x: x[row], projected_table)
        )
        new_carry, outputs = layer.step(carry[index], projected, table.dtype)
        new_carries.append(new_carry)
        inputs = self._join(inputs, outputs)
      return tuple(new_carries), inputs

    return step

  def _join(self, inputs, outputs):
    if self.residual and inputs.shape == outputs.shape:
      return outputs + inputs
    return outputs
