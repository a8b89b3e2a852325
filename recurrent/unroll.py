"""`unroll`: a cell over time, with masks, resets, a carry in and out.

It checks the arguments, brings time to the front, projects all inputs in bulk,
and hands the loop to an executor (`recurrent.executors`), one file each. All
agree forward and in every gradient; `"scan"` is the specification.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from recurrent import executors
from recurrent.cells.base import Cell, GatedCell, check_params
from recurrent.executors.fused import CARRIES
from recurrent.executors.newton import NewtonReport
from recurrent.executors.ticks import Ticks, at, length, select
from recurrent.kernels.transforms import vary_alike
from recurrent.types import Array, Carry, Mask, Params, Remat

METHODS = ("auto", *executors.EXECUTORS)

# Rows that `remat="gates"` makes the gates of at a time, over ticks and batch:
# one large product, and the only gates there are in memory.
GATES_ROWS = 1024


def unroll(
  cell: Cell,
  params: Params,
  carry: Carry | None,
  inputs: Any,
  *,
  mask: Mask | None = None,
  resets: Mask | None = None,
  initial: Carry | None = None,
  reverse: bool = False,
  method: str = "auto",
  remat: Remat = None,
) -> tuple[Carry, Array]:
  """Runs a cell over time.

  Args:
    cell: any cell.
    params: its parameters. They are cast to the dtype of the inputs, once.
    carry: [batch, ...], or None for the initial one.
    inputs: [batch, time, features], or a pytree of arrays [batch, time, ...]
      for a cell that takes one.
    mask: [batch, time], True where a tick is real. Elsewhere the carry is
      held and the outputs are zero, whatever the inputs hold, NaN included.
      A row may have no real tick at all.
    resets: [batch, time], True where a tick starts from the initial carry. At
      a masked tick a reset does nothing: that tick does not take place.
    initial: [batch, ...], such as a learnt one; None: `cell.initial_carry`.
    reverse: from the last tick to the first; outputs stay at their inputs'
      places.
    method: how to run: a key of `recurrent.executors.EXECUTORS`, or "auto",
      of which `recurrent.explain` tells what it stands for.
    remat: None: all that a tick makes is kept for the reverse pass. A number:
      only the carry of every `remat`-th tick is, and the ticks between are
      computed again: memory goes from O(time) to O(time / remat + remat), for
      one more forward pass. "gates": the carry of every tick is, and the rest,
      the gates, is computed again from it without a loop: less memory by a
      constant factor, for less time. It needs a gated cell and "fused",
      "native" or "pallas".

  Returns:
    The carry after the last tick that was run, and outputs [batch, time, H]
    in the dtype of the inputs.

  Raises:
    ValueError: if an argument has the wrong shape, or the cell cannot run by
      the method, or recompute what was asked for.
  """
  check_method(cell, method)
  check_remat(cell, method, remat)
  run = functools.partial(_unroll, cell, method, reverse, remat)
  return _by_compiler(run, params, carry, inputs, mask, resets, initial)


def _unroll(cell, method, reverse, remat, *args) -> tuple[Carry, Array]:
  """`unroll`, of arguments in the order of `_begin`."""
  start = _begin(cell, *args)
  setting = executors.Setting.here(
    start.dtype, jax.tree.leaves(start.carry)[0].dtype
  )
  method = resolve_method(cell, method, setting)
  if _rows(start) == 0:
    return start.carry, _no_outputs(cell, start)
  gates = remat == "gates"
  run: Callable[..., tuple[Carry, Array]] = functools.partial(
    _run, cell, method, gates, reverse, start.dtype, start.params, start.initial
  )
  time = size = length(start.ticks)
  if isinstance(remat, int):
    size = remat
  elif gates:
    size = max(16, GATES_ROWS // _rows(start))
    policy = jax.checkpoint_policies.save_only_these_names(CARRIES)
    run = jax.checkpoint(run, policy=policy)
  if size >= time:
    carry, outputs = run(start.carry, start.ticks)
  else:
    run = run if gates else jax.checkpoint(run)
    carry, outputs = _in_chunks(run, size, reverse, start.carry, start.ticks)
  return carry, jnp.swapaxes(outputs, 0, 1)


def newton(
  cell: GatedCell,
  params: Params,
  carry: Carry | None,
  inputs: Any,
  *,
  mask: Mask | None = None,
  resets: Mask | None = None,
  initial: Carry | None = None,
  reverse: bool = False,
  tolerance: float | None = None,
  max_iterations: int = 100,
  damping: float = 0.0,
) -> tuple[Carry, Array, NewtonReport]:
  """`unroll` by `"newton"`, with its options and its report.

  Args:
    cell: a gated cell.
    params: as in `unroll`, like all that is not below.
    carry: see `unroll`.
    inputs: see `unroll`.
    mask: see `unroll`.
    resets: see `unroll`.
    initial: see `unroll`.
    reverse: see `unroll`.
    tolerance: greatest change of a carry in the last round, relative to the
      greatest carry of its tick and row, or 1; None: fifty roundings of the
      carry's dtype.
    max_iterations: rounds before the plain loop takes over.
    damping: in [0, 1): part of the Jacobian that is left out, against rounds
      that explode. It changes the way, not the solution.

  Returns:
    The carry, the outputs, and a `NewtonReport`.

  Raises:
    ValueError: as `unroll` does, and if an option is out of range.
  """
  resolve_method(cell, "newton")
  how = executors.Newton(tolerance, max_iterations, damping)
  run = functools.partial(_newton, cell, how, reverse)
  args = params, carry, inputs, mask, resets, initial
  return _by_compiler(run, *args, replicated=1)


def _newton(cell, how, reverse, *args) -> tuple[Carry, Array, NewtonReport]:
  """`newton`, of arguments in the order of `_begin`."""
  start = _begin(cell, *args)
  if _rows(start) == 0:
    report = NewtonReport(jnp.int32(0), jnp.float32(0), jnp.array(True))
    return start.carry, _no_outputs(cell, start), report
  narrow = lambda: cell.narrow(start.params, start.dtype)
  carry, outputs, report = executors.solve(
    cell,
    reverse,
    narrow,
    start.initial,
    start.carry,
    _project(cell, executors.EXECUTORS["newton"], narrow, start.ticks),
    how,
  )
  return carry, jnp.swapaxes(outputs, 0, 1), report


class _Start(NamedTuple):
  """Arguments that have been checked, time-major."""

  params: Params
  initial: Carry
  carry: Carry
  dtype: Any
  ticks: tuple[Any, Array | None, Array | None]  # inputs, mask, resets


def _begin(cell, params, carry, inputs, mask, resets, initial) -> _Start:
  """Checks the arguments and brings time to the front."""
  batch, time = _batch_and_time(inputs)
  check_params(cell, params, inputs)
  cell.check_inputs(params, inputs)
  _check_flags("mask", mask, (batch, time))
  _check_flags("resets", resets, (batch, time))
  zero = cell.initial_carry(params, (batch,))
  initial = zero if initial is None else initial
  carry = initial if carry is None else carry
  _check_carry("initial", initial, zero)
  _check_carry("carry", carry, zero)
  dtype = compute_dtype(inputs)
  if mask is not None:
    # Garbage must not reach the arithmetic: a NaN that `where` hides in the
    # forward pass comes back in the gradient (NaN * 0).
    inputs = jax.tree.map(lambda x: select(mask, x, jnp.zeros_like(x)), inputs)
    resets = None if resets is None else resets & mask
  # Time moves to the front once, so that every slice in the loop is
  # contiguous, and back once.
  ticks = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (inputs, mask, resets))
  # Within `jax.shard_map` a carry of zeros is the same on all devices, but not
  # what becomes of it, and a loop has to carry one type.
  params, initial, carry, ticks = vary_alike((params, initial, carry, ticks))
  return _Start(params, initial, carry, dtype, ticks)


def _rows(start: _Start) -> int:
  return jax.tree.leaves(start.ticks)[0].shape[1]


def _no_outputs(cell, start) -> Array:
  """The outputs of no row at all, of which not every method can make chunks."""
  one = lambda x: jax.ShapeDtypeStruct((1, *x.shape[2:]), x.dtype)

  def step(params, inputs):
    narrow = cell.narrow(params, start.dtype)
    carry = cell.initial_carry(params, (1,))
    return cell.step(narrow, carry, cell.project(narrow, inputs))[1]

  now = jax.tree.map(one, start.ticks[0])
  shape = jax.eval_shape(step, start.params, now)
  return jnp.zeros((0, length(start.ticks), *shape.shape[1:]), shape.dtype)


def _by_compiler(run, params, carry, inputs, *others, replicated=0):
  """Calls a function whose arrays the compiler shards, also on explicit axes.

  Axes of a mesh are explicit by default, and each operation then has to say
  how its result is sharded. Here that is left to the compiler, but for what
  comes out: it is sharded over rows and time as what went in.

  Args:
    run: `(params, carry, inputs, *others) -> (carry, outputs, *more)`.
    params: see `unroll`.
    carry: see `unroll`.
    inputs: see `unroll`.
    *others: [batch, ...], mask, resets and the initial carry of `unroll`.
    replicated: how many more results `run` has, which are not sharded.

  Returns:
    What `run` does.
  """
  args = params, carry, inputs, *others
  mesh = next(filter(None, map(_explicit_mesh, jax.tree.leaves(args))), None)
  if mesh is None:
    return run(*args)
  first = lambda axis, tree: next(
    filter(None, (_spec(x)[axis] for x in jax.tree.leaves(tree))), None
  )
  rows, time = first(0, (inputs, carry, others)), first(1, inputs)
  sharding = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))
  # A carry that is given stays as it is: callers loop over windows.
  kept = jax.tree.map(lambda x: sharding(*_spec(x)[: x.ndim]), carry)
  out = sharding(rows) if carry is None else kept, sharding(rows, time)
  out += (sharding(),) * replicated
  auto = functools.partial(jax.sharding.auto_axes, axes=mesh.explicit_axes)
  return jax.jit(auto(run, out_sharding=out))(*args)


def _spec(x) -> tuple[Any, ...]:
  """The axes of a mesh over which those of an array are, two at least."""
  return *jax.typeof(x).sharding.spec, None, None


def _explicit_mesh(x):
  """The mesh whose explicit axes an array may be sharded over, or None."""
  mesh = jax.typeof(x).sharding.mesh
  return mesh if mesh.explicit_axes else None


def resolve_method(
  cell: Cell, method: str, setting: executors.Setting | None = None
) -> str:
  """The method that `unroll` will run a cell by.

  Args:
    cell: any cell.
    method: one of `METHODS`.
    setting: where it is to run; None: here, in float32.

  Returns:
    The method itself, or what "auto" stands for.

  Raises:
    ValueError: if there is no such method, or the cell cannot run by it.
  """
  setting = executors.Setting.here() if setting is None else setting
  check_method(cell, method)
  if method == "auto":
    return executors.choose(cell, setting).method
  _refuse(cell, method, executors.EXECUTORS[method].why_not_here(setting))
  return method


def check_method(cell: Cell, method: str) -> None:
  """Checks that a cell can run by a method, wherever that may be.

  It looks at no device, so it may come before `jax.distributed.initialize`.

  Args:
    cell: any cell.
    method: one of `METHODS`.

  Raises:
    ValueError: if there is no such method, or the cell cannot run by it.
  """
  if method not in METHODS:
    raise ValueError(f"method must be one of {METHODS}, got {method!r}")
  if method != "auto":
    _refuse(cell, method, executors.EXECUTORS[method].why_not(cell))


def check_remat(cell: Cell, method: str, remat: Remat) -> None:
  """Checks that a cell can recompute in this way by a method.

  It looks at no device, as `check_method`.

  Args:
    cell: any cell.
    method: one of `METHODS` that the cell can run by.
    remat: as in `unroll`.

  Raises:
    ValueError: if `remat` is nothing of the kind, or the cell or the method
      has no gates to recompute.
  """
  if remat == "gates":
    if not isinstance(cell, GatedCell):
      raise ValueError(
        f"remat='gates': {type(cell).__name__} has no `recur` and `gate`;"
        " use a number of ticks, which suits any cell"
      )
    able = [n for n, e in executors.EXECUTORS.items() if e.recompute]
    if method not in ("auto", *able):
      raise ValueError(
        f"remat='gates': method={method!r} has no reverse pass that starts from"
        f" the carries; use one of {', '.join(able)}, or a number of ticks"
      )
  elif remat is not None and (type(remat) is not int or remat < 1):
    raise ValueError(
      f"remat must be at least 1 tick, 'gates' or None, got {remat!r}"
    )


def _refuse(cell, method, why_not):
  if why_not:
    raise ValueError(
      f"method={method!r}: {type(cell).__name__} {why_not};"
      ' use method="scan", which runs any cell'
    )


def explain(cell: Cell, method: str = "auto") -> str:
  """Says which method would run a cell, and why the others would not.

  Args:
    cell: any cell.
    method: one of `METHODS`.

  Returns:
    A line for the choice, and one for every method.

  Raises:
    ValueError: as `unroll` does.
  """
  setting = executors.Setting.here()
  chosen = resolve_method(cell, method, setting)
  why = "asked for"
  if method == "auto":
    row = executors.choose(cell, setting)
    about = executors.table(setting).about
    why = f"{row.why} (row {row.name!r} for {setting.platform}, {about})"
  lines = [f"{cell} runs by {chosen!r}: {why}"]
  for name, executor in executors.EXECUTORS.items():
    why_not = executor.why_not(cell) or executor.why_not_here(setting)
    remark = f", {executor.remark()}" if executor.remark() else ""
    verdict = f"no, it {why_not}" if why_not else f"possible{remark}"
    lines.append(f"  {name}: {verdict}")
  return "\n".join(lines)


def _run(cell, method, gates, reverse, dtype, params, initial, carry, xs):
  """Projects all inputs in bulk, then loops; xs are time-major."""
  # The scan casts inside its loop, so that the cast's pullback stands there
  # too, and weight gradients are summed over time in the parameters' width.
  narrow = lambda: cell.narrow(params, dtype)
  executor = executors.EXECUTORS[method]
  if xs[1] is None and xs[2] is None and length(xs) == 1:
    # One tick, as in decoding: no loop, no custom gradient.
    params = narrow()
    projected = cell.project(params, at(xs[0], 0))
    carry, outputs = cell.step(params, carry, projected)
    return carry, outputs[None]
  ticks = _project(cell, executor, narrow, xs)
  loop = executor.run
  if gates:
    loop = functools.partial(loop, recompute=True)
  return loop(cell, reverse, narrow, initial, carry, ticks)


def _project(cell, executor, narrow, xs) -> Ticks:
  """What the loop reads: inputs become projections, all in bulk."""
  inputs, mask, resets = xs
  if not executor.projects:
    inputs = cell.project(executor.for_bulk(narrow()), inputs)
  return Ticks(inputs, mask, resets)


def _in_chunks(run, size, reverse, carry, xs):
  """Runs `size` ticks at a time, and what is left over at the end."""
  time = length(xs)
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


def _batch_and_time(inputs) -> tuple[int, int]:
  shapes = [x.shape for x in jax.tree.leaves(inputs)]
  if any(len(s) < 2 for s in shapes):
    raise ValueError(f"inputs must be [batch, time, features], got {shapes[0]}")
  if len({s[:2] for s in shapes}) != 1:
    raise ValueError(f"inputs must share [batch, time], got {shapes}")
  batch, time = shapes[0][:2]
  if time < 1:
    raise ValueError(f"inputs must have at least one tick, got {shapes[0]}")
  return batch, time


def compute_dtype(inputs: Any) -> jnp.dtype:
  """What the floating-point leaves of the inputs have together.

  Args:
    inputs: as `unroll` takes them.

  Returns:
    The dtype that `unroll` computes in, and that its outputs have.

  Raises:
    ValueError: if there is no such leaf.
  """
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


def _check_carry(name, carry, initial):
  got, want = (
    jax.tree.map(lambda x: (x.shape, str(x.dtype)), t) for t in (carry, initial)
  )
  # NamedTuples of two cells are equal if their fields are: hence the structure.
  if got != want or jax.tree.structure(carry) != jax.tree.structure(initial):
    raise ValueError(f"{name} must be {want}, got {got}")
