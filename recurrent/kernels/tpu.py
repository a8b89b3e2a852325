"""Loops over time as one TPU kernel (Pallas).

`scan` is `jax.lax.scan` for time steps that compute each row independently.
Weights are copied into VMEM once, and the carry stays there from the first time
step to the last. All other arrays are copied in blocks of time steps, each
while the block before it is computed. `linear_scan` is such a loop, with a
custom gradient.

On other platforms the same kernels are interpreted, which is slow and meant for
tests; the platform is known at lowering. Nothing was timed on a TPU:
docs/tpu.md.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.extend import core

from recurrent.kernels import transforms
from recurrent.kernels.linear_scan import by_kernel
from recurrent.kernels.traced import by_time_step, is_flag, traced
from recurrent.types import Array, Carry

# The greatest and, if possible, the least number of time steps in a block. More
# time steps do not hide more of the copies; with fewer, a copy is too short to
# be hidden behind the computation.
MOST_TIME_STEPS, LEAST_TIME_STEPS = 32, 8
# Bytes for all blocks, with two buffers each. A TPU v4 has 16 MiB of VMEM for
# the blocks, the weights, and the values that a time step computes; later TPUs
# have 64 or 128 MiB.
BLOCKS = 6 << 20
SCOPED = 16 << 20  # bytes of VMEM of a kernel by default
ROWS = 16  # a tile of bfloat16 has 16 rows, one of float32 has 8
LANES = 128


def scan(
  time_step: Callable[..., tuple[Carry, Any]],
  fixed: Any,
  rows: Any,
  carry: Carry,
  xs: Any,
  reverse: bool = False,
) -> tuple[Carry, Any]:
  """`jax.lax.scan` of `time_step(fixed, rows, carry, x) -> (carry, y)`.

  A time step must compute each row of the batch independently, since the rows
  may be split into blocks. The function defines no custom gradient.

  Args:
    time_step: computes one time step. Arrays that it does not read are not
      copied.
    fixed: a pytree of arrays that are the same for all rows and time steps,
      such as weights.
    rows: a pytree of arrays [batch, ...] that are the same for all time steps.
    carry: a pytree of arrays [batch, ...].
    xs: a pytree of arrays [time, batch, ...]. Flags are [time, batch], and a
      time step reads them as [batch, 1].
    reverse: whether to run from the last time step to the first.

  Returns:
    The carry after the last time step, and the ys, a pytree of arrays [time,
    batch, ...].
  """
  xs, now = by_time_step(xs)
  time, batch = jax.tree.leaves(xs)[0].shape[:2]
  end = jax.eval_shape(time_step, fixed, rows, carry, now)
  moving = jax.tree.leaves((now, end[1]))
  block, size = blocks(batch, time, moving)
  leaves, run = _flat(time_step, block, fixed, rows, carry, now, xs)
  kinds, operands = map(list, zip(*leaves, strict=True))
  ends = jax.tree.leaves(end[0])
  ys = [
    jax.ShapeDtypeStruct((time, *y.shape), y.dtype)
    for y in jax.tree.leaves(end[1])
  ]
  flags = [is_flag(x) for x in operands]
  last = pl.cdiv(time, size) - 1
  place = (lambda t: last - t) if reverse else (lambda t: t)

  def kernel(*refs):
    ins, refs = refs[: len(kinds)], refs[len(kinds) :]
    end, ys = refs[: len(ends)], refs[len(ends) :]
    t = pl.program_id(1)

    # The output block of the last carry is the same at all time steps, so it
    # stays in VMEM and holds the running carry.
    @pl.when(t == 0)
    def _():
      start = [ref for ref, kind in zip(ins, kinds, strict=True) if kind == "c"]
      for to, ref in zip(end, start, strict=True):
        to[...] = ref[...]

    time_steps = jnp.minimum(size, time - place(t) * size)

    def body(k, _):
      k = time_steps - 1 - k if reverse else k
      carry = iter(end)
      # Weights are read where they are used: as values outside the loop they
      # would not fit into registers.
      read = {
        "f": lambda ref: ref[...],
        "r": lambda ref: ref[...],
        "c": lambda ref: next(carry)[...],
        "x": lambda ref: ref[k],
      }
      values = [read[kind](ref) for ref, kind in zip(ins, kinds, strict=True)]
      values = [
        x != 0 if flag else x for x, flag in zip(values, flags, strict=True)
      ]
      values = run(*values)
      for to, value in zip(end, values[: len(ends)], strict=True):
        to[...] = value
      for to, value in zip(ys, values[len(ends) :], strict=True):
        to[k] = value
      return 0

    jax.lax.fori_loop(0, time_steps, body, 0)

  # The lengths and the indices of a block along the first axes of an array. A
  # block has all of the other axes.
  at = {
    "f": ((), lambda b, t: ()),
    "r": ((block,), lambda b, t: (b,)),
    "c": ((block,), lambda b, t: (b,)),
    "x": ((size, block), lambda b, t: (place(t), b)),
  }

  def spec(kind, x):
    lead, index = at[kind]
    rest = (0,) * (x.ndim - len(lead))
    return pl.BlockSpec(
      (*lead, *x.shape[len(lead) :]),
      lambda b, t: (*index(b, t), *rest),
      pipeline_mode=pl.Buffered(1) if kind == "f" else None,
    )

  # Flags are passed as float32, since Booleans have no good layout in memory.
  operands = [
    x.astype(jnp.float32) if flag else x
    for x, flag in zip(operands, flags, strict=True)
  ]
  call = lambda interpret: pl.pallas_call(
    kernel,
    grid=(pl.cdiv(batch, block), last + 1),
    in_specs=list(map(spec, kinds, operands)),
    out_specs=[spec("c", x) for x in ends] + [spec("x", y) for y in ys],
    out_shape=list(map(transforms.each_device, [*ends, *ys])),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary"),
      vmem_limit_bytes=limit(
        [x for kind, x in zip(kinds, operands, strict=True) if kind == "f"],
        [(block, *x.shape[1:]) for x in moving],
      ),
    ),
    interpret=interpret,
    name="recurrent_scan",
  )
  out = jax.lax.platform_dependent(
    *operands, tpu=call(False), default=call(True)
  )
  return jax.tree.unflatten(jax.tree.structure(end), out)


def _flat(time_step, block, fixed, rows, carry, now, xs):
  """Returns the leaves that a time step reads, and a function of them.

  Returns:
    Pairs of a kind ("f" fixed, "r" rows, "c" carry, "x" xs) and a leaf; and a
    function of the leaves, for a block of rows, which returns a list.
  """
  leaves, jaxpr, held = traced(time_step, block, fixed, rows, carry, now, xs)
  shapes = [x.shape if kind == "f" else None for kind, x in leaves]

  def run(*values):
    values = [
      x if shape is None else x.reshape(shape)
      for x, shape in zip(values, shapes, strict=True)
    ]
    closed = core.ClosedJaxpr(jaxpr, values[:held])
    return core.jaxpr_as_fun(closed)(*values[held:])

  # Tiles have two axes, so a vector is passed as a matrix with one row.
  return [
    (kind, x.reshape((1, -1)) if x.ndim < 2 else x) for kind, x in leaves
  ], run


def blocks(batch: int, time: int, moving: list[Any]) -> tuple[int, int]:
  """Returns the number of rows and of time steps in a block.

  A block has all rows if at least `LEAST_TIME_STEPS` time steps of them fit,
  since a product with the weights takes as long for one row as for 128.

  Args:
    batch: number of rows.
    time: number of time steps.
    moving: arrays [batch, ...] that a time step reads and writes.

  Returns:
    The rows of a block, a multiple of 16 or all, and its time steps.
  """
  rows = batch
  while True:
    time_step = 2 * sum(tiled((rows, *x.shape[1:]), x.dtype) for x in moving)
    time_steps = min(time, MOST_TIME_STEPS, BLOCKS // time_step)
    if time_steps >= min(time, LEAST_TIME_STEPS) or rows <= ROWS:
      return rows, max(1, time_steps)
    rows = pl.cdiv(rows // 2, ROWS) * ROWS


def limit(fixed: list[Array], moving: list[tuple[int, ...]]) -> int:
  """Returns the bytes of VMEM for weights, blocks and computed values."""
  weights = sum(tiled(x.shape, x.dtype) for x in fixed)
  # A guess: four times what a time step reads and writes, in float32.
  values = 4 * sum(tiled(shape, jnp.float32) for shape in moving)
  return max(SCOPED, weights + BLOCKS + values)


def tiled(shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> int:
  """Returns the bytes of an array in VMEM, with its last two axes tiled."""
  item = jnp.dtype(dtype).itemsize
  *lead, rows, lanes = (1, 1, *shape)
  rows = pl.cdiv(rows, 32 // item) * (32 // item)
  return math.prod(lead) * rows * pl.cdiv(lanes, LANES) * LANES * item


def _linear(reverse, decay, drive, start, resets):
  shape, time = drive.shape, len(drive)
  if not start.ndim:
    decay, drive, start = decay[:, None], drive[:, None], start[None]
    resets = None if resets is None else resets[:, None]
  split = lambda x, *lead: [
    part.reshape(*lead, -1, x.shape[-1]) for part in complex_parts(x)
  ]
  if resets is not None:
    # Resets that are the same for all channels keep a last axis of length 1.
    resets = jnp.broadcast_to(resets, (*drive.shape[:-1], resets.shape[-1]))
    (resets,) = split(resets, time)

  def time_step(fixed, nothing, state, now):
    del fixed, nothing
    decay, drive, reset = now
    kept = multiply(decay, state)
    if reset is not None:
      reset = jnp.broadcast_to(reset, kept[0].shape)
      kept = [jnp.where(reset, jnp.zeros_like(x), x) for x in kept]
    state = [a + b for a, b in zip(kept, drive, strict=True)]
    return state, state

  xs = (split(decay, time), split(drive, time), resets)
  states = scan(time_step, (), (), split(start), xs, reverse)[1]
  states = [x.reshape(shape) for x in states]
  return jax.lax.complex(*states) if len(states) > 1 else states[0]


# `recurrent.kernels.linear_scan` as one kernel. Complex numbers are pairs of
# real numbers. The last axis, of channels, is in lanes; all others are rows.
linear_scan = by_kernel(_linear)


def complex_parts(array):
  """Returns [real, imaginary] for a complex array, [array] for a real one."""
  complex_ = jnp.issubdtype(array.dtype, jnp.complexfloating)
  return [array.real, array.imag] if complex_ else [array]


def multiply(a, b):
  """Multiplies two numbers that are given as `complex_parts`."""
  if len(a) == 1:
    return [a[0] * b[0]]
  return [a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]]
