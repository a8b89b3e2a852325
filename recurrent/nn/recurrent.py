"""`Recurrent`: a Flax NNX module that runs a cell over a sequence."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from recurrent.cells.base import Cell
from recurrent.nn import loading
from recurrent.types import (
  Activations,
  Array,
  Carry,
  Float,
  Lengths,
  Mask,
  Params,
  PRNGKey,
  Remat,
)
from recurrent.unroll import compute_dtype, unroll


class Recurrent(nnx.Module):
  """Recurrent layer: a cell with its parameters, run over a sequence.

  The attribute `params` is the cell's NamedTuple with an `nnx.Param` in place
  of each array. The attribute `start` is the learnt initial carry, or None.
  Assigning plain arrays to either sets the values of the existing variables,
  so that an optimiser that was created for them goes on to train them.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from recurrent import cells, nn
    >>> layer = nn.Recurrent(cells.LSTM(8), 3, rngs=nnx.Rngs(0))
    >>> inputs = jnp.ones((2, 5, 3))  # [batch, time, features]
    >>> carry, outputs = layer(None, inputs, seq_lengths=jnp.array([5, 2]))
    >>> outputs.shape, carry.hidden.shape
    ((2, 5, 8), (2, 8))
    >>> carry, outputs = layer(carry, inputs)  # goes on where it ended

  Args:
    cell: any cell.
    in_features: width D of the inputs.
    reverse: whether to run from the last time step to the first.
    method: see `recurrent.unroll`.
    remat: see `recurrent.unroll`.
    learn_carry: whether the initial carry is a parameter. It is initialised to
      the cell's own initial carry.
    rngs: source of the keys that draw the parameters.
  """

  def __init__(
    self,
    cell: Cell,
    in_features: int,
    *,
    reverse: bool = False,
    method: str = "auto",
    remat: Remat = None,
    learn_carry: bool = False,
    rngs: nnx.Rngs,
  ):
    self.cell = cell
    self.in_features = in_features
    self.reverse = reverse
    self.method = method
    self.remat = remat
    params = cell.init(rngs.params(), in_features)
    # `optim.decayed` reads this metadata to exempt a parameter from decay.
    undecayed = lambda array: nnx.Param(array, decayed=False)
    self.params = nnx.data(
      jax.tree.map_with_path(
        lambda path, array: (
          undecayed(array)
          if any(getattr(k, "name", None) in cell.undecayed for k in path)
          else nnx.Param(array)
        ),
        params,
      )
    )
    self.start = None
    if learn_carry:
      start = cell.initial_carry(params, ())
      self.start = nnx.data(jax.tree.map(undecayed, start))

  @property
  def features(self) -> int:
    """Width H of the outputs."""
    return self.cell.features

  def __setattr__(self, name: str, value: Any) -> None:
    if name in ("params", "start"):
      field = isinstance(value, dataclasses.Field)  # From `nnx.data`.
      plain = value.metadata["nnx_value"] if field else value
      if not loading.is_assigned(plain):
        return loading.assign(getattr(self, name), plain, name)
    return super().__setattr__(name, value)

  def load(self, params: Params) -> None:
    """Sets the parameters to copies of given arrays, such as converted weights.

    Args:
      params: the cell's NamedTuple of arrays, with the shapes and dtypes of the
        present parameters.

    Raises:
      ValueError: if a leaf is missing, left over, or of another type, shape or
        dtype. No parameter is changed then.
    """
    loading.assign(self.params, params)

  def cell_params(self) -> Params:
    """The parameters as the cell's NamedTuple of plain arrays."""
    return _plain(self.params)

  def initial_carry(self, batch_size: int) -> Carry:
    """The carry before the first time step, [batch, ...]."""
    carry = self.cell.initial_carry(self.cell_params(), (batch_size,))
    if self.start is None:
      return carry
    return jax.tree.map(
      lambda start, like: jnp.broadcast_to(start, like.shape),
      _plain(self.start),
      carry,
    )

  def __call__(
    self,
    carry: Carry | None,
    inputs: Activations,
    *,
    mask: Mask | None = None,
    seq_lengths: Lengths | None = None,
    resets: Mask | None = None,
    key: PRNGKey | None = None,
  ) -> tuple[Carry, Float[Array, "B T H"]]:
    """Runs the cell over a sequence, as `recurrent.unroll` does.

    Args:
      carry: the cell's carry, [batch, ...]; None: the initial carry.
      inputs: [batch, time, D].
      mask: [batch, time], True where a time step is real.
      seq_lengths: [batch], number of real time steps in each row, instead of a
        mask; see `recurrent.unroll`.
      resets: [batch, time], True where a sequence begins.
      key: PRNG key for the noise of the cell, if it has any (see
        `recurrent.cells.noise`); it is drawn once for the whole sequence. None
        for evaluation, without noise.

    Returns:
      The carry after the last time step, and the outputs [batch, time, H].
    """
    params, inputs = self.cell.perturb(self.cell_params(), inputs, key)
    batch = jax.tree.leaves(inputs)[0].shape[0]
    return unroll(
      self.cell,
      params,
      carry,
      inputs,
      mask=mask,
      seq_lengths=seq_lengths,
      resets=resets,
      initial=None if self.start is None else self.initial_carry(batch),
      reverse=self.reverse,
      method=self.method,
      remat=self.remat,
    )

  def project(self, inputs: Any) -> Any:
    """Computes what `step` takes, for inputs with any batch axes."""
    params = self.cell.narrow(self.cell_params(), compute_dtype(inputs))
    return self.cell.project(params, inputs)

  def step(
    self, carry: Carry, projected: Any, dtype: jax.typing.DTypeLike
  ) -> tuple[Carry, Float[Array, "*B H"]]:
    """Runs one time step on the result of `project`, computed in `dtype`."""
    params = self.cell.narrow(self.cell_params(), dtype)
    return self.cell.step(params, carry, projected)


def _plain(tree):
  """The arrays in a tree of variables."""
  return jax.tree.map(
    lambda param: param[...],
    tree,
    is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
  )
