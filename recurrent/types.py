"""Dimension letters and array types, used in every public signature.

B batch, T time, D input features, H features (width) of a cell, G gates of a
cell, V vocabulary. Shapes are checked in tests only (jaxtyping and beartype).
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

try:
  from jaxtyping import Array, Bool, Float, Int, Key, Num, PyTree
except ModuleNotFoundError:
  # Without jaxtyping the shapes are comments: Annotated[Array, "B T D"].
  if not TYPE_CHECKING:
    from jax import Array

    Bool = Float = Int = Key = Num = Annotated
    PyTree = Any

PRNGKey = Key[Array, ""]
Activations = Float[Array, "B T D"]
Mask = Bool[Array, "B T"]
Lengths = Int[Array, "B"]
Tokens = Int[Array, "B T"]
Logits = Float[Array, "*B V"]

Params = Any  # a NamedTuple of arrays that the cell defines
Carry = Any  # a NamedTuple of arrays [*batch, ...] that the cell defines

# Values of the argument `remat` of `recurrent.unroll`.
Remat = int | Literal["gates"] | None

__all__ = [
  "Activations",
  "Array",
  "Bool",
  "Carry",
  "Float",
  "Int",
  "Key",
  "Lengths",
  "Logits",
  "Mask",
  "Num",
  "PRNGKey",
  "Params",
  "PyTree",
  "Remat",
  "Tokens",
]
