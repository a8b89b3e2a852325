"""Makes custom kernels work under every transformation of JAX.

A kernel in C++, a hand-written reverse pass or an iterative solver does not by
itself support `jax.jvp`, second derivatives, `jax.export` or other platforms.
The functions here pair a kernel with a plain form, the same function in JAX
operations, which is used in these cases.

`call` gives a function a custom reverse pass, and computes all other
derivatives from plain JAX operations. `kernel` runs a kernel where it can run,
and the plain form where it cannot.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec

from recurrent.rows import vary_alike

Static = tuple[Any, ...]  # hashable values


class Passes(NamedTuple):
  """A function with custom derivatives, for `call`.

  Each pass takes the hashable values `static` first. All other arguments and
  results are pytrees of arrays.

  Attributes:
    run: `(*static, *args) -> out`, used if nothing is differentiated.
    forward: `(*static, *args) -> (out, kept)`, where `kept` holds the residuals
      that `tangent` and `backward` read.
    tangent: `(*static, kept, d_args) -> d_out`, the forward derivative in plain
      JAX. It is linear in `d_args`, which are float0 where `args` are not
      floating-point.
    backward: `(*static, kept, d_out) -> d_args`, the transpose of `tangent`,
      with None where `args` are not floating-point.
  """

  run: Callable[..., Any]
  forward: Callable[..., tuple[Any, Any]]
  tangent: Callable[..., Any]
  backward: Callable[..., Any]


def call(passes: Passes, static: Static, *args: Any) -> Any:
  """Calls a function that has custom derivatives.

  In reverse mode `backward` is applied to the residuals of `forward`, as with
  `jax.custom_vjp`. Forward mode, which `jax.custom_vjp` does not support, uses
  `tangent`.

  Args:
    passes: the function.
    static: hashable values that all passes take first.
    *args: pytrees of arrays.

  Returns:
    The result of `passes.run`.
  """
  return _call(passes, static, *vary_alike(args))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _call(passes, static, *args):
  return passes.run(*static, *args)


def _call_jvp(passes, static, args, d_args):
  out, kept = passes.forward(*static, *args)
  kept, kept_tree = jax.tree.flatten(kept)
  leaves, args_tree = jax.tree.flatten(args)
  tangents = args_tree.flatten_up_to(d_args)
  moving = tuple(not isinstance(t, SymbolicZero) for t in tangents)
  outs, out_tree = jax.tree.flatten(out)
  linear = _Linear(
    passes,
    static,
    kept_tree,
    _Leaves(args_tree, _types(leaves)),
    moving,
    _Leaves(out_tree, _types(outs)),
  )
  d_outs = iter(
    linear_p.bind(
      *kept,
      *(t for t, moves in zip(tangents, moving, strict=True) if moves),
      linear=linear,
      count=len(kept),
    )
  )
  d_out = [next(d_outs) if _is_real(x) else _still(x) for x in outs]
  return out, out_tree.unflatten(d_out)


_call.defjvp(_call_jvp, symbolic_zeros=True)


def _still(x):
  """Returns a symbolic zero as the tangent of an array."""
  return SymbolicZero(jax.typeof(x).to_tangent_aval())


class _Type(NamedTuple):
  """Shape and dtype of an array."""

  shape: tuple[int, ...]
  dtype: Any


def _types(leaves) -> tuple[_Type, ...]:
  return tuple(_Type(jnp.shape(x), jnp.result_type(x)) for x in leaves)


def _is_real(x) -> bool:
  """Whether an array, or a type, has a derivative."""
  return jnp.issubdtype(x.dtype, jnp.inexact)


def _zero(x):
  """Returns a zero tangent; it is float0 if the array is not differentiable."""
  if _is_real(x):
    return jnp.zeros(x.shape, x.dtype)
  return np.zeros(jnp.shape(x), jax.dtypes.float0)


class _Leaves(NamedTuple):
  """The structure of a pytree, and the types of its leaves."""

  tree: Any
  types: tuple[_Type, ...]

  def fill(self, given: Iterable[Any], chosen: Iterable[bool]) -> Any:
    """The tree with the given tangents where chosen, else zeros."""
    given = iter(given)
    return self.tree.unflatten(
      [
        next(given) if choose else _zero(x)
        for x, choose in zip(self.types, chosen, strict=True)
      ]
    )


class _Linear(NamedTuple):
  """A derivative: a linear function of lists of arrays, and its transpose."""

  passes: Passes
  static: Static
  kept: Any  # the structure of the residuals
  args: _Leaves
  moving: tuple[bool, ...]  # which of the args have a tangent
  outs: _Leaves

  @property
  def types(self) -> tuple[_Type, ...]:
    """The types of the results of `forwards`."""
    return tuple(filter(_is_real, self.outs.types))

  def forwards(self, kept, tangents):
    kept, tangents = vary_alike((kept, self.args.fill(tangents, self.moving)))
    d_out = self.passes.tangent(
      *self.static, self.kept.unflatten(kept), tangents
    )
    leaves = zip(jax.tree.leaves(d_out), self.outs.types, strict=True)
    return [d for d, x in leaves if _is_real(x)]

  def backwards(self, kept, cotangents):
    real = [_is_real(x) for x in self.outs.types]
    cotangents = self.outs.fill(cotangents, real)
    kept, cotangents = vary_alike((self.kept.unflatten(kept), cotangents))
    d_args = self.passes.backward(*self.static, kept, cotangents)
    chosen = []

    def choose(d, moving):
      # `d` is None for a subtree of arguments that have no gradient.
      if d is not None and moving:
        chosen.append(d)

    moving = self.args.tree.unflatten(self.moving)
    jax.tree.map(choose, d_args, moving, is_leaf=lambda d: d is None)
    return vary_alike((kept, chosen))[1]


class _Mapped(NamedTuple):
  """A linear function under `jax.vmap`, over the first axis of the tangents."""

  linear: Any
  axes: tuple[int | None, ...]  # of the residuals
  size: int

  @property
  def types(self):
    return _wider(self.linear.types, self.size)

  def forwards(self, kept, tangents):
    return jax.vmap(self.linear.forwards, (list(self.axes), 0))(kept, tangents)

  def backwards(self, kept, cotangents):
    run = jax.vmap(self.linear.backwards, (list(self.axes), 0))
    return run(kept, cotangents)


# `linear_p.bind(*kept, *tangents, linear, count)`: linear.forwards(kept,
# tangents), whose transpose is linear.backwards(kept, cotangents).
linear_p = Primitive("recurrent_linear")
linear_p.multiple_results = True


def _run_linear(*operands, linear, count):
  return linear.forwards(list(operands[:count]), list(operands[count:]))


@linear_p.def_abstract_eval
def _linear_types(*operands, linear, count):
  del count
  return _typed(linear.types, operands)


def _linear_jvp(primals, tangents, *, linear, count):
  kept, given = list(primals[:count]), list(primals[count:])
  outs = linear_p.bind(*primals, linear=linear, count=count)
  d_kept, d_given = tangents[:count], tangents[count:]
  d_outs = [_no_tangent(x) for x in outs]
  if any(type(d) is not ad.Zero for d in d_given):
    d_given = map(ad.instantiate_zeros, d_given)
    d_outs = linear_p.bind(*kept, *d_given, linear=linear, count=count)
  if any(type(d) is not ad.Zero for d in d_kept):
    run = lambda *kept: linear.forwards(list(kept), given)
    more = _jvp(run, kept, d_kept)[1]
    d_outs = map(ad.add_tangents, d_outs, more)
  return outs, list(d_outs)


def _linear_transpose(cotangents, *operands, linear, count):
  cotangents = [ad.instantiate_zeros(ct) for ct in cotangents]
  found = linear.backwards(list(operands[:count]), cotangents)
  wanted = map(ad.is_undefined_primal, operands[count:])
  chosen = zip(found, wanted, strict=True)
  return [None] * count + [d if want else None for d, want in chosen]


def _linear_batch(operands, axes, *, linear, count):
  size = _size(operands, axes)
  front = [
    batching.bdim_at_front(x, axis, size)
    for x, axis in zip(operands[count:], axes[count:], strict=True)
  ]
  mapped = _Mapped(linear, _plain_axes(axes[:count]), size)
  outs = linear_p.bind(*operands[:count], *front, linear=mapped, count=count)
  return outs, [0] * len(outs)


def kernel(
  fast: Callable[..., Any],
  plain: Callable[..., Any],
  static: Static,
  *args: Any,
  platform: str | None = None,
) -> Any:
  """Runs a kernel where it can run, and its plain form elsewhere.

  Derivatives are those of `plain`. If the kernel is for one platform only,
  `plain` is also compiled for other platforms and for `jax.export`, whose
  result must be valid in another process.

  Args:
    fast: `(*static, *args) -> out`.
    plain: the same function in JAX operations.
    static: hashable values.
    *args: pytrees of arrays.
    platform: the only one that `fast` runs on; None: it runs on any.

  Returns:
    The result of `fast` or `plain`.
  """
  leaves, tree = jax.tree.flatten(vary_alike(args))
  of_list, plain_of_list = (_Flat(f, static, tree) for f in (fast, plain))
  structs = [jax.ShapeDtypeStruct(*x) for x in _types(leaves)]
  jaxpr, out = jax.make_jaxpr(of_list.whole, return_shape=True)(structs)
  types, out_tree = jax.tree.flatten(out)
  outs = kernel_p.bind(
    *leaves,
    fast=of_list,
    plain=plain_of_list,
    platform=platform,
    types=_types(types),
    # An interpreted GPU kernel has side effects, which JAX must know of.
    side_effects=frozenset(jaxpr.effects),
  )
  return jax.tree.unflatten(out_tree, outs)


class _Flat(NamedTuple):
  """A function of pytrees, called with a list of their leaves."""

  function: Callable[..., Any]
  static: Static
  tree: Any

  def whole(self, leaves):
    return self.function(*self.static, *self.tree.unflatten(leaves))

  def __call__(self, leaves):
    return jax.tree.leaves(self.whole(leaves))


class _MappedFlat(NamedTuple):
  """A function of a list of arrays under `jax.vmap`."""

  function: Any
  axes: tuple[int | None, ...]

  def __call__(self, leaves):
    return jax.vmap(self.function, (list(self.axes),))(leaves)


# `kernel_p.bind(*leaves, fast, plain, platform, types)` calls `fast` or `plain`
# with the list of leaves. Both return a list of arrays of the given types.
kernel_p = Primitive("recurrent_kernel")
kernel_p.multiple_results = True


@kernel_p.def_effectful_abstract_eval
def _kernel_types(*operands, fast, plain, platform, types, side_effects):
  del fast, plain, platform
  return _typed(types, operands), side_effects


def _lower_kernel(ctx, *operands, fast, plain, platform, types, side_effects):
  del types, side_effects
  module = ctx.module_context
  platforms = ctx.platforms or module.platforms
  here = platform is None or (
    tuple(platforms) == (platform,)
    and not module.lowering_parameters.for_export
  )
  run = fast if here else plain
  # A kernel runs on each device separately, so the mesh axes over which its
  # arrays vary are removed from their types.
  types = [jax.core.ShapedArray(x.shape, x.dtype) for x in ctx.avals_in]
  inner = ctx.replace(avals_in=types)
  outs = mlir.lower_fun(lambda *leaves: run(list(leaves)))(inner, *operands)
  if inner.tokens_out is not None:
    ctx.set_tokens_out(inner.tokens_out)
  return outs


def _kernel_jvp(primals, tangents, *, plain, **params):
  outs = kernel_p.bind(*primals, plain=plain, **params)
  run = lambda *leaves: plain(list(leaves))
  return outs, _jvp(run, primals, tangents)[1]


def _kernel_batch(operands, axes, *, fast, plain, types, **params):
  size = _size(operands, axes)
  axes = _plain_axes(axes)
  fast, plain = (_MappedFlat(f, axes) for f in (fast, plain))
  types = _wider(types, size)
  outs = kernel_p.bind(*operands, fast=fast, plain=plain, types=types, **params)
  return outs, [0] * len(outs)


def _jvp(run, primals, tangents):
  """`jax.jvp` of a function of arrays, some of whose tangents are `ad.Zero`."""
  fixed, moving = [], []
  for index, tangent in enumerate(tangents):
    (fixed if type(tangent) is ad.Zero else moving).append(index)

  def of_moving(*values):
    leaves = dict(zip(moving, values, strict=True))
    leaves |= {index: primals[index] for index in fixed}
    return run(*(leaves[index] for index in range(len(primals))))

  pick = lambda values: tuple(values[index] for index in moving)
  outs, d_outs = jax.jvp(of_moving, pick(primals), pick(tangents))
  return outs, [
    d if _is_real(x) else _no_tangent(x)
    for x, d in zip(outs, d_outs, strict=True)
  ]


def _no_tangent(x):
  """Returns a symbolic zero tangent, as rules of primitives use it."""
  return ad.Zero(jax.typeof(x).to_tangent_aval())


def _wider(types, size) -> tuple[_Type, ...]:
  """Types with one more axis in front."""
  return tuple(_Type((size, *x.shape), x.dtype) for x in types)


def _typed(types, operands):
  """Returns the abstract values of results, with the operands' mesh axes."""
  like = operands[0]
  return [
    like.update(
      shape=x.shape,
      dtype=x.dtype,
      weak_type=False,
      sharding=like.sharding.update(spec=PartitionSpec(*[None] * len(x.shape))),
    )
    for x in types
  ]


