"""Runs a cell over time: `unroll`, `newton`, and the choice of a method.

`unroll` checks its arguments, makes them time-major, projects all inputs in one
bulk operation, and calls an executor (`recurrent.executors`), which runs the
loop over time. Every method has an executor of its own. All compute the same
outputs and gradients, up to rounding; `"scan"` is the reference.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from recurrent import executors
from recurrent.cells.base import Cell, GatedCell, check_params
from recurrent.cells.noise import unwrapped, unwrapped_cell
from recurrent.checks import check_carry, check_flags
from recurrent.executors.fused import CARRIES
from recurrent.executors.newton import NewtonReport
from recurrent.masking import TimeSteps, as_mask, at, length, select
from recurrent.rows import vary_alike
from recurrent.setting import Setting
from recurrent.types import Array, Carry, Lengths, Mask, Params, Remat

METHODS = ("auto", *executors.EXECUTORS)

# Names of methods up to version 0.1, and their present names.
RENAMED = {
  "kernel": "linear_scan",
  "native": "cpu_kernel",
  "pallas": "tpu_kernel",
  "mosaic_gpu": "gpu_kernel",
}

# With `remat="gates"` the gates are computed in chunks of about this many rows
# (time steps times batch). Each chunk is one large product, and only the gates
# of one chunk are in memory at a time.
GATES_ROWS = 1024


def unroll(
  cell: Cell,
  params: Params,
  carry: Carry | None,
  inputs: Any,
  *,
  mask: Mask | None = None,
  seq_lengths: Lengths | None = None,
  resets: Mask | None = None,
  initial: Carry | None = None,
  reverse: bool = False,
  method: str = "auto",
  remat: Remat = None,
) -> tuple[Carry, Array]:
  """Runs a cell over time.

  On a CPU, allocating memory for the results can take longer than the
  recurrence. Calling `recurrent.memory.keep_freed()` once lets later calls
  reuse freed memory.

  Args:
    cell: any cell.
    params: the cell's parameters. They are cast to the dtype of the inputs,
      except those that `cell.narrow` keeps.
    carry: the carry before the first time step, [batch, ...]; None: `initial`.
    inputs: [batch, time, features], or a pytree of arrays [batch, time, ...]
      for a cell whose inputs are a pytree.
    mask: [batch, time], True where a time step is real. At all other time steps
      the carry does not change, the outputs are zero, and the inputs are
      ignored, even if they are NaN. A row may have no real time step.
    seq_lengths: [batch], number of real time steps in each row, instead of a
      mask for sequences that are padded at their end. A length may be 0. A
      length that is negative or greater than time raises an error, except
      inside `jax.jit`, where values are not known (see `length_mask`).
    resets: [batch, time], True where a time step starts from the initial carry.
      A reset at a masked time step has no effect.
    initial: the initial carry, [batch, ...], such as a learnt one; None:
      `cell.initial_carry`.
    reverse: whether to run from the last time step to the first. Each output
      keeps the position of its input.
    method: the executor that runs the loop: a key of
      `recurrent.executors.EXECUTORS`, or "auto", which chooses one for the cell
      and the device. `recurrent.explain` describes the choice.
    remat: which values the reverse pass recomputes to save memory. None: none;
      all values of all time steps are stored. A number: only the carry of every
      `remat`-th time step is stored, and the time steps between are recomputed;
      memory falls from O(time) to O(time / remat + remat), for one more forward
      pass. "gates": the carry of every time step is stored, and the gates are
      recomputed from the carries without a loop; this saves a constant factor
      of memory and takes less time. It needs a gated cell, and "auto" or a
      method that can recompute gates (`Executor.recompute`), as "fused" can.

  Returns:
    The carry after the last time step that was run, and outputs [batch, time,
    H] in the dtype of the inputs.

  Raises:
    ValueError: if an argument has the wrong shape, if the method cannot run the
      cell, or if the cell or the method does not support `remat`.
  """
  check_method(cell, method)
  check_remat(cell, method, remat)
  mask = as_mask(mask, seq_lengths, inputs)
  run = functools.partial(_unroll, cell, method, reverse, remat)
  return _by_compiler(run, params, carry, inputs, mask, resets, initial)


def _unroll(cell, method, reverse, remat, *args) -> tuple[Carry, Array]:
  """Computes `unroll`; `args` are the arguments of `_begin` after `cell`."""
  start = _begin(cell, *args)
  cell, params = unwrapped(cell, start.params, start.time_steps[0])
  start = start._replace(params=params)
  setting = Setting.here(start.dtype, jax.tree.leaves(start.carry)[0].dtype)
  method = resolve_method(cell, method, setting)
  if _rows(start) == 0:
    return start.carry, _no_outputs(cell, start)
  gates = remat == "gates"
  run: Callable[..., tuple[Carry, Array]] = functools.partial(
    _run, cell, method, gates, reverse, start.dtype, start.params, start.initial
  )
  time = size = length(start.time_steps)
  if isinstance(remat, int):
    size = remat
  elif gates:
    size = max(16, GATES_ROWS // _rows(start))
    policy = jax.checkpoint_policies.save_only_these_names(CARRIES)
    run = jax.checkpoint(run, policy=policy)
  if size >= time:
    carry, outputs = run(start.carry, start.time_steps)
  else:
    run = run if gates else jax.checkpoint(run)
    carry, outputs = _in_chunks(
      run, size, reverse, start.carry, start.time_steps
    )
  return carry, jnp.swapaxes(outputs, 0, 1)


def newton(
  cell: GatedCell,
  params: Params,
  carry: Carry | None,
  inputs: Any,
  *,
  mask: Mask | None = None,
  seq_lengths: Lengths | None = None,
  resets: Mask | None = None,
  initial: Carry | None = None,
  reverse: bool = False,
  tolerance: float | None = None,
  max_iterations: int = 100,
  damping: float = 0.0,
) -> tuple[Carry, Array, NewtonReport]:
  """Runs a gated cell by `"newton"`, with its options, and returns a report.

  The outputs are those of `unroll`.

  Args:
    cell: a gated cell.
    params: see `unroll`.
    carry: see `unroll`.
    inputs: see `unroll`.
    mask: see `unroll`.
    seq_lengths: see `unroll`.
    resets: see `unroll`.
    initial: see `unroll`.
    reverse: see `unroll`.
    tolerance: the iterations stop when the greatest change of a carry is at
      most this. A change is relative to the greatest carry of its time step and
      row, or to 1 if that is greater. None: 50 times the machine epsilon of the
      carry's dtype.
    max_iterations: number of iterations after which, if they have not
      converged, the plain loop runs instead.
    damping: the fraction of the Jacobian that is left out, in [0, 1), to keep
      iterations from diverging. It changes the convergence, not the solution.

  Returns:
    The carry and the outputs, as from `unroll`, and a `NewtonReport`.

  Raises:
    ValueError: as `unroll` does, and if an option is out of range.
  """
  resolve_method(cell, "newton")
  how = executors.Newton(tolerance, max_iterations, damping)
  mask = as_mask(mask, seq_lengths, inputs)
  run = functools.partial(_newton, cell, how, reverse)
  args = params, carry, inputs, mask, resets, initial
  return _by_compiler(run, *args, replicated=1)


def _newton(cell, how, reverse, *args) -> tuple[Carry, Array, NewtonReport]:
  """Computes `newton`; `args` are the arguments of `_begin` after `cell`."""
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
    _project(cell, executors.EXECUTORS["newton"], narrow, start.time_steps),
    how,
  )
  return carry, jnp.swapaxes(outputs, 0, 1), report


class _Start(NamedTuple):
  """The arguments of `unroll`: checked, inputs and flags time-major."""

  params: Params
  initial: Carry
  carry: Carry
  dtype: Any
  time_steps: tuple[Any, Array | None, Array | None]  # inputs, mask, resets


def _begin(cell, params, carry, inputs, mask, resets, initial) -> _Start:
  """Checks the arguments and makes inputs and flags time-major."""
  batch, time = _batch_and_time(inputs)
  check_params(cell, params, inputs)
  cell.check_inputs(params, inputs)
  check_flags("mask", mask, (batch, time))
  check_flags("resets", resets, (batch, time))
  zero = cell.initial_carry(params, (batch,))
  initial = zero if initial is None else initial
  carry = initial if carry is None else carry
  check_carry("initial", initial, zero)
  check_carry("carry", carry, zero)
  dtype = compute_dtype(inputs)
  if mask is not None:
    # Masked inputs are set to zero before any arithmetic: a NaN that `where`
    # removes from the forward pass would still reach the gradient (NaN * 0).
    inputs = jax.tree.map(lambda x: select(mask, x, jnp.zeros_like(x)), inputs)
    resets = None if resets is None else resets & mask
  # In time-major arrays every slice of the loop is contiguous. Arrays are
  # transposed once here and once at the end of `_unroll`.
  time_steps = jax.tree.map(
    lambda x: jnp.swapaxes(x, 0, 1), (inputs, mask, resets)
  )
  # Within `jax.shard_map` an initial carry of zeros is replicated, the next
  # carry varies over the mesh, and a loop's carry must keep one type.
  params, initial, carry, time_steps = vary_alike(
    (params, initial, carry, time_steps)
  )
  return _Start(params, initial, carry, dtype, time_steps)


def _rows(start: _Start) -> int:
  return jax.tree.leaves(start.time_steps)[0].shape[1]


def _no_outputs(cell, start) -> Array:
  """Returns empty outputs for batch size 0, which some methods cannot run."""
  one = lambda x: jax.ShapeDtypeStruct((1, *x.shape[2:]), x.dtype)

  def step(params, inputs):
    narrow = cell.narrow(params, start.dtype)
    carry = cell.initial_carry(params, (1,))
    return cell.step(narrow, carry, cell.project(narrow, inputs))[1]

  now = jax.tree.map(one, start.time_steps[0])
  shape = jax.eval_shape(step, start.params, now)
  return jnp.zeros((0, length(start.time_steps), *shape.shape[1:]), shape.dtype)


def _by_compiler(run, params, carry, inputs, *others, replicated=0):
  """Calls `run` with explicit mesh axes turned into automatic ones.

  Mesh axes are explicit by default, and then every operation must specify the
  sharding of its result. Here the compiler chooses the sharding of all
  intermediate arrays. The results are sharded over rows and time as the
  arguments are.

  Args:
    run: `(params, carry, inputs, *others) -> (carry, outputs, *more)`.
    params: see `unroll`.
    carry: see `unroll`.
    inputs: see `unroll`.
    *others: [batch, ...], mask, resets and the initial carry of `unroll`.
    replicated: number of results of `run` after the outputs; they are not
      sharded.

  Returns:
    The results of `run`.
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
  # A given carry keeps its sharding, since callers loop over windows.
  kept = jax.tree.map(lambda x: sharding(*_spec(x)[: x.ndim]), carry)
  out = sharding(rows) if carry is None else kept, sharding(rows, time)
  out += (sharding(),) * replicated
  auto = functools.partial(jax.sharding.auto_axes, axes=mesh.explicit_axes)
  return jax.jit(auto(run, out_sharding=out))(*args)


