"""`"newton"` solves for all time steps of a `GatedCell` at once, iteratively.

An iteration computes all time steps in bulk from a guess of all carries,
linearises them, and solves the resulting linear recurrence in parallel over
time. Its solution is the next guess. Iterations stop when the carries no longer
change. After k iterations the first k time steps are exact, so the method
terminates.

Of the Jacobian of a time step, the linearisation keeps only the entries from a
unit's carry to the same unit: a small block for each unit, with one row and one
column for each leaf of the carry. If units do not depend on each other
(`cell.channelwise`), this is the whole Jacobian and the method is Newton's.
Otherwise it is an approximation that needs more iterations (quasi-DEER), and
`damping` scales it down where iterations would diverge. If the iterations do
not converge, the plain loop runs instead, and the report says so.

Reference:
  Lim et al., "Parallelizing non-linear sequential models over the sequence
  length" (DEER), 2024; Gonzalez et al., "Towards scalable and stable
  parallelization of nonlinear RNNs" (quasi-DEER, ELK), 2024; Danieli et al.,
  "ParaRNN", 2025 (blocks of the LSTM).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from recurrent import kernels
from recurrent.executors.fused import backward as loop_backward
from recurrent.executors.fused import bulk_gradients
from recurrent.executors.fused import forward as loop_forward
from recurrent.executors.fused import tangent as loop_tangent
from recurrent.kernels import transforms
from recurrent.masking import TimeSteps, at, blank, hold, length, restart
from recurrent.types import Array, Float, Int


class NewtonReport(NamedTuple):
  """The convergence of `"newton"`.

  Attributes:
    iterations: number of iterations that were run.
    residual: the greatest change of a carry in the last iteration, relative to
      the greatest carry of its time step and row, or to 1 if that is greater.
    converged: whether the residual is within the tolerance; if not, the results
      are those of the plain loop.
  """

  iterations: Int[Array, ""]
  residual: Float[Array, ""]
  converged: Array


@dataclasses.dataclass(frozen=True)
class Newton:
  """Options of the solver.

  Args:
    tolerance: the residual of `NewtonReport` at which iterations stop; None: 50
      times the machine epsilon of the carry's dtype.
    max_iterations: number of iterations after which the plain loop runs.
    damping: the fraction of the Jacobian that is left out, in [0, 1).
  """

  tolerance: float | None = None
  max_iterations: int = 100
  damping: float = 0.0

  def __post_init__(self):
    if self.tolerance is not None and not self.tolerance > 0:
      raise ValueError(f"tolerance must be positive, got {self.tolerance}")
    if self.max_iterations < 1:
      raise ValueError(
        f"max_iterations must be at least 1, got {self.max_iterations}"
      )
    if not 0 <= self.damping < 1:
      raise ValueError(f"damping must be in [0, 1), got {self.damping}")


def newton(cell, reverse, params, initial, carry, time_steps, *, how=Newton()):
  """Runs the cell; the arguments are those of every executor."""
  return solve(cell, reverse, params, initial, carry, time_steps, how)[:2]


def solve(cell, reverse, params, initial, carry, time_steps, how):
  """Returns the carry, the outputs, and a `NewtonReport`."""
  if reverse:
    time_steps = jax.tree.map(lambda x: x[::-1], time_steps)
  carry, outputs, report = transforms.call(
    NEWTON, (cell, how), params(), initial, carry, time_steps
  )
  return carry, outputs[::-1] if reverse else outputs, report


def _run(*args):
  return _forward(*args)[0]


def _forward(cell, how, *args):
  # JAX differentiates `_loop`, which computes the same without iterations.
  out, saved = transforms.kernel(_iterate, _loop, (cell, how), *args)
  return out, (*args, saved)


def _loop(cell, how, params, initial, carry, time_steps):
  """Computes `_iterate` by the plain loop, with a report of no iterations."""
  del how
  out, kept = loop_forward(
    cell, False, False, params, initial, carry, time_steps
  )
  dtype = jax.tree.leaves(carry)[0].dtype
  report = NewtonReport(jnp.int32(0), jnp.zeros((), dtype), jnp.array(True))
  return (*out, report), kept[-1]


def _iterate(cell, how, params, initial, carry, time_steps):
  time = length(time_steps)
  dtype = jax.tree.leaves(carry)[0].dtype
  own = _own_recurrence(cell, params, initial)

  def largest(tree):
    """The largest entry of each time step and row, [time, batch]."""
    leaves = [x.astype(dtype) for x in jax.tree.leaves(tree)]
    return jnp.stack([jnp.abs(x).max(axis=-1) for x in leaves]).max(axis=0)

  def improve(loop):
    states, iterations, _ = loop
    before = _before(carry, states)
    stepped, jacobian = _linearise(
      cell, params, initial, time_steps, before, own, how.damping
    )
    drive = jax.tree.map(
      jnp.subtract, stepped, _apply(jacobian, before, before)
    )
    new = _block_scan(jacobian, drive, carry)
    change = jax.tree.map(lambda a, b: a - b, new, states)
    residual = (largest(change) / jnp.maximum(largest(new), 1)).max()
    # `max` may drop a NaN, so finiteness is tested separately. An infinite
    # residual is above the tolerance, and ends the iterations.
    finite = [jnp.isfinite(x).all() for x in jax.tree.leaves(new)]
    residual = jnp.where(jnp.stack(finite).all(), residual, jnp.inf)
    return new, iterations + 1, residual

  # The first guess is the result of each time step alone, from the first carry.
  # The first carry itself would be a worse guess: it is usually zero, where a
  # layer norm has a slope of 300, and the iterations would diverge.
  same = jax.tree.map(lambda x: jnp.broadcast_to(x, (time, *x.shape)), carry)
  alone = restart_all(time_steps.resets, initial, same)
  start = cell.step(params, alone, time_steps.projected)[0]
  start = hold(time_steps.mask, start, same)
  tolerance = how.tolerance or 50 * float(jnp.finfo(dtype).eps)
  states, iterations, residual = jax.lax.while_loop(
    lambda loop: (
      (loop[1] < how.max_iterations)
      & (loop[2] > tolerance)
      & jnp.isfinite(loop[2])
    ),
    improve,
    (start, jnp.int32(0), jnp.full((), jnp.finfo(dtype).max, dtype)),
  )
  converged = residual <= tolerance

  def accept(states):
    before = restart_all(time_steps.resets, initial, _before(carry, states))
    mixed = cell.recur(params, before)
    outputs = cell.gate(params, before, time_steps.projected, mixed)[1]
    return (at(states, -1), blank(time_steps.mask, outputs)), (before, mixed)

  def loop_after_all(states):
    del states
    out, kept = loop_forward(
      cell, False, False, params, initial, carry, time_steps
    )
    return out, kept[-1]

  (last, outputs), saved = jax.lax.cond(
    converged, accept, loop_after_all, states
  )
  report = NewtonReport(iterations, residual, converged)
  return (last, outputs, report), saved


def _tangent(cell, how, kept, d_args):
  """Forward derivatives, by the plain loop."""
  del how
  none = np.zeros((), jax.dtypes.float0)
  dtype = jax.tree.leaves(kept[2])[0].dtype
  report = NewtonReport(none, jnp.zeros((), dtype), none)
  return *loop_tangent(cell, False, False, kept, d_args), report


def _backward(cell, how, kept, cotangents):
  """Solves one linear recurrence for the carries' cotangents.

  All other gradients are then bulk operations over time.
  """
  del how
  d_carry, d_outputs, _ = cotangents
  if not cell.channelwise:
    # The exact Jacobians are dense here, so the reverse loop of "fused" runs.
    return loop_backward(cell, False, False, kept, (d_carry, d_outputs))
  params, initial, _, time_steps, (carries, _) = kept

  def time_step(params, before, projected):
    mixed = cell.recur(bulk_gradients(params), before)
    return cell.gate(params, before, projected, mixed)

  def pull(d_stepped):
    out = blank(time_steps.mask, (d_stepped, d_outputs))
    return jax.vjp(time_step, params, carries, time_steps.projected)[1](out)

  nothing = jax.tree.map(jnp.zeros_like, carries)
  direct = pull(nothing)[1]
  own = _own_recurrence(cell, params, initial)
  _, jacobian = _linearise(cell, params, initial, time_steps, carries, own, 0.0)
  direct = blank(time_steps.resets, direct, keep=False)
  # The cotangent of a state comes from the next time step: through its Jacobian
  # from the next state, and from its output. That of the last state is the
  # cotangent of the returned carry.
  turned = [list(row) for row in zip(*jacobian, strict=True)]
  ahead = lambda tree: jax.tree.map(
    lambda x: jnp.concatenate([x[1:], jnp.zeros_like(x[:1])]), tree
  )
  drive = jax.tree.map(
    lambda x, last: x.at[-1].add(last), ahead(direct), d_carry
  )
  cotangent = _block_scan(
    ahead(turned), drive, jax.tree.map(jnp.zeros_like, d_carry), reverse=True
  )
  d_params, d_before, d_projected = pull(cotangent)
  if time_steps.mask is not None:
    d_before = hold(time_steps.mask, d_before, cotangent)
  d_initial = jax.tree.map(jnp.zeros_like, initial)
  if time_steps.resets is not None:
    d_initial = jax.tree.map(
      lambda x: x.sum(0), blank(time_steps.resets, d_before)
    )
    d_before = blank(time_steps.resets, d_before, keep=False)
  return (
    d_params,
    d_initial,
    at(d_before, 0),
    TimeSteps(d_projected, None, None),
  )


NEWTON = transforms.Passes(_run, _forward, _tangent, _backward)


def _before(carry, states):
  """The carry that each time step starts from, before resets."""
  return jax.tree.map(
    lambda first, rest: jnp.concatenate([first[None], rest[:-1]]), carry, states
  )


def restart_all(resets, initial, carries):
  """`restart` for all time steps at once."""
  if resets is None:
    return carries
  return jax.vmap(restart, (0, None, 0))(resets, initial, carries)


def _own_recurrence(cell, params, initial):
  """Returns the diagonals of the Jacobian of `recur`, for each carry leaf.

  `recur` is affine in the carry and the same at every time step, so one product
  with all unit vectors gives the diagonals, [batch, G*H]. The batch axis has
  length one unless the parameters contain values for each row, such as a
  dropout mask.
  """
  zero = jax.tree.map(jnp.zeros_like, at(initial, 0))
  leaves, structure = jax.tree.flatten(zero)
  found = []
  for index, leaf in enumerate(leaves):
    width = len(leaf)
    many = [jnp.zeros((width, 1, *x.shape), x.dtype) for x in leaves]
    turned = list(many)
    turned[index] = jnp.eye(width, dtype=leaf.dtype)[:, None]
    tangent = jax.jvp(
      functools.partial(cell.recur, params),
      (structure.unflatten(many),),
      (structure.unflatten(turned),),
    )[1]
    gates = tangent.reshape(*tangent.shape[:2], -1, width)
    own = jnp.einsum("hbgh->bgh", gates)
    found.append(own.reshape(len(own), -1))
  return found


def _linearise(cell, params, initial, time_steps, before, own, damping):
  """Computes all time steps from a guess of all carries, and their Jacobians.

  A Jacobian is a list of lists of arrays [time, batch, H]. The first index is
  the leaf of the new carry, the second that of the old one.
  """
  used = restart_all(time_steps.resets, initial, before)
  mixed = cell.recur(params, used)
  leaves, structure = jax.tree.flatten(used)
  step = lambda carry, mixed: cell.gate(
    params, carry, time_steps.projected, mixed
  )[0]
  columns = []
  for index in range(len(leaves)):
    tangents = [jnp.zeros_like(x) for x in leaves]
    tangents[index] = jnp.ones_like(leaves[index])
    through = jnp.broadcast_to(own[index].astype(mixed.dtype), mixed.shape)
    stepped, column = jax.jvp(
      step, (used, mixed), (structure.unflatten(tangents), through)
    )
    columns.append([(1 - damping) * x for x in jax.tree.leaves(column)])
  stepped = hold(time_steps.mask, stepped, before)
  rows = [list(row) for row in zip(*columns, strict=True)]
  rows = blank(time_steps.resets, rows, keep=False)
  if time_steps.mask is not None:
    same = [
      [
        (jnp.ones_like if i == j else jnp.zeros_like)(x)
        for j, x in enumerate(r)
      ]
      for i, r in enumerate(rows)
    ]
    rows = hold(time_steps.mask, rows, same)
  return stepped, rows


def _apply(jacobian, carry, like):
  """Multiplies the Jacobian's blocks by carries, for each unit."""
  leaves = jax.tree.leaves(carry)
  products = [
    sum(a * x for a, x in zip(row, leaves, strict=True)) for row in jacobian
  ]
  return jax.tree.structure(like).unflatten(products)


def _block_scan(jacobian, drive, start, reverse=False):
  """Solves s_t = J_t s_{t-1} + drive_t for all t, in parallel over time."""
  drives, structure = jax.tree.flatten(drive)
  starts = jax.tree.leaves(start)
  if len(drives) == 1:
    states = [
      kernels.linear_scan(jacobian[0][0], drives[0], starts[0], reverse=reverse)
    ]
  else:
    states = kernels.block_scan(jacobian, drives, starts, reverse)
  return structure.unflatten(states)
