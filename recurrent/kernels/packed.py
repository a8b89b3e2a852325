"""A matrix packed for products with few rows, in float32 or narrower.

A decoder multiplies one row, or some, by the same matrices at each token: what
it costs is to read them. In bfloat16 they are half as many bytes, in int8 a
quarter. Inputs and sums stay float32: only weights are narrow.

On a CPU the product is C++ (`cpu/products.cc`), which makes the entries
float32 in registers. Elsewhere, or without a compiler, XLA is told to widen the
matrix before its product: the same numbers, to rounding, but on a CPU no faster
than float32, since XLA widens it once, outside the loop over tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp

from recurrent.kernels.cpu import products
from recurrent.types import Array, Float

DTYPES = products.DTYPES
LARGEST = 127  # of int8: without -128 it is symmetric


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedMatrix:
  """Entries times a factor a column; made by `pack`.

  Attributes:
    entries: [P, K, 64] panels for C++, or [K, N] for XLA.
    scale: float32 [N].
  """

  entries: Array
  scale: Float[Array, "N"]

  def unpack(self) -> Float[Array, "K N"]:
    """The float32 matrix that it stands for."""
    matrix = self.entries
    if matrix.ndim == 3:
      matrix = matrix.swapaxes(0, 1).reshape(matrix.shape[1], -1)
      matrix = matrix[:, : len(self.scale)]
    matrix = matrix.astype(jnp.float32)
    return matrix * jnp.broadcast_to(self.scale, matrix.shape)

  def __rmatmul__(self, inputs: Float[Array, "*B K"]) -> Float[Array, "*B N"]:
    """`inputs @ matrix` in float32."""
    batch = inputs.shape[:-1]
    inputs = inputs.astype(jnp.float32).reshape(-1, inputs.shape[-1])
    if self.entries.ndim == 3:
      out = products.product(inputs, self.entries, self.scale)
    else:
      out = inputs @ self.entries.astype(jnp.float32)
      out = out * jnp.broadcast_to(self.scale, out.shape)
    return out.reshape(*batch, -1)


def pack(
  matrix: Float[Array, "K N"], dtype: str, *, in_cpp: bool | None = None
) -> PackedMatrix:
  """Packs a matrix; int8 rounds each column to 255 steps of its own.

  Args:
    matrix: [K, N].
    dtype: of the entries, one of `DTYPES`.
    in_cpp: whether for C++; None: where it can be had (`runs_in_cpp`).

  Returns:
    What `inputs @` multiplies by. An entry of a column whose greatest is m is
    off by at most m / 254 in int8, and by a part in 256 of itself in bfloat16.

  Raises:
    ValueError: if there is no such dtype.
  """
  if dtype not in DTYPES:
    raise ValueError(f"dtype must be one of {DTYPES}, got {dtype!r}")
  matrix = matrix.astype(jnp.float32)
  scale = jnp.ones(matrix.shape[1:], jnp.float32)
  if dtype == "int8":
    greatest = jnp.abs(matrix).max(axis=0)
    scale = jnp.where(greatest == 0, scale, greatest / LARGEST)
    matrix = jnp.round(matrix / jnp.broadcast_to(scale, matrix.shape))
    matrix = jnp.clip(matrix, -LARGEST, LARGEST)
  entries = matrix.astype(dtype)
  in_cpp = runs_in_cpp() if in_cpp is None else in_cpp
  return PackedMatrix(products.in_panels(entries) if in_cpp else entries, scale)


def runs_in_cpp() -> bool:
  """Whether products run in C++: on a CPU, with a compiler at hand."""
  return jax.default_backend() == "cpu" and not products.unavailable()
