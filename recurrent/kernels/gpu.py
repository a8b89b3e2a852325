"""Loops over time as one GPU kernel (Pallas, Mosaic GPU).

`scan` is `jax.lax.scan` for time steps that `tiles` can compute. Each block of
16 rows is one program on one multiprocessor. It copies the weights into shared
memory once, keeps the carry in registers from the first time step to the last,
and runs products on the tensor cores. Each warpgroup computes 64 units.
Warpgroups exchange only the factors of products that depend on the rows,
through shared memory, with one barrier for each product.

The factors of a product are 16 bits wide. A float32 factor is split into two
bfloat16 terms: its rounded value and the remainder. A product of two such
factors is the sum of three products of terms; the product of both remainders is
too small to matter. This has some 17 bits of precision, where TF32 would have
11.

`linear_scan` is the elementwise linear recurrence, with one thread per element.

The kernels are for GPUs of compute capability 9.0 (Hopper), whose warpgroups
can multiply factors in shared memory. They have not been timed: docs/gpu.md.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from recurrent.kernels.linear_scan import by_kernel
from recurrent.kernels.tiles import (
  ROWS,
  TILE,
  UNITS,
  Matrix,
  Product,
  Unfit,
  Value,
  compute,
  tile,
)
from recurrent.kernels.tpu import complex_parts, multiply
from recurrent.kernels.traced import by_time_step, traced
from recurrent.types import Array, Carry

SHARED = 227 << 10  # bytes of shared memory that a program can have
WARPGROUPS = 8  # at most, in a program
LANES = 128  # threads of a warpgroup
AHEAD = 8  # time steps that `linear_scan` reads before it computes them

_WARPGROUP = plgpu.CompilerParams(
  lowering_semantics=plgpu.LoweringSemantics.Warpgroup
)
# Before jax 0.12 `load` must be given an index beside the reference.
_NO_INDEX: Any = [()] * ("idx" in inspect.signature(plgpu.load).parameters)


def read(ref: Any, index: Any) -> Array:
  """An entry of an array in the GPU's main memory."""
  # `optimized` avoids bank conflicts, which main memory does not have.
  return plgpu.load(ref.at[index], *_NO_INDEX, optimized=False)


def write(ref: Any, index: Any, value: Array) -> None:
  """Sets an entry of an array in the GPU's main memory."""
  if hasattr(plgpu, "store"):  # since jax 0.12; plain stores are optimized
    plgpu.store(ref.at[index], value, optimized=False)
  else:
    ref[index] = value


def scan(
  time_step: Callable[..., tuple[Carry, Any]],
  fixed: Any,
  rows: Any,
  carry: Carry,
  xs: Any,
  reverse: bool = False,
) -> tuple[Carry, Any]:
  """`jax.lax.scan` of `time_step(fixed, rows, carry, x) -> (carry, y)`.

  A time step must compute each row of the batch independently, and may combine
  units only by products with weights. The function defines no custom gradient.

  Args:
    time_step: computes one time step.
    fixed: a pytree of arrays that are the same for all rows and time steps:
      weights [n H, m H], vectors [n H], scalars.
    rows: a pytree of arrays [batch, n H] that are the same for all time steps.
    carry: a pytree of arrays [batch, H].
    xs: a pytree of arrays [time, batch, n H]. Flags are [time, batch], and a
      time step reads them as [batch, 1].
    reverse: whether to run from the last time step to the first.

  Returns:
    The carry after the last time step, and the ys, a pytree of arrays [time,
    batch, n H].

  Raises:
    ValueError: if the kernel cannot compute the time step, or its weights do
      not fit into shared memory.
  """
  plan = _Plan(time_step, fixed, rows, carry, xs)
  plan.check_size()
  return plan.run(reverse)


