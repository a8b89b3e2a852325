"""Structures of the recurrent weights: dense, heads, diagonal, low-rank.

A structure is an option of a cell. It draws the recurrent weights of all gates,
and multiplies by them. Fewer weights may fit into on-chip memory, and diagonal
weights have diagonal Jacobians, which Newton's method can solve.
"""

import abc
import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from recurrent import initializers, numerics
from recurrent.cells import base
from recurrent.types import Array, Float, PRNGKey


@dataclasses.dataclass(frozen=True)
class Structure(abc.ABC):
  """A linear map from H hidden units to the G * H inputs of G gates."""

  def check(self, features: int) -> None:  # noqa: B027, most take any
    """Raises ValueError if a cell of width `features` cannot use it."""

  @abc.abstractmethod
  def init(self, key: PRNGKey, features: int, gates: int) -> Any:
    """Draws the weights for a number of gates."""

  @abc.abstractmethod
  def product(self, hidden: Array, weights: Any) -> Array:
    """Hidden [*batch, H] times the weights: [*batch, G*H], gate by gate."""

  @abc.abstractmethod
  def take(self, weights: Any, gates: slice) -> Any:
    """Selects the weights of a slice of the gates."""


@dataclasses.dataclass(frozen=True)
class Dense(Structure):
  """Every unit sees every unit: weights [H, G*H]."""

  def init(self, key, features, gates):
    """One orthogonal matrix a gate."""
    return initializers.orthogonal_blocks(key, features, gates)

  def product(self, hidden, weights):
    """One matrix product."""
    return numerics.hidden_product(hidden, weights)

  def take(self, weights, gates):
    """Columns."""
    h = len(weights)
    return weights[:, gates.start * h : gates.stop * h]


@dataclasses.dataclass(frozen=True)
class Heads(Structure):
  """Units see those of their own head: weights [N, H/N, G, H/N].

  Args:
    heads: number of heads N, which must divide H.

  Reference:
    Beck et al., "xLSTM", 2024 (sLSTM); Poeppel et al., "FlashRNN", 2024.
  """

  heads: int

  def check(self, features):
    """Raises ValueError unless the heads divide the features."""
    if self.heads < 1 or features % self.heads:
      raise ValueError(
        f"heads must divide features={features}, got {self.heads}"
      )

  def init(self, key, features, gates):
    """One orthogonal matrix a head and gate."""
    width = features // self.heads
    return jnp.stack(
      [
        initializers.orthogonal_blocks(k, width, gates).reshape(
          width, gates, width
        )
        for k in jax.random.split(key, self.heads)
      ]
    )

  def product(self, hidden, weights):
    """A small product a head."""
    batch = hidden.shape[:-1]
    hidden = hidden.astype(weights.dtype).reshape(*batch, self.heads, -1)
    mixed = numerics.einsum("...nh,nhgk->...gnk", hidden, weights)
    return mixed.reshape(*batch, -1)

  def take(self, weights, gates):
    """Gates of every head."""
    return weights[:, :, gates]


@dataclasses.dataclass(frozen=True)
class Diagonal(Structure):
  """Units see themselves only: weights [G, H].

  Args:
    low: least weight that `init` draws.
    high: greatest weight that `init` draws.

  Reference:
    Li et al., "Independently recurrent neural network (IndRNN)", 2018.
  """

  low: float = -1.0
  high: float = 1.0

  @classmethod
  def over(cls, time_steps: int, fading: float = 0.5, growth: float = 2.0):
    """Chooses bounds so that a ReLU keeps a signal over `time_steps`.

    Args:
      time_steps: length of the sequences.
      fading: factor of a signal after all time steps, at the least weight.
      growth: the same at the greatest weight; 2 in the paper.

    Returns:
      A `Diagonal` with the bounds fading**(1 / time_steps) and growth**(1 /
      time_steps).
    """
    return cls(fading ** (1 / time_steps), growth ** (1 / time_steps))

  def init(self, key, features, gates):
    """Uniform between the bounds."""
    return initializers.uniform(key, (gates, features), self.low, self.high)

  def product(self, hidden, weights):
    """Elementwise, once a gate."""
    shape = (*hidden.shape[:-1], *weights.shape)
    hidden = hidden.astype(weights.dtype)[..., None, :]
    mixed = numerics.spread(hidden, shape) * numerics.spread(weights, shape)
    return mixed.reshape(*shape[:-2], -1)

  def take(self, weights, gates):
    """Rows."""
    return weights[gates]


