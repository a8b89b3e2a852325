"""`unroll`: a cell over time, with masks, resets, a carry in and out.

Two executors so far, which agree forward and in every gradient:

`"scan"` is the specification: `jax.lax.scan` over `cell.step`, differentiated
by JAX. It runs every cell and every transformation.

`"fused"` runs a `GatedCell` with a reverse pass of its own. JAX's reverse
sweep through a scan adds into every weight gradient at every tick: one skinny
product and one read and write of the whole matrix. Here the reverse loop
holds only `gate`'s pullback and one product with the recurrent weights; all
weight gradients are one product over all ticks after it. That product is
nothing but `recur`'s own pullback over the stacked carries, time being one
more batch axis, so it is right for any structure of the weights.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from recurrent.cells.base import Cell, GatedCell, cast
from recurrent.types import Array, Carry, Mask, Params

METHODS = ("auto", "scan", "fused")


def unroll(
  cell: Cell,
  params: Params,
  carry: Carry | None,
  inputs: Any,
  *,
  mask: Mask | None = None,
  resets: Mask | None = None,
  reverse: bool = False,
  method: str = "auto",
  remat: int | None = None,
) -> tuple[Carry, Array]:
  """Runs a cell over time.

  Args:
    cell: any cell.
    params: its parameters. They are cast to the dtype of the inputs, once.
    carry: [batch, ...] as `cell.initial_carry` gives it, or None for that.
    inputs: [batch, time, features], or a pytree of arrays [batch, time, ...]
      for a cell that takes one.
    mask: [batch, time], True where a tick is real. Elsewhere the carry is
      held and the outputs are zero, whatever the inputs hold, NaN included.
      A row may have no real tick at all.
    resets: [batch, time], True where a tick starts from the initial carry. At
      a masked tick a reset does nothing: that tick does not take place.
    reverse: from the last tick to the first; outputs stay at their inputs'
      places.
    method: "scan", "fused", or "auto": "fused" for a `GatedCell`.
    remat: if given, only the carry of every `remat`-th tick is kept for the
      reverse pass and the ticks between are computed again: memory goes from
      O(time) to O(time / remat + remat), for one more forward pass.

  Returns:
    The carry after the last tick that was run, and outputs [batch, time, H]
    in the dtype of the inputs.

  Raises:
    ValueError: if an argument has the wrong shape, or the cell cannot run by
      the method that was asked for.
  """
  method = resolve_method(cell, method)
  batch, time = _batch_and_time(inputs)
  _check_flags("mask", mask, (batch, time))
  _check_flags("resets", resets, (batch, time))
  if remat is not None and (not isinstance(remat, int) or remat < 1):
    raise ValueError(f"remat must be at least 1 tick or None, got {remat}")

  initial = cell.initial_carry(params, (batch,))
  carry = initial if carry is None else carry
  _check_carry(carry, initial)
  dtype = _compute_dtype(inputs)
  if mask is not None:
    # Garbage must not reach the arithmetic: a NaN that `where` hides in the
    # forward pass comes back in the gradient (NaN * 0).
    inputs = jax.tree.map(lambda x: _select(mask, x, jnp.zeros_like(x)), inputs)
    resets = None if resets is None else resets & mask

  # Time moves to the front once, so that every slice in the loop is
  # contiguous, and back once.
  xs = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (inputs, mask, resets))
  run = functools.partial(_run, cell, method, reverse, dtype, params, initial)
  if remat is None or remat >= time:
    carry, outputs = run(carry, xs)
  else:
    carry, outputs = _in_chunks(jax.checkpoint(run), remat, reverse, carry, xs)
  return carry, jnp.swapaxes(outputs, 0, 1)


def resolve_method(cell: Cell, method: str) -> str:
  """The method that `unroll` will run a cell by.

  Args:
    cell: any cell.
    method: one of `METHODS`.

  Returns:
    The method itself, or what "auto" stands for.

  Raises:
    ValueError: if there is no such method, or the cell cannot run by it.
  """
  if method not in METHODS:
    raise ValueError(f"method must be one of {METHODS}, got {method!r}")
  gated = isinstance(cell, GatedCell)
  if method == "auto":
    return "fused" if gated else "scan"
  if method == "fused" and not gated:
    raise ValueError(
      f"{type(cell).__name__} has no `recur` and `gate`, which"
      ' method="fused" needs; use method="scan"'
    )
  return method


def restart(resets: Array | None, initial: Carry, carry: Carry) -> Carry:
  """The initial carry in the rows that start afresh, the carry in the others.

  Args:
    resets: [batch] bool, or None for no row.
    initial: [batch, ...], as `cell.initial_carry` gives it.
    carry: [batch, ...].

  Returns:
    A carry like both.
  """
  if resets is None:
    return carry
  return jax.tree.map(functools.partial(_select, resets), initial, carry)


class _Ticks(NamedTuple):
  """What the loop reads at each tick, all [time, batch, ...]."""

  projected: Any
  mask: Array | None
  resets: Array | None


def _run(cell, method, reverse, dtype, params, initial, carry, xs):
  """Projects all inputs in bulk, then loops; xs are time-major."""
  inputs, mask, resets = xs
  wide, params = params, cast(params, dtype)
  ticks = _Ticks(cell.project(params, inputs), mask, resets)
  if ticks.mask is None and ticks.resets is None and _length(xs) == 1:
    # One tick, as in decoding: no loop, no custom gradient.
    carry, outputs = cell.step(params, carry, _at(ticks.projected, 0))
    return carry, outputs[None]
  if method == "fused":
    return _fused_loop(cell, reverse, params, initial, carry, ticks)
  # The cast stands inside the loop, so that its pullback does too, and the
  # weight gradients are summed over time in the width of the parameters.
  narrow = lambda: cast(wide, dtype)
  return _scan_loop(cell, reverse, narrow, initial, carry, ticks)


def _scan_loop(cell, reverse, params, initial, carry, ticks):
  """The specification; params is a function that gives them."""

  def tick(carry, now):
    carry = restart(now.resets, initial, carry)
    stepped, outputs = cell.step(params(), carry, now.projected)
    return _hold(now.mask, stepped, carry), _blank(now.mask, outputs)

  return jax.lax.scan(tick, carry, ticks, reverse=reverse)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fused_loop(cell, reverse, params, initial, carry, ticks):
  """The same as `_scan_loop`, with the reverse pass below."""
  return _scan_loop(cell, reverse, lambda: params, initial, carry, ticks)


def _fused_forward(cell, reverse, params, initial, carry, ticks):

  def tick(carry, now):
    carry = restart(now.resets, initial, carry)
    mixed = cell.recur(params, carry)
    stepped, outputs = cell.gate(params, carry, now.projected, mixed)
    saved = (carry, mixed)
    return (
      _hold(now.mask, stepped, carry),
      (_blank(now.mask, outputs), saved),
    )

  carry, (outputs, saved) = jax.lax.scan(tick, carry, ticks, reverse=reverse)
  return (carry, outputs), (params, initial, ticks, saved)


def _fused_backward(cell, reverse, residuals, cotangents):
  params, initial, ticks, (carries, mixed) = residuals
  d_carry, d_outputs = cotangents
  in_gate = _used_by_gate(cell, params, carries, ticks.projected, mixed)
  gate_params, rebuild = _partition(params, in_gate)

  # Only floating-point leaves of a carry have a gradient: a count has none.
  floats = [
    jnp.issubdtype(x.dtype, jnp.inexact) for x in jax.tree.leaves(initial)
  ]
  moving = lambda carry: _partition(carry, floats)[0]

  def tick(accumulated, now):
    d_carry, d_initial, d_gate_params = accumulated
    now, carry, mixed, d_outputs = now
    carry, whole = _partition(carry, floats)

    def gate(gate_params, carry, projected, mixed):
      stepped, outputs = cell.gate(
        rebuild(gate_params), whole(carry), projected, mixed
      )
      return moving(stepped), outputs

    pull_gate = jax.vjp(gate, gate_params, carry, now.projected, mixed)[1]
    d_stepped = _blank(now.mask, d_carry)
    d_params, d_previous, d_projected, d_mixed = pull_gate(
      (d_stepped, _blank(now.mask, d_outputs))
    )
    recur = lambda carry: cell.recur(params, whole(carry))
    pull_recur = jax.vjp(recur, carry)[1]
    d_previous = _add(d_previous, pull_recur(d_mixed)[0])
    if now.mask is not None:
      d_previous = _hold(now.mask, d_previous, d_carry)
    if now.resets is not None:
      d_initial = _add(
        d_initial, _hold(now.resets, d_previous, _zeros(d_previous))
      )
      d_previous = _blank(now.resets, d_previous, keep=False)
    accumulated = (d_previous, d_initial, _add_wide(d_gate_params, d_params))
    # Where a gate only adds the two, their cotangents are one array: save it
    # once.
    same = all(
      a is b
      for a, b in zip(
        jax.tree.leaves(d_projected), jax.tree.leaves(d_mixed), strict=False
      )
    ) and (jax.tree.structure(d_projected) == jax.tree.structure(d_mixed))
    return accumulated, (d_projected, None if same else d_mixed)

  wide = lambda x: jnp.zeros(
    x.shape, jnp.float32 if x.dtype.itemsize < 4 else x.dtype
  )
  start = (
    moving(d_carry),
    _zeros(moving(initial)),
    jax.tree.map(wide, gate_params),
  )
  (d_carry, d_initial, d_gate_params), (d_projected, d_mixed) = jax.lax.scan(
    tick, start, (ticks, carries, mixed, d_outputs), reverse=not reverse
  )
  d_mixed = d_projected if d_mixed is None else d_mixed
  pull_recur = jax.vjp(lambda params: cell.recur(params, carries), params)[1]
  (d_params,) = pull_recur(d_mixed)
  d_gate_params = jax.tree.map(
    lambda d, x: d.astype(x.dtype), d_gate_params, gate_params
  )
  d_params = _add(d_params, rebuild(d_gate_params, _zeros(params)))
  # None stands for the zero cotangent of the Boolean mask and resets.
  nothing = jax.tree.map(
    lambda x: np.zeros(x.shape, jax.dtypes.float0), initial
  )
  d_initial, d_carry = (
    _partition(nothing, floats)[1](x) for x in (d_initial, d_carry)
  )
  return d_params, d_initial, d_carry, _Ticks(d_projected, None, None)


_fused_loop.defvjp(_fused_forward, _fused_backward)


def _used_by_gate(cell, params, carries, projected, mixed) -> list[bool]:
  """Which leaves of params `gate` reads: small ones, by its contract.

  Their gradients are summed inside the reverse loop; all the others come from
  the bulk product.
  """
  args = jax.eval_shape(
    lambda: (params, *(_at(x, 0) for x in (carries, projected, mixed)))
  )
  jaxpr = jax.make_jaxpr(cell.gate)(*args).jaxpr
  # What a jit inside is handed, and does not read, is not read.
  _, read = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return list(read[: len(jax.tree.leaves(params))])


def _partition(tree, chosen: list[bool]) -> tuple[list, Callable]:
  """The chosen leaves, and what puts (others) and them together again."""
  leaves, structure = jax.tree.flatten(tree)

  def rebuild(some, others=tree):
    some = iter(some)
    return jax.tree.unflatten(
      structure,
      [
        next(some) if pick else other
        for pick, other in zip(chosen, jax.tree.leaves(others), strict=True)
      ],
    )

  return [x for x, pick in zip(leaves, chosen, strict=True) if pick], rebuild


def _in_chunks(run, size, reverse, carry, xs):
  """Runs `size` ticks at a time, and what is left over at the end."""
  time = _length(xs)
  whole = time // size * size
  # The loop meets the left-over ticks last, wherever it begins.
  cut = time - whole if reverse else whole
  rest, main = (slice(0, cut), slice(cut, time))[:: 1 if reverse else -1]
  chunks = jax.tree.map(lambda x: x[main].reshape((-1, size, *x.shape[1:])), xs)
  carry, outputs = jax.lax.scan(run, carry, chunks, reverse=reverse)
  outputs = outputs.reshape((whole, *outputs.shape[2:]))
  if whole == time:
    return carry, outputs
  carry, last = run(carry, jax.tree.map(lambda x: x[rest], xs))
  parts = [last, outputs] if reverse else [outputs, last]
  return carry, jnp.concatenate(parts)


def _select(flags, new, old):
  """`where` with flags [batch, ...] broadcast over the trailing axes."""
  flags = jnp.expand_dims(flags, range(flags.ndim, new.ndim))
  return jnp.where(jnp.broadcast_to(flags, new.shape), new, old)


def _hold(mask, new, old):
  """New where the tick is real, old elsewhere."""
  if mask is None:
    return new
  return jax.tree.map(functools.partial(_select, mask), new, old)


def _blank(flags, tree, keep=True):
  """The tree where flags == keep, zero elsewhere."""
  if flags is None:
    return tree
  flags = flags if keep else ~flags
  return jax.tree.map(lambda x: _select(flags, x, jnp.zeros_like(x)), tree)


def _zeros(tree):
  return jax.tree.map(jnp.zeros_like, tree)


def _add(a, b):
  return jax.tree.map(jnp.add, a, b)


def _add_wide(total, tree):
  return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, tree)


def _at(tree, index):
  return jax.tree.map(lambda x: x[index], tree)


def _length(tree) -> int:
  return jax.tree.leaves(tree)[0].shape[0]


def _batch_and_time(inputs) -> tuple[int, int]:
  shapes = [x.shape for x in jax.tree.leaves(inputs)]
  # Beside others a leaf may do without features; alone it needs them.
  if any(len(s) < (2 if len(shapes) > 1 else 3) for s in shapes):
    raise ValueError(
      f"inputs must be [batch, time, features], got {shapes[0]};"
      " add the missing axis, or use vmap"
    )
  if len({s[:2] for s in shapes}) != 1:
    raise ValueError(f"inputs must share [batch, time], got {shapes}")
  batch, time = shapes[0][:2]
  if time < 1:
    raise ValueError(f"inputs must have at least one tick, got {shapes[0]}")
  return batch, time


def _compute_dtype(inputs):
  """What the floating-point leaves of the inputs have together."""
  dtypes = [x.dtype for x in jax.tree.leaves(inputs)]
  floats = [x for x in dtypes if jnp.issubdtype(x, jnp.floating)]
  if not floats:
    raise ValueError(
      f"inputs must be floating-point, got {', '.join(map(str, dtypes))};"
      " cast or embed them"
    )
  return jnp.result_type(*floats)


def _check_flags(name, flags, shape):
  if flags is None:
    return
  if flags.shape != shape:
    hint = "; transpose it?" if flags.shape == shape[::-1] else ""
    raise ValueError(
      f"{name} must be [batch, time] = {shape}, got {flags.shape}{hint}"
    )
  if flags.dtype != jnp.bool_:
    raise ValueError(f"{name} must be Boolean, got {flags.dtype}")


def _check_carry(carry, initial):
  got, want = (
    jax.tree.map(lambda x: (x.shape, str(x.dtype)), t) for t in (carry, initial)
  )
  # NamedTuples of two cells are equal if their fields are: hence the structure.
  if got != want or jax.tree.structure(carry) != jax.tree.structure(initial):
    raise ValueError(f"carry must be {want}, got {got}")
