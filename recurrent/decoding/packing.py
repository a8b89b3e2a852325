"""Packs the weights of a step: a transformation of the function.

A step `(params, *args) -> results` is traced. What depends on `params` alone,
such as a cast, a slice, or a table of projected embeddings, is computed once.
Of the rest, a product of a row of `args` with a matrix of weights becomes one
with a `PackedMatrix`. The step itself says which of its parameters are
matrices: neither cells nor models know of packing, and a cell of your own needs
nothing. What is not such a product stays as it is, in float32: biases, gains,
elementwise weights; and products with a batch axis (heads), convolutions, and
those inside a loop of the step's own.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from recurrent.kernels.packed import DTYPES, PackedMatrix, pack, runs_in_cpp
from recurrent.types import PyTree

# Calls that are walked into.
CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")
FLOATS = ("float32", "bfloat16")


class Packed(NamedTuple):
  """A step with its weights.

  Attributes:
    weights: what to give `step`: arrays and `PackedMatrix`.
    step: `(weights, *args) -> results`, for `args` of the same shapes.
  """

  weights: list[Any]
  step: Callable[..., Any]

  @property
  def bytes(self) -> int:
    """Of all weights."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(self.weights))

  def unpack(self) -> list[Any]:
    """Weights in float32 that `step` takes too, and that round the same."""
    return [
      w.unpack() if isinstance(w, PackedMatrix) else w for w in self.weights
    ]


def pack_step(
  step: Callable[..., Any], params: PyTree, *args: Any, dtype: str = "float32"
) -> Packed:
  """Packs the weights of a step.

  Args:
    step: `(params, *args) -> results`, a pure function.
    params: its parameters, a pytree of arrays.
    *args: arrays, or their shapes and dtypes.
    dtype: of the matrices: float32, bfloat16 or int8.

  Returns:
    Weights, and the step that takes them.

  Raises:
    ValueError: if there is no such dtype.
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


class _Weight:
  """Depends on params alone; `recipe` makes it anew where it is used."""

  def __init__(self, value, recipe=None):
    self.value = value
    self.recipe = recipe


class _Varying:
  """Depends on args."""

  def __init__(self, value):
    self.value = value


class _Walk:
  """Goes through a jaxpr; what is neither weight nor varying is constant."""

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
      # To read it from memory at each token would cost more than to make it.
      return [_Weight(None, (eqn, inputs))]
    return self.digest(eqn, inputs)

  def product(self, eqn, inputs) -> int | None:
    """Which input is a matrix of weights to pack, if the equation has one."""
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
  """Computes the weights, and notes in which order the step needs them."""

  def __init__(self, to_pack):
    super().__init__(to_pack)
    self.kept: list[tuple[Any, bool]] = []
    self.plan: list[int] = []
    self._places: dict[tuple[int, bool], int] = {}

  def digest(self, eqn, inputs):
    """What depends on params alone."""
    return [_Weight(x) for x in _bind(eqn, [self._value(x) for x in inputs])]

  def vary(self, eqn, inputs):
    """Keeps the weights that the step will need here."""
    at = self.product(eqn, inputs)
    for index, x in enumerate(inputs):
      if index == at:
        (axis,) = eqn.params["dimension_numbers"][0][at]
        self._keep(x.value, "transposed" if axis else "as it is")
      else:
        self.fetch(x)
    return [_Varying(None)] * len(eqn.outvars)

  def fetch(self, x):
    """Keeps a weight."""
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
  """Computes the rest, from weights in the order of the plan."""

  def __init__(self, to_pack, plan, weights):
    super().__init__(to_pack)
    self._weights = (weights[place] for place in plan)

  def digest(self, eqn, inputs):
    """It has been computed."""
    del inputs
    return [_Weight(None) for _ in eqn.outvars]

  def vary(self, eqn, inputs):
    """What depends on args."""
    at = self.product(eqn, inputs)
    values = [self.fetch(x) for x in inputs]
    if at is None:
      return [_Varying(x) for x in _bind(eqn, values)]
    (axis,) = eqn.params["dimension_numbers"][0][1 - at]
    out = jnp.moveaxis(values[1 - at], axis, -1) @ values[at]
    out = out if at else jnp.moveaxis(out, -1, 0)
    return [_Varying(out.astype(eqn.outvars[0].aval.dtype))]

  def fetch(self, x):
    """The value; the next of the weights, if it is one."""
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
