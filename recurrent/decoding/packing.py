"""Transforms a decoding step so that it multiplies by packed weights.

`pack_step` traces a step `(params, *args) -> results`. Operations that depend
on `params` alone, such as a cast, a slice, or a table of projected embeddings,
are computed once. In the rest, a product of values that depend on `args` with a
matrix of weights becomes a product with a `PackedMatrix`. The matrices are
found in the traced step, so cells and models need no code for packing.

All other operations and their weights remain unchanged, in float32: biases,
gains and elementwise weights, products with a batch axis (heads), convolutions,
and products inside a loop of the step.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from recurrent.kernels.packed import DTYPES, PackedMatrix, pack, runs_in_cpp
from recurrent.types import Carry, PyTree

# Primitives that call another jaxpr, whose equations are transformed as well.
CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")
FLOATS = ("float32", "bfloat16")


class Packed(NamedTuple):
  """A step and its packed weights.

  Attributes:
    weights: the first argument of `step`: arrays and `PackedMatrix`es.
    step: `(weights, *args) -> results`, for `args` of the traced shapes.
  """

  weights: list[Any]
  step: Callable[..., Any]

  @property
  def bytes(self) -> int:
    """Size of all weights in bytes."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(self.weights))

  def unpack(self) -> list[Any]:
    """The weights in float32, with rounded values; `step` takes them too."""
    return [
      w.unpack() if isinstance(w, PackedMatrix) else w for w in self.weights
    ]


def pack_step(
  step: Callable[..., Any], params: PyTree, *args: Any, dtype: str = "float32"
) -> Packed:
  """Packs the matrices of a step's parameters.

  Args:
    step: `(params, *args) -> results`, a pure function.
    params: its parameters, a pytree of arrays.
    *args: its other arguments: arrays, or their shapes and dtypes.
    dtype: dtype of the packed matrices: float32, bfloat16 or int8.

  Returns:
    The packed weights, and the step that takes them.

  Raises:
    ValueError: if `dtype` is none of these.
  """
  if dtype not in DTYPES:
    raise ValueError(f"dtype must be one of {DTYPES}, got {dtype!r}")
  closed, shapes = jax.make_jaxpr(step, return_shape=True)(params, *args)
  treedef = jax.tree.structure(shapes)
  narrow = dtype != "float32"
  # XLA's own product of float32 needs no packing.
  to_pack = (
    (FLOATS if narrow else ("float32",)) if (narrow or runs_in_cpp()) else ()
  )
  plan: list[int] = []

  @jax.jit
  def digest(params):
    walk = _Digest(to_pack)
    inputs = [_Weight(x) for x in jax.tree.leaves(params)]
    inputs += [_Varying(None)] * (len(closed.jaxpr.invars) - len(inputs))
    for out in walk.run(closed.jaxpr, closed.consts, inputs):
      walk.fetch(out)
    plan[:] = walk.plan
    return [
      pack(value, dtype) if packed else value for value, packed in walk.kept
    ]

  weights = digest(params)
  count = len(jax.tree.leaves(params))

  def packed_step(weights, *args):
    walk = _Replay(to_pack, plan, weights)
    inputs: list[Any] = [_Weight(None)] * count
    inputs += [_Varying(jnp.asarray(x)) for x in jax.tree.leaves(args)]
    outputs = walk.run(closed.jaxpr, closed.consts, inputs)
    return jax.tree.unflatten(treedef, [walk.fetch(x) for x in outputs])

  return Packed(weights, packed_step)


def pack_model(
  graphdef: nnx.GraphDef, params: PyTree, rows: int, dtype: str = "float32"
) -> tuple[jax.tree_util.Partial, Carry]:
  """Packs the decoding step of a model.

  Args:
    graphdef: graph definition of a model with the methods `decoder` and
      `initial_carry`, such as `models.LanguageModel`.
    params: parameters of the model.
    rows: number of rows that the step decodes.
    dtype: dtype of the weight matrices, one of `DTYPES`.

  Returns:
    The step `(carry, token [rows]) -> (carry, logits)`, with the packed weights
    as its first argument already, and the initial carry.
  """
  merge = functools.partial(nnx.merge, graphdef)
  carry = jax.jit(lambda params: merge(params).initial_carry(rows))(params)
  packed = pack_step(
    lambda params, carry, token: merge(params).decoder()(carry, token),
    params,
    carry,
    jax.ShapeDtypeStruct((rows,), jnp.int32),
    dtype=dtype,
  )
  return jax.tree_util.Partial(packed.step, packed.weights), carry


class _Weight:
  """A value that depends on params alone.

  If `recipe` is given, the value is not stored: the recipe's equation computes
  it again wherever it is used.
  """

  def __init__(self, value, recipe=None):
    self.value = value
    self.recipe = recipe


class _Varying:
  """A value that depends on args."""

  def __init__(self, value):
    self.value = value


