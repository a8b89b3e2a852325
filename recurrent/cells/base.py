"""What a cell is: static choices as a value, mathematics as pure functions.

A cell is a frozen dataclass. Parameters and carry are NamedTuples of arrays
that are passed in. The order is always *params, carry, inputs -> carry,
outputs*, so `functools.partial(cell.step, params)` is a `jax.lax.scan` body.

Cells see no time: arrays are [*batch, features] with any batch axes. `unroll`
runs a cell over time. Parameters are float32; `unroll` casts them once to the
dtype of the inputs, in which `project` and `recur` multiply; the carry, and
with it `gate`'s arithmetic, stays float32 (float64 if the parameters are).
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp

from recurrent.types import Array, Carry, Params, PRNGKey


@dataclasses.dataclass(frozen=True)
class Cell(abc.ABC):
  """A recurrent cell: `features` wide, otherwise anything that has a step.

  Args:
    features: width H of the outputs.

  Raises:
    ValueError: if `features` is not a positive integer.
  """

  features: int

  def __post_init__(self):
    if type(self.features) is not int or self.features < 1:
      raise ValueError(
        f"features must be a positive integer, got {self.features!r}"
      )

  @abc.abstractmethod
  def init(self, key: PRNGKey, in_features: int) -> Params:
    """Draws float32 parameters for inputs of width `in_features`."""

  @abc.abstractmethod
  def initial_carry(
    self, params: Params, batch_shape: tuple[int, ...]
  ) -> Carry:
    """The carry before the first tick, [*batch, ...]; it needs no key."""

  @abc.abstractmethod
  def project(self, params: Params, inputs: Array) -> Array:
    """All that needs inputs only; one bulk product for all times.

    Args:
      params: the cell's parameters.
      inputs: [*batch, D]; under `unroll` time is one of the batch axes.

    Returns:
      What `step` consumes, [*batch, ...].
    """

  @abc.abstractmethod
  def step(
    self, params: Params, carry: Carry, projected: Array
  ) -> tuple[Carry, Array]:
    """One tick.

    Args:
      params: the cell's parameters.
      carry: [*batch, ...], from the tick before.
      projected: [*batch, ...], from `project`.

    Returns:
      The next carry, and outputs [*batch, H].
    """


@dataclasses.dataclass(frozen=True)
class GatedCell(Cell):
  """A cell whose step splits in a matrix product and cheap arithmetic.

  With the halves apart `unroll` can keep weight gradients out of the reverse
  loop (`method="fused"`), and kernels can hold the weights on chip.
  """

  @abc.abstractmethod
  def recur(self, params: Params, carry: Carry) -> Array:
    """The product with the previous hidden state: `mixed`, [*batch, ...]."""

  @abc.abstractmethod
  def gate(
    self, params: Params, carry: Carry, projected: Array, mixed: Array
  ) -> tuple[Carry, Array]:
    """The rest of the tick: elementwise or per row, no weight matrix."""

  def step(self, params, carry, projected):
    """One tick: `gate` after `recur`."""
    return self.gate(params, carry, projected, self.recur(params, carry))


def cast(params: Params, dtype: jnp.dtype) -> Params:
  """Parameters in the dtype to compute in; done once, outside every loop."""
  return jax.tree.map(lambda x: x.astype(dtype), params)


def zeros(params: Params, batch_shape: tuple[int, ...], features: int) -> Array:
  """Zeros [*batch, features]: float64 for float64 params, else float32."""
  wide = any(x.dtype == jnp.float64 for x in jax.tree.leaves(params))
  dtype = jnp.float64 if wide else jnp.float32
  return jnp.zeros((*batch_shape, features), dtype)


def affine(inputs: Array, kernel: Array, bias: Array) -> Array:
  """`inputs @ kernel + bias`, the bias broadcast over the batch in words."""
  return add_bias(product(inputs, kernel), bias)


def product(inputs: Array, kernel: Array) -> Array:
  """`inputs @ kernel`, summed in float32 at least, in both passes.

  A weight gradient is a sum over all ticks. Not every backend sums a product
  of bfloat16 in float32 unless told so; the pullback inherits what is said
  here.
  """
  wide = _wide(inputs.dtype)
  out = jnp.matmul(inputs, kernel, preferred_element_type=wide)
  return out.astype(inputs.dtype)


def add_bias(array: Array, bias: Array) -> Array:
  """`array + bias` for array [*batch, H] and bias [H]."""
  # In float32 at least, since the bias's gradient is a sum over all ticks.
  wide = _wide(array.dtype)
  total = array.astype(wide) + jnp.broadcast_to(bias.astype(wide), array.shape)
  return total.astype(array.dtype)


def _wide(dtype):
  return jnp.float32 if dtype.itemsize < 4 else dtype


def hidden_product(hidden: Array, recurrent: Array) -> Array:
  """`hidden @ recurrent` in the dtype of the weights (the compute dtype)."""
  return product(hidden.astype(recurrent.dtype), recurrent)


def split_gates(array: Array, gates: int) -> list[Array]:
  """Cuts [*batch, G*H] into G arrays [*batch, H]."""
  return jnp.split(array, gates, axis=-1)


def as_carry(array: Array, carry: Carry) -> Array:
  """Casts [*batch, ...] to the dtype of the carry for `gate`'s arithmetic."""
  return array.astype(jax.tree.leaves(carry)[0].dtype)
