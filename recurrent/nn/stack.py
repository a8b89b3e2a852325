"""`Stack`: a sequence of layers, each with its own carry."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from recurrent import numerics
from recurrent.masking import as_mask, blank
from recurrent.nn import loading
from recurrent.nn.dropout import dropout
from recurrent.nn.layer import Layer
from recurrent.types import (
  Activations,
  Array,
  Carry,
  Float,
  Int,
  Lengths,
  Mask,
  Params,
  PRNGKey,
)


class Stack(nnx.Module):
  """Runs layers one after another, with dropout and optional residuals.

  Args:
    layers: `Recurrent`, `TransformerBlock` or any other `Layer`s, the first one
      nearest to the inputs. Decoding (`step_over`) needs `StepLayer`s.
    dropout: dropout rate between two layers, with a new mask at each time step.
    residual: whether to add each layer's inputs to its outputs wherever their
      widths agree. `Residual` does so for a single layer, and raises an error
      if the widths differ.
    skip: whether every layer but the first takes the inputs of the stack,
      concatenated with the outputs of the layer below. The outputs are then the
      concatenated outputs of all layers.

  Raises:
    ValueError: if there are no layers, or both `residual` and `skip` are asked
      for.

  Reference:
    skip: Graves, "Generating sequences with recurrent neural networks", 2013.
  """

  def __init__(
    self,
    layers: Sequence[Layer],
    *,
    dropout: float = 0.0,
    residual: bool = False,
    skip: bool = False,
  ):
    if residual and skip:
      raise ValueError("residual and skip exclude each other, got both")
    if not layers:
      raise ValueError("layers must have at least one layer, got none")
    self.layers: nnx.List[Any] = nnx.List(layers)
    self.dropout = dropout
    self.residual = residual
    self.skip = skip

  @property
  def in_features(self) -> int:
    """Width D of the inputs."""
    return self.layers[0].in_features

  @property
  def features(self) -> int:
    """Width H of the outputs; with `skip`, the sum over all layers."""
    widths = [layer.features for layer in self.layers]
    return sum(widths) if self.skip else widths[-1]

  @property
  def params(self) -> tuple[Any, ...]:
    """The parameters of each layer.

    Raises:
      ValueError: if a layer has no `params`, such as a `TransformerBlock`.
    """
    for index, layer in enumerate(self.layers):
      if not hasattr(layer, "params"):
        raise ValueError(
          f"layers[{index}] is a {type(layer).__name__}, which has no `params`"
        )
    return tuple(layer.params for layer in self.layers)

  def load(self, params: Sequence[Params | Sequence[Params]]) -> None:
    """Sets the parameters of all layers; see `Recurrent.load`.

    Args:
      params: for each layer, from the first to the last, the argument of its
        own `load`, such as the lists that `converters.from_torch` returns.

    Raises:
      ValueError: as `Recurrent.load` does, and if a layer has no `params`.
    """
    loading.assign(self.params, params)

  def initial_carry(self, batch_size: int) -> tuple[Carry, ...]:
    """The initial carry of each layer, each [batch, ...]."""
    return tuple(layer.initial_carry(batch_size) for layer in self.layers)

  def __call__(
    self,
    carry: tuple[Carry, ...] | None,
    inputs: Activations,
    *,
    mask: Mask | None = None,
    seq_lengths: Lengths | None = None,
    resets: Mask | None = None,
    key: PRNGKey | None = None,
  ) -> tuple[tuple[Carry, ...], Float[Array, "B T H"]]:
    """Runs all layers over a sequence.

    Args:
      carry: one carry per layer; None: the initial carries.
      inputs: [batch, time, features].
      mask: [batch, time], as in `recurrent.unroll`.
      seq_lengths: [batch], in place of a mask, as in `recurrent.unroll`.
      resets: [batch, time], as in `recurrent.unroll`.
      key: draws the dropout masks and the cells' noise; None for evaluation.

    Returns:
      One carry per layer, and the outputs of the last layer, or with `skip`
      those of all layers, concatenated.
    """
    mask = as_mask(mask, seq_lengths, inputs)
    carries = [None] * len(self.layers) if carry is None else carry
    # Residual and skip connections would pass on NaN at masked time steps.
    first = below = blank(mask, inputs)
    new_carries, outputs = [], []
    for index, layer in enumerate(self.layers):
      noise = None
      if key is not None:
        if index:
          below = dropout(jax.random.fold_in(key, index), below, self.dropout)
        noise = jax.random.fold_in(key, len(self.layers) + index)
      new_carry, above = layer(
        carries[index],
        self._seen(index, first, below),
        mask=mask,
        resets=resets,
        key=noise,
      )
      new_carries.append(new_carry)
      below = self._join(below, above)
      outputs.append(below)
    return tuple(new_carries), self._out(outputs)

  def project(self, inputs: Float[Array, "*B D"]) -> Any:
    """Computes what `step` takes, for inputs with any batch axes."""
    return inputs, self.layers[0].project(inputs)

  def step(
    self,
    carry: tuple[Carry, ...],
    projected: Any,
    dtype: jax.typing.DTypeLike,
  ) -> tuple[tuple[Carry, ...], Float[Array, "*B H"]]:
    """Runs one time step on the result of `project`, computed in `dtype`."""
    first, projected = projected
    below = first
    new_carries, outputs = [], []
    for index, layer in enumerate(self.layers):
      if index:
        projected = layer.project(self._seen(index, first, below))
      new_carry, above = layer.step(carry[index], projected, dtype)
      new_carries.append(new_carry)
      below = self._join(below, above)
      outputs.append(below)
    return tuple(new_carries), self._out(outputs)

  def step_over(
    self,
    table: Float[Array, "V D"],
    dtype: jax.typing.DTypeLike | None = None,
  ) -> Callable[
    [tuple[Carry, ...], Int[Array, "B"]],
    tuple[tuple[Carry, ...], Float[Array, "B H"]],
  ]:
    """Returns a step function whose inputs are rows of a table, for decoding.

    The first layer's projection of a row does not depend on the carry, so it is
    computed once for all rows of the table, and each step looks it up.

    Args:
      table: [V, D], all possible inputs, such as an embedding. A row is looked
        up before it is cast, so that its gradient is summed in the table's
        dtype.
      dtype: dtype to compute in; None: the table's.

    Returns:
      `step(carry, row) -> (carry, outputs)`, for indices `row` [batch] and
      outputs [batch, H].
    """
    dtype = table.dtype if dtype is None else jnp.dtype(dtype)
    projected_table = self.layers[0].project(table.astype(dtype))

    def look_up(array, row):
      if not jnp.issubdtype(array.dtype, jnp.floating):
        return array[row]
      # The gradient of a look-up is a sum over all look-ups of one row, so it
      # is computed in float32 at least.
      return numerics.widen(array)[row].astype(array.dtype)

    def step(carry, row):
      projected = jax.tree.map(lambda x: look_up(x, row), projected_table)
      return self.step(carry, (table[row].astype(dtype), projected), dtype)

    return step

  def _seen(self, index, first, below):
    if self.skip and index:
      return jnp.concatenate([first, below], axis=-1)
    return below

  def _out(self, outputs):
    return jnp.concatenate(outputs, axis=-1) if self.skip else outputs[-1]

  def _join(self, inputs, outputs):
    # The inputs of the first layer may be a pytree.
    if self.residual and getattr(inputs, "shape", None) == outputs.shape:
      return outputs + inputs
    return outputs