class _Walk:
  """Interprets a jaxpr over weights, varying values and constants.

  `digest` handles equations that depend on params alone, `vary` those that
  depend on args. All values but `_Weight`s and `_Varying`s are constants.
  """

  def __init__(self, to_pack: Sequence[str]):
    self.to_pack = to_pack

  def run(self, jaxpr, consts, inputs) -> list[Any]:
    """The outputs of a jaxpr."""
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= zip(jaxpr.invars, inputs, strict=True)
    read = lambda x: x.val if isinstance(x, core.Literal) else values[x]
    for eqn in _alive(jaxpr):
      outputs = self._call(eqn, [read(x) for x in eqn.invars])
      values |= zip(eqn.outvars, outputs, strict=True)
    return [read(x) for x in jaxpr.outvars]

  def _call(self, eqn, inputs):
    if eqn.primitive.name in CALLS:
      inner = eqn.params.get("jaxpr") or eqn.params["call_jaxpr"]
      return self.run(inner.jaxpr, inner.consts, inputs)
    if any(isinstance(x, _Varying) for x in inputs):
      return self.vary(eqn, inputs)
    if not any(isinstance(x, _Weight) for x in inputs):
      return _bind(eqn, inputs)
    if eqn.primitive.name == "broadcast_in_dim":
      # Reading it from memory for each token would cost more than computing it.
      return [_Weight(None, (eqn, inputs))]
    return self.digest(eqn, inputs)

  def product(self, eqn, inputs) -> int | None:
    """The index of the input that is a matrix to pack, or None."""
    if eqn.primitive.name != "dot_general":
      return None
    contracted, batched = eqn.params["dimension_numbers"]
    for at, (x, other) in enumerate(zip(inputs, inputs[::-1], strict=True)):
      aval = eqn.invars[at].aval
      if (
        isinstance(x, _Weight)
        and isinstance(other, _Varying)
        and x.recipe is None
        and aval.ndim == 2
        and len(contracted[at]) == 1
        and not batched[at]
        and all(str(v.aval.dtype) in self.to_pack for v in eqn.invars)
      ):
        return at
    return None


class _Digest(_Walk):
  """Computes the weights, and records the order in which the step uses them."""

  def __init__(self, to_pack):
    super().__init__(to_pack)
    self.kept: list[tuple[Any, bool]] = []
    self.plan: list[int] = []
    self._places: dict[tuple[int, bool], int] = {}

  def digest(self, eqn, inputs):
    """Computes an equation that depends on params alone."""
    return [_Weight(x) for x in _bind(eqn, [self._value(x) for x in inputs])]

  def vary(self, eqn, inputs):
    """Records the weights that this equation of the step will use."""
    at = self.product(eqn, inputs)
    for index, x in enumerate(inputs):
      if index == at:
        (axis,) = eqn.params["dimension_numbers"][0][at]
        self._keep(x.value, "transposed" if axis else "as it is")
      else:
        self.fetch(x)
    return [_Varying(None)] * len(eqn.outvars)

  def fetch(self, x):
    """Records a weight, or those that its recipe uses."""
    if not isinstance(x, _Weight):
      return
    if x.recipe:
      for source in x.recipe[1]:
        self.fetch(source)
    else:
      self._keep(x.value, "")

  def _value(self, x):
    if not isinstance(x, _Weight):
      return x
    if x.recipe:
      eqn, inputs = x.recipe
      return _bind(eqn, [self._value(y) for y in inputs])[0]
    return x.value

  def _keep(self, value, packed):
    key = (id(value), packed)
    if key not in self._places:
      self._places[key] = len(self.kept)
      matrix = value.T if packed == "transposed" else value
      self.kept.append((matrix, bool(packed)))
    self.plan.append(self._places[key])


class _Replay(_Walk):
  """Computes the step, with the weights in the order of the plan."""

  def __init__(self, to_pack, plan, weights):
    super().__init__(to_pack)
    self._weights = (weights[place] for place in plan)

  def digest(self, eqn, inputs):
    """Does nothing: these values have been computed before."""
    del inputs
    return [_Weight(None) for _ in eqn.outvars]

  def vary(self, eqn, inputs):
    """Computes an equation that depends on args."""
    at = self.product(eqn, inputs)
    values = [self.fetch(x) for x in inputs]
    if at is None:
      return [_Varying(x) for x in _bind(eqn, values)]
    (axis,) = eqn.params["dimension_numbers"][0][1 - at]
    out = jnp.moveaxis(values[1 - at], axis, -1) @ values[at]
    out = out if at else jnp.moveaxis(out, -1, 0)
    return [_Varying(out.astype(eqn.outvars[0].aval.dtype))]

  def fetch(self, x):
    """The value of `x`; for a weight, the next one in the plan."""
    if isinstance(x, _Varying):
      return x.value
    if not isinstance(x, _Weight):
      return x
    if x.recipe:
      eqn, inputs = x.recipe
      return _bind(eqn, [self.fetch(y) for y in inputs])[0]
    return next(self._weights)


def _alive(jaxpr):
  """Equations whose results are used."""
  used = {x for x in jaxpr.outvars if not isinstance(x, core.Literal)}
  alive = []
  for eqn in reversed(jaxpr.eqns):
    if eqn.effects or not used.isdisjoint(eqn.outvars):
      used.update(x for x in eqn.invars if not isinstance(x, core.Literal))
      alive.append(eqn)
  return alive[::-1]


def _bind(eqn, values):
  """The results of one equation."""
  params = eqn.primitive.get_bind_params(eqn.params)
  with eqn.ctx.manager:
    found = eqn.primitive.bind(*values, **params)
  return found if eqn.primitive.multiple_results else [found]
