"""Computes a time step on tiles of 64 units by 16 rows, for GPU kernels.

The result of a product on tensor cores is distributed over the threads of a
warpgroup. If all other operations are elementwise over units, each warpgroup
can compute the whole time step for its own 64 units, and warpgroups exchange
only the factors of the next product. `compute` therefore represents an array
[rows, n * H] as n tiles, one for each block of H columns. It refuses operations
that combine units or rows, except products with weights.

Tiles are transposed, units before rows: units are the rows of a product on a
tensor core, which come in 64, and rows its columns, which may be 16.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from recurrent.types import Array

UNITS = 64  # a warpgroup's share of a product
ROWS = 16  # the least that 16-bit operands of a product can have
TILE = (UNITS, ROWS)


class Unfit(ValueError):
  """Raised for a program that tiles cannot compute; the text is "has ..."."""


@dataclasses.dataclass(frozen=True)
class Value:
  """An array, represented by tiles.

  Attributes:
    parts: tiles, one for each block of columns. An array that is the same in
      all units has only one part, which may be a scalar.
    narrow: the same array before its conversion to a wider dtype, if any.
  """

  parts: Sequence[Any]
  narrow: "Value | None" = None


class Matrix(NamedTuple):
  """A weight matrix, which only products may read.

  Attributes:
    leaf: index of the weights among the program's arguments.
    turned: whether the matrix is transposed.
    shape: the shape after the transposition.
  """

  leaf: int
  turned: bool
  shape: tuple[int, ...]


class Product(NamedTuple):
  """A product of rows with weights in a time step.

  Attributes:
    leaf: index of the weights among the program's arguments.
    turned: whether the weights are transposed.
    blocks_in: number of blocks of H columns that are summed over.
    blocks_out: number of blocks of H columns in the result.
    dtype: dtype of the rows.
  """

  leaf: int
  turned: bool
  blocks_in: int
  blocks_out: int
  dtype: Any


# The operations that work unit by unit and that Mosaic GPU has.
ELEMENTWISE = frozenset(
  "abs add and atan2 clamp cos div eq erf exp exp2 ge gt integer_pow le log"
  " logistic lt max min mul ne neg one_minus_square optimization_barrier or"
  " rem rsqrt select_n sign sin square sub tanh xor".split()
)
INLINED = {
  "jit": "jaxpr",
  "closed_call": "call_jaxpr",
  "custom_jvp_call": "call_jaxpr",
  "custom_vjp_call": "call_jaxpr",
}
# Operations that Mosaic GPU lacks, in terms of those that it has.
MADE = {
  "add_any": lambda x, y, **_: x + y,
  "copy": lambda x, **_: x,
  "stop_gradient": lambda x, **_: x,
  "log1p": lambda x, **_: jnp.log(1 + x),
  "expm1": lambda x, **_: jnp.exp(x) - 1,
  # Mosaic GPU does not compile `not` of Booleans.
  "not": lambda x, **_: (
    jnp.where(x, 0.0, 1.0) > 0.5 if x.dtype == jnp.bool_ else ~x
  ),
  "sqrt": lambda x, **_: x * lax.rsqrt(jnp.maximum(x, 1e-37)),
}


def compute(
  jaxpr: core.Jaxpr,
  values: Sequence[Value | Matrix],
  features: int,
  rows: int,
  product: Callable[[Product, Sequence[Array]], Sequence[Array]],
) -> list[Value]:
  """Computes a program on tiles.

  Args:
    jaxpr: the program.
    values: its arguments as tiles or weights, constants first.
    features: the width H of a block of columns.
    rows: the number of rows that it was traced with, neither a multiple of H
      nor 1.
    product: computes the tiles of a product from those of its rows.

  Returns:
    The results, as tiles.

  Raises:
    Unfit: if the program combines units or rows, except by products with
      weights.
  """
  known = dict(zip((*jaxpr.constvars, *jaxpr.invars), values, strict=True))

  def read(x):
    if isinstance(x, core.Literal):
      return Value([np.asarray(x.val, x.aval.dtype)])
    return known[x]

  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    args = [read(x) for x in eqn.invars]
    if name in INLINED:
      inner = eqn.params[INLINED[name]]
      inner, consts = (
        (inner.jaxpr, inner.consts)
        if isinstance(inner, core.ClosedJaxpr)
        else (inner, [])
      )
      if any(jnp.ndim(x) for x in consts):
        raise Unfit("has a constant array in a function inside")
      consts = [Value([x]) for x in consts]
      results = compute(inner, [*consts, *args], features, rows, product)
    elif name == "dot_general":
      out = eqn.outvars[0].aval
      results = [_dot(args, eqn.params, out, features, product)]
    elif any(isinstance(x, Matrix) for x in args):
      results = [_of_matrix(name, args, eqn.params)]
    else:
      blocks = [_blocks(_shape(x), features, rows) for x in eqn.outvars]
      results = _apply(eqn, args, blocks[0], features)
    known.update(zip(eqn.outvars, results, strict=True))
  return [read(x) for x in jaxpr.outvars]


def _apply(eqn, args, blocks, features):
  """One operation that reads no weights."""
  name, params = eqn.primitive.name, eqn.params
  shapes = [_shape(x) for x in eqn.invars]
  if name == "convert_element_type":
    return [_convert(args[0], params["new_dtype"])]
  if name in MADE or name in ELEMENTWISE:
    return [_each(eqn.primitive.bind, name, args, params)]
  if name in ("broadcast_in_dim", "reshape", "squeeze", "expand_dims"):
    (x,) = args
    if blocks in (0, len(x.parts)):
      return [x]
    if len(x.parts) > 1:
      raise Unfit(f"has a `{name}` across units")
    return [Value(list(x.parts) * blocks)]
  if name in ("split", "slice", "concatenate", "pad"):
    return _columns(name, args, params, shapes, features)
  raise Unfit(f"has `{name}` in a time step, which GPU tiles have no rule for")


def _shape(var):
  return var.aval.shape


def _blocks(shape, features, rows) -> int:
  """Returns how many tiles an array has; 0 if it is the same in all units."""
  lead, columns = shape[:-1], (1, *shape)[-1]
  if columns in (1, rows) and set(lead) <= {1}:
    return 0
  if columns != 1 and columns % features:
    raise Unfit(f"has an array of {columns} columns, no multiple of its units")
  if len(shape) > 2 or any(n not in (1, rows) for n in lead):
    raise Unfit("has arrays of a time step that are not vectors in each row")
  return 0 if columns == 1 else columns // features


def _each(bind, name, args, params):
  count = max(len(x.parts) for x in args)
  make = MADE.get(name, lambda *x, **params: bind(*_like(x), **params))
  return Value(
    [
      make(*(x.parts[i % len(x.parts)] for x in args), **params)
      for i in range(count)
    ]
  )


def _like(parts):
  """Broadcasts scalars to tiles if at least one of the parts is a tile."""
  if not any(jnp.ndim(x) for x in parts):
    return parts
  return [tile(x) for x in parts]


def tile(x: Any) -> Array:
  """Broadcasts a scalar to a tile; returns a tile unchanged."""
  return x if jnp.ndim(x) else jnp.full(TILE, x)


def _convert(x, dtype):
  parts = [jnp.asarray(part).astype(dtype) for part in x.parts]
  before = jnp.asarray(x.parts[0]).dtype
  wider = jnp.dtype(dtype).itemsize > before.itemsize
  floating = jnp.issubdtype(before, jnp.floating)
  return Value(parts, (x.narrow or x) if wider and floating else None)


def _of_matrix(name, args, params):
  x = args[0]
  if name == "transpose" and params["permutation"] == (1, 0):
    return Matrix(x.leaf, not x.turned, x.shape[::-1])
  if name == "convert_element_type":
    return x
  raise Unfit(f"has `{name}` of weights, where only a product may read them")


def _dot(args, params, out, features, product):
  (over, others), batch = params["dimension_numbers"]
  rows, weights = args
  fits = isinstance(rows, Value) and isinstance(weights, Matrix)
  if not fits or any(batch) or over != (1,) or len(others) != 1:
    raise Unfit("has a product that is not of rows with a matrix of weights")
  turned = weights.turned != (others[0] == 1)
  size_in, size_out = weights.shape[:: -1 if others[0] == 1 else 1]
  if size_in % features or size_out % features:
    raise Unfit(
      f"has a product from {size_in} to {size_out}, no multiples of its units"
    )
  rows = rows.narrow or rows
  parts = [tile(x) for x in rows.parts]
  parts = parts * (size_in // features // len(parts))
  what = Product(
    weights.leaf,
    turned,
    size_in // features,
    size_out // features,
    jnp.dtype(parts[0].dtype),
  )
  return Value([x.astype(out.dtype) for x in product(what, parts)])


def _columns(name, args, params, shapes, features):
  """Splits, slices, concatenates or pads along the columns."""
  axis = len(shapes[0]) - 1

  def blocks(columns):
    if columns % features:
      raise Unfit(f"has a `{name}` at {columns}, within a block of its units")
    return columns // features

  if name == "concatenate":
    if params["dimension"] != axis:
      raise Unfit("has a `concatenate` of rows")
    counts = [blocks(shape[axis]) for shape in shapes]
    parts = zip(args, counts, strict=True)
    return [Value([p for x, n in parts for p in _spread(x, n)])]
  whole = _spread(args[0], blocks(shapes[0][axis]))
  if name == "split":
    if params["axis"] != axis:
      raise Unfit("has a `split` of rows")
    results, at = [], 0
    for size in map(blocks, params["sizes"]):
      results.append(Value(whole[at : at + size]))
      at += size
    return results
  if name == "slice":
    start, stop = params["start_indices"], params["limit_indices"]
    if stop[:axis] != shapes[0][:axis] or any(start[:axis]):
      raise Unfit("has a `slice` of rows")
    if set(params["strides"] or [1]) != {1}:
      raise Unfit("has a `slice` with strides")
    return [Value(whole[blocks(start[axis]) : blocks(stop[axis])])]
  *other, (low, high, inside) = params["padding_config"]
  if inside or any(map(any, other)):
    raise Unfit("has a `pad` of rows, or between columns")
  (fill,) = args[1].parts
  fill = tile(fill)
  low, high = blocks(low), blocks(high)
  return [Value([fill] * low + list(whole) + [fill] * high)]


def _spread(x, count):
  """Repeats the tiles until there are `count`."""
  return list(x.parts) * (count // len(x.parts))
