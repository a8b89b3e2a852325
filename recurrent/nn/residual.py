"""`Residual`: adds a layer's inputs to its outputs."""

from typing import Any

import jax
from flax import nnx

from recurrent.masking import blank
from recurrent.nn.layer import Layer
from recurrent.types import Activations, Array, Carry, Float, Mask, PRNGKey


class Residual(nnx.Module):
  """Residual connection around a layer: outputs = inputs + layer(inputs).

  Args:
    layer: a layer whose outputs are as wide as its inputs.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from recurrent import cells, nn
    >>> layer = nn.Recurrent(cells.GRU(4), 4, rngs=nnx.Rngs(0))
    >>> carry, outputs = nn.Residual(layer)(None, jnp.ones((2, 5, 4)))
    >>> outputs.shape
    (2, 5, 4)

  Reference:
    He et al., "Deep residual learning for image recognition", 2016; between
    LSTMs: Wu et al., "Google's neural machine translation system", 2016.
  """

  def __init__(self, layer: Layer):
    self.layer: Any = layer

  @property
  def in_features(self) -> int:
    """Width D of the inputs."""
    return self.layer.in_features

  @property
  def features(self) -> int:
    """Width of the outputs, that of the inputs."""
    return self.layer.features

  @property
  def params(self) -> Any:
    """The layer's parameters."""
    return self.layer.params

  def load(self, params: Any) -> None:
    """Sets the layer's parameters; see `Recurrent.load`."""
    self.layer.load(params)

  def initial_carry(self, batch_size: int) -> Carry:
    """The layer's initial carry, [batch, ...]."""
    return self.layer.initial_carry(batch_size)

  def __call__(
    self,
    carry: Carry | None,
    inputs: Activations,
    *,
    mask: Mask | None = None,
    resets: Mask | None = None,
    key: PRNGKey | None = None,
  ) -> tuple[Carry, Activations]:
    """Runs the layer and adds its inputs to its outputs.

    Arguments and results are those of the layer. The outputs are zero at masked
    time steps.

    Raises:
      ValueError: if the layer's outputs are not as wide as its inputs.
    """
    carry, outputs = self.layer(
      carry, inputs, mask=mask, resets=resets, key=key
    )
    return carry, _add(blank(mask, inputs), outputs)

  def project(self, inputs: Float[Array, "*B D"]) -> Any:
    """Computes what `step` takes, for inputs with any batch axes."""
    return inputs, self.layer.project(inputs)

  def step(
    self, carry: Carry, projected: Any, dtype: jax.typing.DTypeLike
  ) -> tuple[Carry, Float[Array, "*B D"]]:
    """Runs one time step on the result of `project`, computed in `dtype`."""
    inputs, projected = projected
    carry, outputs = self.layer.step(carry, projected, dtype)
    return carry, _add(inputs, outputs)


def _add(inputs, outputs):
  if inputs.shape != outputs.shape:
    raise ValueError(
      f"Residual needs outputs as wide as inputs, got {outputs.shape[-1]} for"
      f" {inputs.shape[-1]}"
    )
  return inputs + outputs
