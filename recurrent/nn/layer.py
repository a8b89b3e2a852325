"""`Layer` and `StepLayer`: the interfaces of the layers of a `Stack`."""

from typing import Any, Protocol

import jax

from recurrent.types import (
  Activations,
  Array,
  Carry,
  Float,
  Mask,
  PRNGKey,
)


class Layer(Protocol):
  """Runs over a whole sequence, with a carry from window to window.

  Attributes:
    in_features: width D of the inputs.
    features: width H of the outputs.
  """

  @property
  def in_features(self) -> int:
    """Width D of the inputs."""
    ...

  @property
  def features(self) -> int:
    """Width H of the outputs."""
    ...

  def initial_carry(self, batch_size: int) -> Carry:
    """The carry before the first time step, [batch, ...]; may be empty."""
    ...

  def __call__(
    self,
    carry: Carry | None,
    inputs: Activations,
    *,
    mask: Mask | None = None,
    resets: Mask | None = None,
    key: PRNGKey | None = None,
  ) -> tuple[Carry, Float[Array, "B T H"]]:
    """Runs the layer over a sequence.

    Args:
      carry: from the window before; None: the initial carry.
      inputs: [batch, time, D].
      mask: [batch, time], True where a time step is real.
      resets: [batch, time], True where a sequence begins.
      key: PRNG key of dropout and other noise; None for evaluation.

    Returns:
      The carry after the last time step, and the outputs [batch, time, H],
      which are zero where the mask is False.
    """
    ...


class StepLayer(Layer, Protocol):
  """A layer that can also run one time step at a time, for decoding."""

  def project(self, inputs: Float[Array, "*B D"]) -> Any:
    """Computes what `step` takes, for inputs with any batch axes."""
    ...

  def step(
    self, carry: Carry, projected: Any, dtype: jax.typing.DTypeLike
  ) -> tuple[Carry, Float[Array, "*B H"]]:
    """Runs one time step on the result of `project`, computed in `dtype`."""
    ...