def _size(operands, axes) -> int:
  """The length of the axis that `jax.vmap` maps over."""
  return next(
    x.shape[axis]
    for x, axis in zip(operands, axes, strict=True)
    if isinstance(axis, int)
  )


def _plain_axes(axes) -> tuple[int | None, ...]:
  return tuple(axis if isinstance(axis, int) else None for axis in axes)


def _register(primitive, lower):
  """Registers a primitive's lowering, and compiles it outside `jax.jit`."""

  @functools.partial(jax.jit, static_argnums=0)
  def compiled(params, *operands):
    return primitive.bind(*operands, **dict(params))

  primitive.def_impl(
    lambda *operands, **params: compiled(tuple(params.items()), *operands)
  )
  mlir.register_lowering(primitive, lower)


_register(linear_p, mlir.lower_fun(_run_linear))
_register(kernel_p, _lower_kernel)
ad.primitive_jvps[linear_p] = _linear_jvp
ad.primitive_transposes[linear_p] = _linear_transpose
batching.primitive_batchers[linear_p] = _linear_batch
ad.primitive_jvps[kernel_p] = _kernel_jvp
batching.primitive_batchers[kernel_p] = _kernel_batch


def each_device(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
  """Marks the shape of a kernel's result as varying over no mesh axis.

  Within `jax.shard_map` Pallas must be told over which mesh axes its results
  vary. A kernel that `kernel` calls runs on each device separately, so there
  are none.
  """
  none = {"manual_axis_type": jax.sharding.ManualAxisType()}
  return jax.ShapeDtypeStruct(shape.shape, shape.dtype, **none)
