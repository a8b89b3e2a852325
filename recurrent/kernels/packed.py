"""Matrices in float32, bfloat16 or int8, packed for products with few rows.

A decoder multiplies one or a few rows by the same matrices at each token, and
most of the time is spent on reading the matrices. bfloat16 has half as many
bytes, int8 a quarter. Inputs and sums stay float32; only the weights are
narrow.

On a CPU the product runs in C++ (`cpu/products.cc`), which converts the entries
to float32 in registers. Elsewhere, or without a C++ compiler, XLA converts the
matrix before the product. The results are the same up to rounding, but on a CPU
this is no faster than float32, since XLA converts the matrix once, outside the
loop over tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp

from recurrent.kernels import transforms
from recurrent.kernels.cpu import products
from recurrent.setting import Setting
from recurrent.types import Array, Float

DTYPES = products.DTYPES
LARGEST = 127  # of int8; -128 is not used, for symmetry


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedMatrix:
  """A matrix as entries times one factor for each column, made by `pack`.

  Attributes:
    entries: [P, K, 64] panels for C++, or [K, N] for XLA.
    scale: float32 [N].
  """

  entries: Array
  scale: Float[Array, "N"]

  def unpack(self) -> Float[Array, "K N"]:
    """Returns the matrix in float32."""
    matrix = _columns(self.entries, self.scale)
    return matrix * jnp.broadcast_to(self.scale, matrix.shape)

  def __rmatmul__(self, inputs: Float[Array, "*B K"]) -> Float[Array, "*B N"]:
    """`inputs @ matrix` in float32."""
    batch = inputs.shape[:-1]
    inputs = inputs.astype(jnp.float32).reshape(-1, inputs.shape[-1])
    args = inputs, self.entries, self.scale
    if self.entries.ndim == 3:
      out = transforms.kernel(
        products.product, _by_xla, (), *args, platform="cpu"
      )
    else:
      out = _by_xla(*args)
    return out.reshape(*batch, -1)


def _columns(entries, scale):
  """Returns the entries as a matrix [K, N] in float32, without the factors."""
  if entries.ndim == 3:
    entries = entries.swapaxes(0, 1).reshape(entries.shape[1], -1)
    entries = entries[:, : len(scale)]
  return entries.astype(jnp.float32)


def _by_xla(inputs, entries, scale):
  """Multiplies rows by a packed matrix in JAX operations."""
  out = inputs @ _columns(entries, scale)
  return out * jnp.broadcast_to(scale, out.shape)


def pack(
  matrix: Float[Array, "K N"], dtype: str, *, in_cpp: bool | None = None
) -> PackedMatrix:
  """Packs a matrix; int8 rounds each column to 255 levels of its own scale.

  Args:
    matrix: [K, N].
    dtype: dtype of the entries, one of `DTYPES`.
    in_cpp: whether to pack for the product in C++; None: if `runs_in_cpp()`.

  Returns:
    The packed matrix, for `inputs @ packed`. The error of an entry is at most m
    / 254 in int8, m being the greatest absolute value of its column, and at
    most 1 / 256 of the entry in bfloat16.

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
  return Setting.here().platform == "cpu" and not products.unavailable()