def _spec(x) -> tuple[Any, ...]:
  """Returns the mesh axes of an array's axes, and two times None after them."""
  return *jax.typeof(x).sharding.spec, None, None


def _explicit_mesh(x):
  """The mesh whose explicit axes an array may be sharded over, or None."""
  mesh = jax.typeof(x).sharding.mesh
  return mesh if mesh.explicit_axes else None


def resolve_method(
  cell: Cell, method: str, setting: Setting | None = None
) -> str:
  """Returns the method that `unroll` uses for a cell.

  Args:
    cell: any cell.
    method: one of `METHODS`.
    setting: the platform and the dtypes of the run; None: `Setting.here()`.

  Returns:
    `method` itself, or the method that "auto" chooses.

  Raises:
    ValueError: if there is no such method, or it cannot run the cell there.
  """
  setting = Setting.here() if setting is None else setting
  check_method(cell, method)
  if method == "auto":
    return executors.choose(cell, setting).method
  _refuse(cell, method, executors.EXECUTORS[method].why_not_here(setting))
  return method


def check_method(cell: Cell, method: str) -> None:
  """Checks that a method can run a cell, on some device.

  It does not query devices, so it may be called before
  `jax.distributed.initialize`.

  Args:
    cell: any cell.
    method: one of `METHODS`.

  Raises:
    ValueError: if there is no such method, or it cannot run the cell.
  """
  if method in RENAMED:
    raise ValueError(f"method {method!r} is now called {RENAMED[method]!r}")
  if method not in (names := ("auto", *executors.EXECUTORS)):
    raise ValueError(f"method must be one of {names}, got {method!r}")
  if method != "auto":
    inner = unwrapped_cell(cell, noise=True)
    _refuse(cell, method, executors.EXECUTORS[method].why_not(inner))