class LowRankWeights(NamedTuple):
  """Weights of `LowRank`."""

  down: Float[Array, "H R"]
  up: Float[Array, "R G*H"]


@dataclasses.dataclass(frozen=True)
class LowRank(Structure):
  """Units see R sums of all units: weights [H, R] and [R, G*H].

  Args:
    rank: number of sums R.

  Reference:
    Kuchaiev & Ginsburg, "Factorization tricks for LSTM networks", 2017.
  """

  rank: int

  def check(self, features):
    """Raises ValueError unless 1 <= rank <= features."""
    if not 1 <= self.rank <= features:
      raise ValueError(f"rank must be in [1, {features}], got {self.rank}")

  def init(self, key, features, gates):
    """An orthogonal projection down, and up at LeCun's scale."""
    down, up = jax.random.split(key)
    return LowRankWeights(
      jax.nn.initializers.orthogonal()(
        down, (features, self.rank), jnp.float32
      ),
      initializers.lecun_uniform(up, (self.rank, gates * features)),
    )

  def product(self, hidden, weights):
    """Two thin products."""
    down, up = weights
    return numerics.product(numerics.hidden_product(hidden, down), up)

  def take(self, weights, gates):
    """Columns of the second matrix."""
    h = len(weights.down)
    return weights._replace(up=weights.up[:, gates.start * h : gates.stop * h])


STRUCTURES: dict[str, Callable[..., Structure]] = {
  "dense": Dense,
  "heads": Heads,
  "diagonal": lambda: Diagonal(),
  "low_rank": LowRank,
}


def parse(text: str) -> Structure:
  """Makes a structure from text: a name in `STRUCTURES`, or `name:number`.

  Args:
    text: `dense`, `heads:N`, `diagonal` or `low_rank:R`, with the number of
      heads N or the rank R.

  Raises:
    ValueError: if the text is none of these.
  """
  name, colon, number = text.partition(":")
  with contextlib.suppress(KeyError, TypeError, ValueError):
    return STRUCTURES[name](*([int(number)] if colon else []))
  raise ValueError(
    "structure must be dense, heads:N, diagonal or low_rank:R, such as"
    f" heads:4, got {text!r}"
  )


class Structured(base.Cell):
  """Base class of cells that have a field `structure`."""

  structure: Structure

  def __post_init__(self):
    super().__post_init__()
    self.structure.check(self.features)

  @property
  def channelwise(self) -> bool:
    """Whether the structure is diagonal."""
    return isinstance(self.structure, Diagonal)


def parameter_budget(
  cell: base.Cell | Callable[[int], base.Cell],
  in_features: int,
  params: int,
  *,
  outputs: int = 0,
) -> int:
  """Returns the greatest width H at which a cell fits a parameter budget.

  Args:
    cell: a cell, whose `features` are varied, or a function from a width to a
      cell, such as an entry of `CELLS`.
    in_features: width of the inputs.
    params: the greatest number of parameters.
    outputs: width of an output layer that is counted as well, a kernel [H,
      outputs] and a bias; 0 for none.

  Returns:
    The greatest width with at most `params` parameters. Widths that the cell
    does not accept, such as those that its heads do not divide, are skipped.

  Raises:
    ValueError: if the least width that the cell accepts has more parameters.
  """
  build = (
    (lambda features: dataclasses.replace(cell, features=features))
    if isinstance(cell, base.Cell)
    else cell
  )

  def size(features):
    try:
      wide = build(features)
    except ValueError:
      return None
    shapes = base.param_shapes(wide, in_features)
    inside = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    return inside + outputs * (features + 1)

  def allowed(features):
    found = size(features)
    return found is not None and found <= params

  # Valid widths are multiples of a step, such as the number of heads, and the
  # number of parameters grows with the width.
  step = next((n for n in range(1, 4097) if size(n) is not None), None)
  if step is None or not allowed(step):
    raise ValueError(f"{cell} has no width with at most {params} parameters")
  low, high = 1, 2
  while allowed(high * step):
    low, high = high, 2 * high
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if allowed(middle * step) else (low, middle)
  return low * step
