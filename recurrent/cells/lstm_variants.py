"""The LSTM with peepholes, coupled gates, a projection, layer normalisation."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from recurrent import initializers, numerics
from recurrent.cells import base
from recurrent.cells.lstm import LSTMCarry
from recurrent.cells.structures import Dense, Structure
from recurrent.types import Array, Float


class LayerNormParams(NamedTuple):
  """Scales of the norms of x W, h R and c', and the offset of the last."""

  kernel: Float[Array, "G*M"]
  recurrent: Float[Array, "G*M"]
  cell: Float[Array, "M"]
  cell_bias: Float[Array, "M"]


class LSTMVariantParams(NamedTuple):
  """Parameters of `LSTMVariant`; those of an option that is off are None.

  The columns of the gates are in the order i, f, g, o, without f if coupled.
  """

  kernel: Float[Array, "D G*M"]
  recurrent: Any  # [H, G*M] if dense; see `Structure`
  bias: Float[Array, "G*M"]
  peepholes: Float[Array, "P M"] | None = None  # of i, f, o, or of i, o
  projection: Float[Array, "M H"] | None = None
  norm: LayerNormParams | None = None


@dataclasses.dataclass(frozen=True)
class LSTMVariant(base.GatedCell):
  """The LSTM, c' = f c + i g, h' = (o tanh(c')) P, with options together.

  Args:
    features: width H of the hidden state and the outputs.
    forget_bias: initial value of the forget gate's bias.
    peepholes: whether i and f depend on c, and o on c' (Gers & Schmidhuber,
      2000).
    coupled: whether f = 1 - i (Greff et al., 2017).
    memory: width M of the cell, which P projects to H; 0: M = H, without P (Sak
      et al., 2014). P is applied in `gate`, so its gradient is summed inside
      the reverse loop.
    layer_norm: whether to normalise x W and h R, each gate separately, and c'
      before its tanh (Ba et al., 2016).
    structure: structure of the recurrent weights, dense if there is a
      projection.

  Raises:
    ValueError: if `memory` is negative, or given with a structure that is not
      dense.

  Reference:
    Greff et al., "LSTM: a search space odyssey", 2017, and those above.
  """

  forget_bias: float = 1.0
  peepholes: bool = False
  coupled: bool = False
  memory: int = 0
  layer_norm: bool = False
  structure: Structure = Dense()

  def __post_init__(self):
    super().__post_init__()
    self.structure.check(self.features)
    if self.memory < 0:
      raise ValueError(f"memory must be 0 or more, got {self.memory}")
    if self.memory and self.structure != Dense():
      raise ValueError(f"memory needs a dense structure, got {self.structure}")

  @property
  def _gates(self):
    return 3 if self.coupled else 4

  @property
  def _width(self):
    return self.memory or self.features

  def init(self, key, in_features):
    """Draws `LSTMVariantParams`: LeCun kernel, orthogonal recurrent blocks."""
    keys = jax.random.split(key, 4)
    h, m, g = self.features, self._width, self._gates
    bias = jnp.zeros((g * m,), jnp.float32)
    if not self.coupled:
      bias = bias.at[m : 2 * m].set(self.forget_bias)
    if self.memory:
      orthogonal = jax.nn.initializers.orthogonal()
      recurrent = jnp.concatenate(
        [
          orthogonal(k, (h, m), jnp.float32)
          for k in jax.random.split(keys[1], g)
        ],
        axis=-1,
      )
    else:
      recurrent = self.structure.init(keys[1], h, g)
    ones = lambda n: jnp.ones((n,), jnp.float32)
    return LSTMVariantParams(
      kernel=initializers.lecun_uniform(keys[0], (in_features, g * m)),
      recurrent=recurrent,
      bias=bias,
      peepholes=jax.nn.initializers.normal(0.1)(
        keys[2], (g - 1, m), jnp.float32
      )
      if self.peepholes
      else None,
      projection=initializers.lecun_uniform(keys[3], (m, h))
      if self.memory
      else None,
      norm=LayerNormParams(ones(g * m), ones(g * m), ones(m), 0 * ones(m))
      if self.layer_norm
      else None,
    )

  def initial_carry(self, params, batch_shape):
    """Zeros."""
    return LSTMCarry(
      hidden=numerics.zeros(params, batch_shape, self.features),
      cell=numerics.zeros(params, batch_shape, self._width),
    )

  def project(self, params, inputs):
    """X W, normalised if asked, + b."""
    projected = numerics.product(inputs, params.kernel)
    if self.layer_norm:
      projected = numerics.layer_norm(
        projected, params.norm.kernel, self._gates
      )
    return numerics.add_bias(projected, params.bias)

  def recur(self, params, carry):
    """H R."""
    return self.structure.product(carry.hidden, params.recurrent)

  def gate(self, params, carry, projected, mixed, candidate=jnp.tanh):
    """The gates, the new cell, the projection."""
    if self.layer_norm:
      mixed = numerics.layer_norm(mixed, params.norm.recurrent, self._gates)
    sums = numerics.split_gates(
      numerics.as_carry(projected + mixed, carry), self._gates
    )
    i, f, g, o = (sums[0], None, *sums[1:]) if self.coupled else sums
    see = lambda index, cell: (
      cell * numerics.like(params.peepholes[index], cell)
      if self.peepholes
      else jnp.zeros_like(cell)
    )
    i = i + see(0, carry.cell)
    keep = -i if self.coupled else f + see(1, carry.cell)
    cell = jax.nn.sigmoid(keep) * carry.cell + jax.nn.sigmoid(i) * candidate(g)
    o = jax.nn.sigmoid(o + see(-1, cell))
    seen = cell
    if self.layer_norm:
      norm = params.norm
      seen = numerics.layer_norm(cell, norm.cell) + numerics.like(
        norm.cell_bias, cell
      )
    hidden = o * jnp.tanh(seen)
    if self.memory:
      hidden = numerics.hidden_product(hidden, params.projection)
      hidden = numerics.as_carry(hidden, carry)
    return LSTMCarry(hidden, cell), hidden.astype(projected.dtype)