def check_remat(cell: Cell, method: str, remat: Remat) -> None:
  """Checks that `remat` is valid and supported by a cell and a method.

  Like `check_method` it does not query devices.

  Args:
    cell: any cell.
    method: one of `METHODS` that can run the cell.
    remat: as in `unroll`.

  Raises:
    ValueError: if `remat` is not one of the values that `unroll` takes, or if
      it is "gates" and the cell or the method cannot recompute gates.
  """
  if remat == "gates":
    if not isinstance(cell, GatedCell):
      raise ValueError(
        f"remat='gates': {type(cell).__name__} has no `recur` and `gate`;"
        " use a number of time steps, which suits any cell"
      )
    able = [n for n, e in executors.EXECUTORS.items() if e.recompute]
    if method not in ("auto", *able):
      raise ValueError(
        f"remat='gates': method={method!r} has no reverse pass that starts from"
        f" the carries; use one of {', '.join(able)}, or a number of time steps"
      )
  elif remat is not None and (type(remat) is not int or remat < 1):
    raise ValueError(
      f"remat must be at least 1 time step, 'gates' or None, got {remat!r}"
    )


def _refuse(cell, method, why_not):
  if why_not:
    raise ValueError(
      f"method={method!r}: {type(cell).__name__} {why_not};"
      ' use method="scan", which runs any cell'
    )


