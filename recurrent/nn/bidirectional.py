"""`Bidirectional`: one cell run forward in time and one run backward."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from recurrent.cells.base import Cell
from recurrent.checks import check_flags
from recurrent.masking import as_mask
from recurrent.nn import loading
from recurrent.nn.recurrent import Recurrent
from recurrent.types import (
  Activations,
  Array,
  Bool,
  Carry,
  Float,
  Lengths,
  Mask,
  Params,
  PRNGKey,
  Remat,
)

MERGES: dict[str, Callable[[Array, Array], Array]] = {
  "concat": lambda a, b: jnp.concatenate([a, b], axis=-1),
  "sum": lambda a, b: a + b,
  "average": lambda a, b: (a + b) / 2,
  "product": lambda a, b: a * b,
}


class Bidirectional(nnx.Module):
  """Runs two recurrent layers over one sequence, in opposite directions.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from recurrent import cells, nn
    >>> layer = nn.Bidirectional(cells.GRU(8), 3, rngs=nnx.Rngs(0))
    >>> (forward, backward), outputs = layer(None, jnp.ones((2, 5, 3)))
    >>> outputs.shape, forward.hidden.shape
    ((2, 5, 16), (2, 8))

  Args:
    cell: any cell; each direction draws its own parameters.
    in_features: width D of the inputs.
    merge: how the outputs of both directions are combined: "concat" (2 H
      features), "sum", "average" or "product" (H features).
    method: see `recurrent.unroll`.
    remat: see `recurrent.unroll`.
    learn_carry: see `Recurrent`.
    rngs: source of the keys that draw the parameters.

  Raises:
    ValueError: on an unknown merge.

  Reference:
    Schuster & Paliwal, "Bidirectional recurrent neural networks", 1997.
  """

  def __init__(
    self,
    cell: Cell,
    in_features: int,
    *,
    merge: str = "concat",
    method: str = "auto",
    remat: Remat = None,
    learn_carry: bool = False,
    rngs: nnx.Rngs,
  ):
    if merge not in MERGES:
      raise ValueError(f"merge must be one of {[*MERGES]}, got {merge!r}")
    layer = lambda reverse: Recurrent(
      cell,
      in_features,
      reverse=reverse,
      method=method,
      remat=remat,
      learn_carry=learn_carry,
      rngs=rngs,
    )
    self.merge = merge
    self.forward = layer(False)
    self.backward = layer(True)

  @property
  def in_features(self) -> int:
    """Width D of the inputs."""
    return self.forward.in_features

  @property
  def features(self) -> int:
    """Width of the outputs: 2 H if they are concatenated, else H."""
    return self.forward.features * (2 if self.merge == "concat" else 1)

  @property
  def params(self) -> tuple[Params, Params]:
    """The parameters of the forward and of the backward layer."""
    return self.forward.params, self.backward.params

  def load(self, params: Sequence[Params]) -> None:
    """Sets the parameters of both directions; see `Recurrent.load`.

    Args:
      params: the parameters of the forward and of the backward layer, such as
        one entry of the list that `converters.from_torch` returns.

    Raises:
      ValueError: as `Recurrent.load` does.
    """
    loading.assign(self.params, params)

  def initial_carry(self, batch_size: int) -> tuple[Carry, Carry]:
    """The initial carries of the forward and of the backward layer."""
    return (
      self.forward.initial_carry(batch_size),
      self.backward.initial_carry(batch_size),
    )

  def __call__(
    self,
    carry: tuple[Carry, Carry] | None,
    inputs: Activations,
    *,
    mask: Mask | None = None,
    seq_lengths: Lengths | None = None,
    resets: Mask | None = None,
    key: PRNGKey | None = None,
  ) -> tuple[tuple[Carry, Carry], Float[Array, "B T H"]]:
    """Runs both directions.

    Args:
      carry: the carries of the forward and of the backward layer; None: the
        initial carries.
      inputs: [batch, time, D].
      mask: [batch, time], True where a time step is real.
      seq_lengths: [batch], number of real time steps in each row, instead of a
        mask; see `recurrent.unroll`.
      resets: [batch, time], True where a sequence begins. The backward layer is
        reset at the last real time step of each sequence.
      key: draws the noise of the cells; None for evaluation.

    Returns:
      The carries, of the forward layer after the last time step and of the
      backward layer after the first, and the merged outputs [batch, time, H]
      (2 H features with "concat"), which are zero where the mask is False.
    """
    shape = jax.tree.leaves(inputs)[0].shape[:2]
    mask = as_mask(mask, seq_lengths, inputs)
    check_flags("mask", mask, shape)
    check_flags("resets", resets, shape)
    past, future = (None, None) if carry is None else carry
    ends = None if resets is None else sequence_ends(resets, mask)
    keys = (None, None) if key is None else jax.random.split(key)
    past, ahead = self.forward(
      past, inputs, mask=mask, resets=resets, key=keys[0]
    )
    future, behind = self.backward(
      future, inputs, mask=mask, resets=ends, key=keys[1]
    )
    return (past, future), MERGES[self.merge](ahead, behind)


def sequence_ends(
  begins: Bool[Array, "B T"], mask: Mask | None = None
) -> Bool[Array, "B T"]:
  """Finds the last time steps of sequences that are packed into rows.

  Args:
    begins: [batch, time], True at the first time step of a sequence. It is
      ignored at masked time steps, as in `recurrent.unroll`.
    mask: [batch, time], True where a time step is real.

  Returns:
    [batch, time], True at the last real time step of each sequence that another
    sequence follows in the same row.
  """
  mask = jnp.ones_like(begins) if mask is None else mask
  number = jnp.cumsum(begins & mask, axis=1, dtype=jnp.int32)
  # Sequence numbers never decrease along a row, so the number of the next real
  # time step is the minimum over all later real time steps.
  none = jnp.int32(begins.shape[1] + 1)
  real = jnp.where(mask, number, none)
  ahead = jax.lax.cummin(real, axis=1, reverse=True)[:, 1:]
  ahead = jnp.pad(ahead, ((0, 0), (0, 1)), constant_values=none)
  return mask & (ahead != number) & (ahead != none)
