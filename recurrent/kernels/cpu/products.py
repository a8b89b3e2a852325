"""Products of a few rows with a packed matrix in C++ (`products.cc`)."""

import functools
import pathlib

import jax
import jax.numpy as jnp

from recurrent.kernels import cpu
from recurrent.types import Array, Float

SOURCE = pathlib.Path(__file__).with_name("products.cc")
PANEL = 64  # columns
DTYPES = ("float32", "bfloat16", "int8")
HANDLERS = tuple(f"product_{dtype}" for dtype in DTYPES)


@functools.cache
def unavailable() -> str:
  """Why they cannot be had on this machine; empty if they can.

  The first call compiles them, or finds them compiled.
  """
  return cpu.register(SOURCE, HANDLERS)


def in_panels(matrix: Float[Array, "K N"]) -> Float[Array, "P K 64"]:
  """A matrix in panels of 64 columns, the last filled up with zeros."""
  rows, columns = matrix.shape
  panels = -(-columns // PANEL)
  full = jnp.pad(matrix, ((0, 0), (0, panels * PANEL - columns)))
  return full.reshape(rows, panels, PANEL).swapaxes(0, 1)


def product(
  inputs: Float[Array, "B K"],
  panels: Array,
  scale: Float[Array, "N"],
) -> Float[Array, "B N"]:
  """`(inputs @ matrix) * scale`, summed in float32.

  Args:
    inputs: float32 [B, K].
    panels: [P, K, 64] of one of `DTYPES`, from `in_panels`.
    scale: float32 [N], a factor a column.
  """
  return jax.ffi.ffi_call(
    f"recurrent_product_{panels.dtype}",
    jax.ShapeDtypeStruct((len(inputs), len(scale)), jnp.float32),
    vmap_method="sequential",
  )(inputs, panels, scale, threads=cpu.THREADS)