def explain(
  cell: Cell, method: str = "auto", *, dtype: Any = jnp.float32
) -> str:
  """Describes which method runs a cell here, and which others can or cannot.

  "Here" is the platform and the number of devices of `Setting.here()`, such as
  those that `recurrent.compile_for` sets.

  Args:
    cell: any cell.
    method: one of `METHODS`.
    dtype: the dtype of the inputs. The carry has it too, or float32 if that is
      wider.

  Returns:
    A text: one line with the chosen method and the loop that it runs, another
    one if a cell with noise runs by another method in evaluation, and another
    one if each of several devices would run it by another method on its own
    rows (`jax.shard_map`), then one line for every method.

  Raises:
    ValueError: as `unroll` does.
  """
  setting = Setting.here(dtype)
  inner, plain = (unwrapped_cell(cell, noise) for noise in (True, False))
  lines = [f"{cell} runs {_choice(inner, method, setting)}"]
  if method == "auto" and plain != inner:
    lines.append(
      f"without noise, as {plain}, {_choice(plain, method, setting)}"
    )
  alone = _choice(inner, method, setting._replace(devices=1))
  if alone != _choice(inner, method, setting):
    lines.append(
      f"in `jax.shard_map`, as in the train step, each device runs it {alone}"
    )
  for name, executor in executors.EXECUTORS.items():
    why_not = executor.why_not(inner) or executor.why_not_here(setting)
    if why_not:
      verdict = f"no, it {why_not}"
    else:
      verdict = ", ".join(
        filter(None, ["possible", executor.how(inner, setting)])
      )
    lines.append(f"  {name}: {verdict}")
  return "\n".join(lines)


def _choice(cell, method, setting) -> str:
  """Returns the chosen method, its loop and the reason, for `explain`."""
  chosen = resolve_method(cell, method, setting)
  why = "asked for"
  if method == "auto":
    rule = executors.choose(cell, setting)
    about = executors.table(setting).about
    why = f"{rule.why} (rule {rule.name!r} for {setting.platform}, {about})"
  how = executors.EXECUTORS[chosen].how(cell, setting)
  return f"by {', '.join(filter(None, [repr(chosen), how]))}: {why}"


def _run(cell, method, gates, reverse, dtype, params, initial, carry, xs):
  """Projects all inputs in bulk, then runs the loop; `xs` are time-major."""
  # "scan" calls `narrow` inside its loop. The transpose of the cast is then
  # inside the reverse loop, so weight gradients are summed over time in the
  # dtype of the parameters.
  narrow = lambda: cell.narrow(params, dtype)
  executor = executors.EXECUTORS[method]
  if xs[1] is None and xs[2] is None and length(xs) == 1:
    # One time step, as in decoding: no loop, no custom gradient.
    params = narrow()
    projected = cell.project(params, at(xs[0], 0))
    carry, outputs = cell.step(params, carry, projected)
    return carry, outputs[None]
  time_steps = _project(cell, executor, narrow, xs)
  loop = executor.run
  if gates:
    loop = functools.partial(loop, recompute=True)
  return loop(cell, reverse, narrow, initial, carry, time_steps)


def _project(cell, executor, narrow, xs) -> TimeSteps:
  """Projects the inputs in bulk, unless the executor does so itself."""
  inputs, mask, resets = xs
  if not executor.projects:
    inputs = cell.project(executor.for_bulk(narrow()), inputs)
  return TimeSteps(inputs, mask, resets)


def _in_chunks(run, size, reverse, carry, xs):
  """Runs chunks of `size` time steps, then the shorter rest."""
  time = length(xs)
  whole = time // size * size
  # The rest is run last, so with `reverse` it is at the start of the time axis.
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
    raise ValueError(
      f"inputs must have at least one time step, got {shapes[0]}"
    )
  return batch, time


def compute_dtype(inputs: Any) -> jnp.dtype:
  """Returns the common dtype of the floating-point leaves of the inputs.

  Args:
    inputs: as `unroll` takes them.

  Returns:
    The dtype that `unroll` computes in, and that its outputs have.

  Raises:
    ValueError: if no leaf is floating-point.
  """
  dtypes = [x.dtype for x in jax.tree.leaves(inputs)]
  floats = [x for x in dtypes if jnp.issubdtype(x, jnp.floating)]
  if not floats:
    raise ValueError(
      f"inputs must be floating-point, got {', '.join(map(str, dtypes))};"
      " cast or embed them"
    )
  return jnp.result_type(*floats)
