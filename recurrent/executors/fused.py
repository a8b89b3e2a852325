"""`"fused"` runs a `GatedCell` with a custom reverse pass.

The reverse pass that JAX derives for a scan adds to every weight gradient at
every time step: a product with few rows, and a read and a write of the whole
matrix. Here the reverse loop contains only the pullback of `gate` and one
product with the recurrent weights. All weight gradients are computed after the
loop, by one product over all time steps. That product is the pullback of
`recur` at the stacked carries, with time as one more batch axis, so it is
correct for any structure of the weights.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.xla_metadata import set_xla_metadata
from jax.interpreters import partial_eval

from recurrent.executors.scan import time_step
from recurrent.kernels import transforms
from recurrent.masking import (
  TimeSteps,
  add,
  add_wide,
  at,
  blank,
  hold,
  length,
  restart,
  zeros,
)
from recurrent.numerics import wide_dtype
from recurrent.rows import undivided

# The name (`checkpoint_name`) of the carries before each time step. With
# `remat="gates"`, `unroll` stores only the arrays of this name.
CARRIES = "recurrent_carries"


def fused(cell, reverse, params, initial, carry, time_steps, recompute=False):
  """Computes what `scan` computes, with the reverse pass below.

  With `recompute` the reverse pass recomputes the results of `recur` in bulk,
  and the forward pass does not store them.
  """
  static = (cell, reverse, recompute)
  return transforms.call(FUSED, static, params(), initial, carry, time_steps)


def run(cell, reverse, recompute, params, initial, carry, time_steps):
  """Runs the forward loop without a custom reverse pass."""
  del recompute
  step = functools.partial(time_step, cell)
  return plain_loop(step, params, initial, carry, time_steps, reverse)


def tangent(cell, reverse, recompute, kept, d_args):
  """Forward derivatives, by the plain loop."""
  params, initial, carry, time_steps, _ = kept
  loop = functools.partial(run, cell, reverse, recompute)
  return jax.jvp(loop, (params, initial, carry, time_steps), d_args)[1]


def plain_loop(time_step, fixed, rows, carry, xs, reverse):
  """Runs `time_step(fixed, rows, carry, x)` over time with `jax.lax.scan`.

  The kernels provide a `scan` with the same arguments. They treat `fixed`, such
  as weights, and `rows`, arrays [batch, ...], differently.

  On a CPU the slices of a time step are taken by a function that is not
  inlined. Otherwise XLA fuses the slice with the gates into one loop, which it
  does not vectorise, and the loop of an LSTM takes twice as long. The cause is
  that the slice is split into gates afterwards. If all arrays are as wide as
  the carry, as in an RNN, nothing is split and a plain scan runs.
  """
  carry, xs = undivided((carry, xs))

  def step(carry, now):
    return undivided(time_step(fixed, rows, *undivided((carry, now))))

  def plain(carry, xs):
    return jax.lax.scan(step, carry, xs, reverse=reverse)

  def apart(carry, xs):
    # XLA would move an array of one value, such as the cotangent of outputs
    # that the loss does not read, into the loop, and write it at each time
    # step.
    xs = jax.lax.optimization_barrier(xs)

    def body(carry, index):
      with set_xla_metadata(inlineable="false"):
        now = _cut(xs, index)
      return step(carry, now)

    time_steps = jnp.arange(length(xs))
    return jax.lax.scan(body, carry, time_steps, reverse=reverse)

  whole = {x.shape for x in jax.tree.leaves(carry)}
  if all(x.shape[1:] in whole for x in jax.tree.leaves(xs) if x.ndim > 2):
    return plain(carry, xs)
  return jax.lax.platform_dependent(carry, xs, cpu=apart, default=plain)


@jax.jit
def _cut(xs, index):
  cut = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)
  return jax.tree.map(lambda x: cut(x, index), xs)


def forward(
  cell, reverse, recompute, params, initial, carry, time_steps, loop=plain_loop
):
  """Runs the forward pass and saves what `backward` and `tangent` need.

  These are the carries before each time step and, without `recompute`, the
  results of `recur`. Of the two only `tangent` reads the first carry.
  """

  def time_step(params, initial, carry, now):
    carry = restart(now.resets, initial, carry)
    mixed = undivided(cell.recur(params, carry))
    stepped, outputs = cell.gate(params, carry, now.projected, mixed)
    saved = (carry, None if recompute else mixed)
    return (
      hold(now.mask, stepped, carry),
      (blank(now.mask, outputs), saved),
    )

  last, (outputs, saved) = loop(
    time_step, params, initial, carry, time_steps, reverse
  )
  carries, mixed = saved
  saved = (checkpoint_name(carries, CARRIES), mixed)
  return (last, outputs), (params, initial, carry, time_steps, saved)


def backward(cell, reverse, recompute, kept, cotangents, **options):
  """Runs `reverse_loop`, then computes all weight gradients in bulk."""
  found = reverse_loop(cell, reverse, recompute, kept, cotangents, **options)
  params, _, _, _, (carries, _) = kept
  recur = lambda params: cell.recur(bulk_gradients(params), carries)
  (d_params,) = jax.vjp(recur, params)[1](found.mixed)
  d_params = add(d_params, found.params)
  # None stands for the zero cotangent of the Boolean mask and resets.
  time_steps = TimeSteps(found.projected, None, None)
  return d_params, found.initial, found.carry, time_steps


class Cotangents(NamedTuple):
  """The results of the reverse loop: cotangents of the loop's arguments.

  Attributes:
    params: cotangents of the parameters that `gate` reads, zeros for others.
    initial: cotangent of the initial carry.
    carry: cotangent of the first carry.
    projected: cotangents of the projected inputs.
    mixed: cotangents of the results of `recur`.
  """

  params: Any
  initial: Any
  carry: Any
  projected: Any
  mixed: Any


def reverse_loop(
  cell,
  reverse,
  recompute,
  kept,
  cotangents,
  loop=plain_loop,
  gate_in_bulk=False,
) -> Cotangents:
  """Runs the loop of the reverse pass.

  Args:
    cell: a gated cell.
    reverse: whether the forward loop ran from the last time step to the first.
    recompute: whether the results of `recur` are recomputed.
    kept: the values that `forward` saved.
    cotangents: of the last carry and of the outputs.
    loop: runs a time step over time, as `plain_loop`.
    gate_in_bulk: whether the gradients of the parameters that `gate` reads are
      computed after the loop, by a second pullback over all time steps. This is
      for a loop that cannot sum such gradients.

  Returns:
    The cotangents, of time-major arrays.
  """
  params, initial, _, time_steps, (carries, mixed) = kept
  d_carry, d_outputs = cotangents
  if recompute:
    mixed = cell.recur(params, carries)
  in_gate = _used_by_gate(cell, params, carries, time_steps.projected, mixed)
  in_loop = [used and not gate_in_bulk for used in in_gate]
  late = in_loop != in_gate

  # Only floating-point leaves have a gradient: a count or a mask has none.
  floats, real = _floats(initial), _floats(time_steps.projected)
  moving = lambda carry: _partition(carry, floats)[0]

  def time_step(params, nothing, accumulated, now):
    del nothing
    d_carry, d_initial, d_gate_params = accumulated
    now, carry, mixed, d_outputs = now
    carry, whole = _partition(carry, floats)
    projected, with_masks = _partition(now.projected, real)
    gate_params, rebuild = _partition(params, in_loop)

    def gate(gate_params, carry, projected, mixed):
      stepped, outputs = cell.gate(
        rebuild(gate_params), whole(carry), with_masks(projected), mixed
      )
      return moving(stepped), outputs

    pull_gate = jax.vjp(gate, gate_params, carry, projected, mixed)[1]
    d_stepped = blank(now.mask, d_carry)
    d_params, d_previous, d_projected, d_mixed = pull_gate(
      (d_stepped, blank(now.mask, d_outputs))
    )
    # If `gate` only adds `projected` and `mixed`, their cotangents are one
    # array, which is saved once.
    same = len(d_projected) == 1 and d_projected[0] is d_mixed
    d_mixed = undivided(d_mixed)
    d_projected = [d_mixed] if same else undivided(d_projected)
    recur = lambda carry: cell.recur(params, whole(carry))
    pull_recur = jax.vjp(recur, carry)[1]
    d_previous = add(d_previous, undivided(pull_recur(d_mixed)[0]))
    if now.mask is not None:
      d_previous = hold(now.mask, d_previous, d_carry)
    if now.resets is not None:
      d_initial = add(
        d_initial, hold(now.resets, d_previous, zeros(d_previous))
      )
      d_previous = blank(now.resets, d_previous, keep=False)
    accumulated = (d_previous, d_initial, add_wide(d_gate_params, d_params))
    saved = (
      d_projected,
      None if same else d_mixed,
      d_stepped if late else None,
    )
    return accumulated, saved

  wide = lambda x: jnp.zeros_like(x, wide_dtype(x.dtype))
  gate_params, rebuild = _partition(params, in_gate)
  start = (
    moving(d_carry),
    zeros(moving(initial)) if time_steps.resets is not None else None,
    jax.tree.map(wide, [] if late else gate_params),
  )
  xs = (time_steps, carries, mixed, d_outputs)
  (d_carry, d_initial, d_gate_params), saved = loop(
    time_step, params, None, start, xs, not reverse
  )
  d_projected, d_mixed, d_stepped = saved
  d_mixed = d_projected[0] if d_mixed is None else d_mixed
  d_initial = zeros(moving(initial)) if d_initial is None else d_initial
  if late:

    def gate(gate_params):
      stepped, outputs = cell.gate(
        rebuild(gate_params), carries, time_steps.projected, mixed
      )
      # The parameters are widened, so that their gradients are summed over all
      # time steps in a wide dtype.
      return moving(stepped), outputs.astype(d_outputs.dtype)

    widened = add_wide(jax.tree.map(wide, gate_params), gate_params)
    (d_gate_params,) = jax.vjp(gate, widened)[1](
      (d_stepped, blank(time_steps.mask, d_outputs))
    )
  d_gate_params = jax.tree.map(
    lambda d, x: d.astype(x.dtype), d_gate_params, gate_params
  )
  d_initial, d_carry, d_projected = (
    _partition(tree, chosen)[1](d, None)
    for tree, chosen, d in (
      (initial, floats, d_initial),
      (initial, floats, d_carry),
      (time_steps.projected, real, d_projected),
    )
  )
  d_params = rebuild(d_gate_params, zeros(params))
  return Cotangents(d_params, d_initial, d_carry, d_projected, d_mixed)


FUSED = transforms.Passes(run, forward, tangent, backward)


def bulk_gradients(params):
  """Returns params unchanged, but with weight gradients that compile well.

  JAX computes the gradient of a matrix transposed, and transposes it back.
  XLA's CPU compiler fuses that transposition into the product, which then runs
  on a slow path: 1.4 to 2.2 times as long where two axes are summed over
  (batch, time). An optimisation barrier keeps the two apart. The transposition
  by itself costs next to nothing.
  """
  return transforms.call(BULK_GRADIENTS, (), params)


def _transposed_twice(_, d_params):
  def transpose_last(d):
    if d.ndim < 2:
      return d
    turned = jax.lax.optimization_barrier(jnp.swapaxes(d, -1, -2))
    return jnp.swapaxes(turned, -1, -2)

  return (jax.tree.map(transpose_last, d_params),)


BULK_GRADIENTS = transforms.Passes(
  run=lambda params: params,
  forward=lambda params: (params, None),
  tangent=lambda _, d_args: d_args[0],
  backward=_transposed_twice,
)


def _used_by_gate(cell, params, carries, projected, mixed) -> list[bool]:
  """Returns for each leaf of params whether `gate` reads it.

  By the contract of `GatedCell.gate` these leaves are small. Their gradients
  are summed inside the reverse loop; those of all others come from the bulk
  product.
  """
  args = jax.eval_shape(
    lambda: (params, *(at(x, 0) for x in (carries, projected, mixed)))
  )
  # Without the mesh axes over which the arrays vary in `jax.shard_map`.
  args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
  jaxpr = jax.make_jaxpr(cell.gate)(*args).jaxpr
  # An argument that is only passed to an inner `jit` which does not read it
  # does not count as read: dead code elimination removes it.
  _, read = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return list(read[: len(jax.tree.leaves(params))])


def _floats(tree) -> list[bool]:
  """Returns for each leaf whether it has a gradient, by its dtype."""
  return [jnp.issubdtype(x.dtype, jnp.inexact) for x in jax.tree.leaves(tree)]


def _partition(tree, chosen: list[bool]) -> tuple[list, Callable]:
  """Returns the chosen leaves, and a function that rebuilds the tree.

  The function takes new values of the chosen leaves, and a tree that has the
  other leaves: by default the same tree; None puts None in their place.
  """
  leaves, structure = jax.tree.flatten(tree)

  def rebuild(some, others=tree):
    some = iter(some)
    rest = [None] * len(leaves) if others is None else jax.tree.leaves(others)
    return jax.tree.unflatten(
      structure,
      [
        next(some) if pick else other
        for pick, other in zip(chosen, rest, strict=True)
      ],
    )

  return [x for x, pick in zip(leaves, chosen, strict=True) if pick], rebuild