def unfit(
  time_step: Callable[..., Any], fixed: Any, rows: Any, carry: Any, xs: Any
) -> str:
  """Returns why `scan` cannot run a time step, as "has ..."; empty if it can.

  It does not check whether the weights fit into shared memory.

  Args:
    time_step: see `scan`.
    fixed: see `scan`; here and below, shapes and dtypes are enough.
    rows: see `scan`.
    carry: see `scan`.
    xs: see `scan`.
  """
  try:
    jax.eval_shape(
      lambda *args: _Plan(time_step, *args) and None, fixed, rows, carry, xs
    )
  except Unfit as error:
    return str(error)
  return ""


class _Plan:
  """The kernel for one time step: the arrays that it reads, its products."""

  def __init__(self, time_step, fixed, rows, carry, xs):
    xs, now = by_time_step(xs)
    self.features = jax.tree.leaves(carry)[0].shape[-1]
    self.time, self.batch = jax.tree.leaves(xs)[0].shape[:2]
    if self.features < 2:
      raise Unfit("has a single unit")
    if any(x.shape[1:] != (self.features,) for x in jax.tree.leaves(carry)):
      raise Unfit("has a carry of several widths")
    # The time step is traced with a number of rows that differs from every
    # width, so that shapes tell rows and columns apart.
    self.traced_rows = 2 * self.features + 1
    self.leaves, self.jaxpr, _ = traced(
      time_step, self.traced_rows, fixed, rows, carry, now, xs
    )
    ends = jax.eval_shape(time_step, fixed, rows, carry, now)
    self.ends, self.structure = jax.tree.flatten(ends)
    self.carries = len(jax.tree.leaves(ends[0]))
    self.groups = pl.cdiv(self.features, UNITS)
    self.blocks = pl.cdiv(self.batch, ROWS)
    self.count = [self._tiles(kind, x) for kind, x in self.leaves]
    self.out_count = [self._tiles("c", x) for x in self.ends]
    self.products: list[Product] = []
    # This abstract run collects the products, and raises `Unfit` early.
    jax.eval_shape(self._rehearse)

  def _tiles(self, kind, x) -> int:
    """Returns how many tiles an array has; 0 for weights, flags and scalars."""
    shape = x.shape if kind == "f" else x.shape[2 if kind == "x" else 1 :]
    if not shape or (kind == "f" and len(shape) == 2):
      return 0
    if len(shape) != 1:
      raise Unfit("has arrays that are not vectors in each row")
    if shape == (1,) and kind == "x":
      return 0
    if shape[0] % self.features:
      raise Unfit(
        f"has an array of {shape[0]} columns, no multiple of its units"
      )
    return shape[0] // self.features

  def _is_matrix(self, index) -> bool:
    kind, x = self.leaves[index]
    return kind == "f" and x.ndim == 2

  def _rehearse(self):
    def product(what, parts):
      del parts
      self.products.append(what)
      return [jnp.zeros(TILE, jnp.float32)] * what.blocks_out

    values = [
      Value([jnp.zeros(TILE if x.ndim else (), x.dtype)] * max(1, n))
      for (_, x), n in zip(self.leaves, self.count, strict=True)
    ]
    return [x.parts for x in self._compute(values, product)]

  def _compute(self, values, product):
    values = [
      Matrix(i, False, self.leaves[i][1].shape) if self._is_matrix(i) else value
      for i, value in enumerate(values)
    ]
    return compute(self.jaxpr, values, self.features, self.traced_rows, product)

  def check_size(self):
    """Raises ValueError unless one program can hold all weights and units."""
    shared = 0
    for what in self.products:
      tiles = self.groups * what.blocks_in
      weights = tiles * self.groups * what.blocks_out * UNITS * UNITS
      shared += 2 * _terms(self._weight_dtype(what)) * weights
      shared += 2 * _terms(what.dtype) * 2 * tiles * UNITS * ROWS
    if shared > SHARED - 1024 or self.groups > WARPGROUPS:
      raise ValueError(
        f"a time step of {self.features} units takes {shared >> 10} KiB of"
        f" {SHARED >> 10} KiB of shared memory and {self.groups} of"
        f" {WARPGROUPS} warpgroups; use fewer units, bfloat16, or"
        ' method="fused"'
      )

  def _weight_dtype(self, what):
    return self.leaves[what.leaf][1].dtype

  # Conversion of arrays to tiles and back, outside the kernel.

  def _operand(self, kind, x, count):
    if kind == "f":
      if not x.ndim:
        return x.reshape(1)
      padded = self._pad_units(x[None], count)[0]
      return padded.reshape(count * self.groups, UNITS)
    if x.dtype == jnp.bool_:
      x = x.astype(jnp.float32)
    lead = x.shape[:1] if kind == "x" else ()
    short = self.blocks * ROWS - self.batch
    x = jnp.pad(x, [(0, 0)] * len(lead) + [(0, short), (0, 0)])
    if not count:
      return x.reshape(-1, ROWS)
    x = self._pad_units(x, count)
    x = x.reshape(-1, self.blocks, ROWS, count, self.groups, UNITS)
    return x.transpose(0, 1, 3, 4, 5, 2).reshape(-1, *TILE)

  def _pad_units(self, x, count):
    """Reshapes columns [n H] to [n, groups * 64], padded with zeros."""
    short = self.groups * UNITS - self.features
    x = x.reshape(*x.shape[:-1], count, self.features)
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, short)])

  def _weights(self, what):
    """Cuts weights into 16-bit tiles [64 units, 64 that are summed over]."""
    x = self.leaves[what.leaf][1]
    x = x if what.turned else x.T
    shape = (what.blocks_out, self.features, what.blocks_in, self.features)
    short = (0, self.groups * UNITS - self.features)
    x = jnp.pad(x.reshape(shape), [(0, 0), short, (0, 0), short])
    shape = (what.blocks_out, self.groups, UNITS, what.blocks_in, self.groups)
    x = x.reshape(*shape, UNITS).transpose(0, 1, 3, 4, 2, 5)
    return jnp.concatenate(
      [term.reshape(-1, UNITS, UNITS) for term in _narrow(x)]
    )

  def _array(self, x, count, lead):
    x = x.reshape(*lead, self.blocks, count, self.groups, UNITS, ROWS)
    axes = (*range(len(lead)), *(len(lead) + i for i in (0, 4, 1, 2, 3)))
    x = x.transpose(axes)
    x = x.reshape(*lead, self.blocks * ROWS, count, self.groups * UNITS)
    x = x[..., : self.batch, :, : self.features]
    return x.reshape(*lead, self.batch, count * self.features)

  # The kernel.

  def run(self, reverse):
    """The carry after the last time step, and the ys."""
    inside = [i for i in range(len(self.leaves)) if not self._is_matrix(i)]
    operands = [self._operand(*self.leaves[i], self.count[i]) for i in inside]
    weights = [self._weights(what) for what in self.products]
    whole = jnp.arange(self.groups * UNITS) < self.features
    whole = whole.astype(jnp.float32).reshape(self.groups, UNITS)
    outs = [
      jax.ShapeDtypeStruct(
        (
          (1 if i < self.carries else self.time)
          * self.blocks
          * count
          * self.groups,
          *TILE,
        ),
        x.dtype,
      )
      for i, (x, count) in enumerate(
        zip(self.ends, self.out_count, strict=True)
      )
    ]

    def body(*refs):
      refs = list(refs)
      take = lambda n: [refs.pop(0) for _ in range(n)]
      self._body(
        reverse,
        dict(zip(inside, take(len(inside)), strict=True)),
        take(1)[0],
        take(len(weights)),
        take(len(outs)),
        take(len(weights)),
        take(len(weights)),
        *refs,
      )

    scratch = [
      *(plgpu.SMEM(x.shape, x.dtype) for x in weights),
      *(
        plgpu.SMEM(
          (2 * _terms(x.dtype) * x.blocks_in * self.groups, *TILE),
          _factor(x.dtype),
        )
        for x in self.products
      ),
      plgpu.Barrier(num_arrivals=max(1, sum(len(x) for x in weights))),
      plgpu.Barrier(num_arrivals=self.groups),
    ]
    outs = plgpu.kernel(
      body,
      out_type=tuple(outs),
      scratch_types=scratch,
      grid=(self.blocks,),
      grid_names=("block",),
      num_threads=self.groups,
      thread_name="group",
      compiler_params=_WARPGROUP,
      kernel_name="recurrent_scan",
    )(*operands, whole, *weights)
    outs = [
      self._array(x, count, () if i < self.carries else (self.time,))
      for i, (x, count) in enumerate(zip(outs, self.out_count, strict=True))
    ]
    return jax.tree.unflatten(self.structure, outs)

  def _body(
    self, reverse, ins, whole, weights, outs, resident, buffers, full, meet
  ):
    group, block = lax.axis_index("group"), lax.axis_index("block")
    tiles_at = lambda t, n, i: (
      ((t * self.blocks + block) * n + i) * self.groups + group
    )

    if weights:

      @pl.when(group == 0)
      def _():
        for source, target in zip(weights, resident, strict=True):
          for i in range(len(source)):
            plgpu.copy_gmem_to_smem(source.at[i], target.at[i], full)

      plgpu.barrier_wait(full)

    def value(i, t):
      kind, x = self.leaves[i]
      ref, n = ins[i], self.count[i]
      if kind == "f":
        if not x.ndim:
          return Value([read(ref, 0)])
        units = [read(ref, j * self.groups + group) for j in range(n)]
        return Value([lax.broadcast_in_dim(x, TILE, (0,)) for x in units])
      if not n:
        row = lax.broadcast_in_dim(
          read(ref, t * self.blocks + block), TILE, (1,)
        )
        return Value([row != 0 if x.dtype == jnp.bool_ else row])
      return Value([read(ref, tiles_at(t, n, j)) for j in range(n)])

    whole = (
      lax.broadcast_in_dim(read(whole, group), TILE, (0,)) != 0
      if self.features % UNITS
      else None
    )
    lasting = {i: value(i, 0) for i in ins if self.leaves[i][0] in "fr"}
    starts = [value(i, 0).parts[0] for i in ins if self.leaves[i][0] == "c"]

    def time_step(t, carry):
      place = self.time - 1 - t if reverse else t
      carry = iter(carry)
      values = []
      for i, (kind, _) in enumerate(self.leaves):
        if i not in ins:
          values.append(None)
        elif kind == "c":
          values.append(Value([next(carry)]))
        else:
          values.append(lasting[i] if i in lasting else value(i, place))
      which = iter(range(len(self.products)))

      def product(what, parts):
        i = next(which)
        return self._product(
          what, parts, t % 2, group, whole, resident[i], buffers[i], meet
        )

      results = self._compute(values, product)
      for i, ref in enumerate(outs[self.carries :], self.carries):
        n = self.out_count[i]
        parts = list(results[i].parts) * (n // len(results[i].parts))
        for j, part in enumerate(parts):
          write(ref, tiles_at(place, n, j), tile(part).astype(ref.dtype))
      return tuple(tile(x.parts[0]) for x in results[: self.carries])

    ends = lax.fori_loop(0, self.time, time_step, tuple(starts))
    for ref, end in zip(outs[: self.carries], ends, strict=True):
      write(ref, tiles_at(0, 1, 0), end.astype(ref.dtype))

  def _product(self, what, parts, turn, group, whole, weights, buffer, meet):
    """Computes a product; all warpgroups share their rows' factors."""
    if whole is not None:
      # Units beyond the width are padding. They are set to zero, or a NaN in
      # them would reach other units.
      parts = [jnp.where(whole, x, jnp.zeros_like(x)) for x in parts]
    size = what.blocks_in * self.groups
    terms_rows = _terms(what.dtype)
    terms_weights = _terms(self._weight_dtype(what))
    narrow = [_narrow(x) for x in parts]
    # Two buffers alternate: the one written now was last read before the last
    # barrier.
    at = turn * (terms_rows * size)
    for term in range(terms_rows):
      for block in range(what.blocks_in):
        index = at + term * size + block * self.groups + group
        buffer[index] = narrow[block][term]
    plgpu.commit_smem()
    plgpu.barrier_arrive(meet)
    plgpu.barrier_wait(meet)
    pairs = [
      (i, j)
      for i in range(terms_weights)
      for j in range(terms_rows)
      if i + j < 2  # the product of remainders is too small
    ]

    def multiply_all(*sums):
      for out, total in enumerate(sums):
        for i, j in pairs:
          first = ((i * what.blocks_out + out) * self.groups + group) * size
          for k in range(size):
            plgpu.wgmma(
              total, weights.at[first + k], buffer.at[at + j * size + k]
            )
      return [total[...] for total in sums]

    sums = [plgpu.ACC(TILE, jnp.float32)] * what.blocks_out
    return pl.run_scoped(multiply_all, *sums)


def _factor(dtype):
  """The dtype of a factor on the tensor cores."""
  return dtype if jnp.dtype(dtype).itemsize == 2 else jnp.bfloat16


def _terms(dtype) -> int:
  return 1 if jnp.dtype(dtype).itemsize == 2 else 2


def _narrow(x):
  """Splits a factor into 16-bit terms that add up to it."""
  if _terms(x.dtype) == 1:
    return [x]
  high = x.astype(jnp.bfloat16)
  return [high, (x - high.astype(x.dtype)).astype(jnp.bfloat16)]


def _linear(reverse, decay, drive, start, resets):
  shape, time = drive.shape, len(drive)
  size = math.prod(shape[1:])
  blocks = pl.cdiv(size, LANES)

  def split(x, *lead):
    x = x.reshape(*lead, size)
    x = jnp.pad(x, [(0, 0)] * len(lead) + [(0, blocks * LANES - size)])
    return x.reshape(-1, LANES)

  flat = lambda x, *lead: [split(part, *lead) for part in complex_parts(x)]
  decays, drives, starts = flat(decay, time), flat(drive, time), flat(start)
  flags = []
  if resets is not None:
    resets = jnp.broadcast_to(resets, shape)
    flags = [split(resets.astype(jnp.float32), time)]
  parts = len(starts)

  def body(*refs):
    block = lax.axis_index("block")
    ins, outs = refs[:-parts], refs[-parts:]
    decays, drives = ins[:parts], ins[parts : 2 * parts]
    starts, flags = ins[2 * parts : 3 * parts], ins[3 * parts :]

    def segment(first, state, time_steps):
      places = [
        (time - 1 - first - k if reverse else first + k) * blocks + block
        for k in range(time_steps)
      ]
      # All loads are issued before the first result is used.
      loaded = [
        [[read(ref, at) for ref in refs] for refs in (decays, drives, flags)]
        for at in places
      ]
      for at, (decay, drive, flag) in zip(places, loaded, strict=True):
        kept = multiply(decay, state)
        if flag:
          kept = [jnp.where(flag[0] != 0, jnp.zeros_like(x), x) for x in kept]
        state = [a + b for a, b in zip(kept, drive, strict=True)]
        for ref, x in zip(outs, state, strict=True):
          write(ref, at, x)
      return state

    state = [read(ref, block) for ref in starts]
    whole = time // AHEAD
    state = lax.fori_loop(
      0, whole, lambda i, state: segment(i * AHEAD, state, AHEAD), state
    )
    segment(whole * AHEAD, state, time - whole * AHEAD)

  outs = plgpu.kernel(
    body,
    out_type=tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in drives),
    grid=(blocks,),
    grid_names=("block",),
    num_threads=1,
    thread_name="group",
    compiler_params=_WARPGROUP,
    kernel_name="recurrent_linear_scan",
  )(*decays, *drives, *starts, *flags)
  outs = [x.reshape(time, -1)[:, :size].reshape(shape) for x in outs]
  return lax.complex(*outs) if parts > 1 else outs[0]


# `recurrent.kernels.linear_scan` as one kernel. Each thread runs one element
# from the first time step to the last; complex numbers are pairs of reals.
linear_scan = by_kernel(_linear)
