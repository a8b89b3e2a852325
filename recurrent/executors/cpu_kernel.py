"""`"cpu_kernel"` runs layers of RNN, LSTM and GRU in C++ on a CPU.

XLA runs a time step as some ten small kernels that pass arrays through memory.
The loops in C++ (`recurrent.kernels.cpu`) keep the intermediate values of a
time step in registers. They project the inputs themselves, and take batch-major
sequences. The two transpositions here undo those of `unroll`, and XLA removes
both pairs. The gradients of weights and inputs are bulk products, as in
`"fused"`.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from recurrent.cells.base import Cell
from recurrent.cells.gru import GRU
from recurrent.cells.lstm import LSTM
from recurrent.cells.lstm_variants import LSTMVariant
from recurrent.cells.noise import Wrapper
from recurrent.cells.rnn import RNN
from recurrent.cells.structures import Dense
from recurrent.checks import check_width
from recurrent.executors.fused import (
  CARRIES,
  bulk_gradients,
  reverse_loop,
)
from recurrent.executors.fused import forward as loop_forward
from recurrent.executors.fused import run as loop_run
from recurrent.kernels import cpu as loops
from recurrent.kernels import transforms
from recurrent.masking import TimeSteps, zeros

ACTIVATIONS = ("tanh", "relu", "sigmoid")


def kind(cell: Cell) -> str:
  """Returns the name of the C++ loop that runs a cell, or "" if none does."""
  dense = getattr(cell, "structure", None) == Dense()
  if type(cell) in (RNN, LSTM, GRU):
    return type(cell).__name__.lower() if dense else ""
  if type(cell) is not LSTMVariant:
    return ""
  # The forget bias is a value that `init` writes, so any will do.
  coupled = LSTMVariant(
    cell.features, coupled=True, forget_bias=cell.forget_bias
  )
  return "lstm_coupled" if cell == coupled else ""


def why_not(cell: Cell) -> str:
  """Returns why no C++ loop runs a cell; empty if one does."""
  if isinstance(cell, Wrapper):
    return f"{cell.in_time_step(noise=True)}, and no loop in C++ does"
  return "" if kind(cell) else "has no loop in C++"


def cpu_kernel(
  cell, reverse, params, initial, carry, time_steps, recompute=False
):
  """Runs the cell; `time_steps.projected` holds the plain inputs.

  The other arguments are those of every executor. With `recompute` the reverse
  pass recomputes the gates in bulk, and the forward pass does not store them.
  """
  params = params()
  check_width("inputs", time_steps.projected, len(params.kernel))
  inputs, mask, resets = jax.tree.map(_turn, tuple(time_steps))
  args = params, initial, carry, inputs, (mask, resets)
  carry, outputs = transforms.call(
    CPU_KERNEL, (cell, reverse, recompute), *args
  )
  return carry, _turn(outputs)


def _turn(x):
  """Transposes time-major to batch-major, or back."""
  return jnp.swapaxes(x, 0, 1)


def _run(cell, reverse, recompute, *args):
  del recompute
  return _layer(cell, reverse, "nothing", *args)[0]


def _forward(cell, reverse, recompute, *args):
  save = "carries" if recompute else "all"
  out, (gates, carries) = _layer(cell, reverse, save, *args)
  return out, (*args, (gates, checkpoint_name(carries, CARRIES)))


def _layer(cell, reverse, save, *args):
  """Returns (carry, outputs) and the values saved for the reverse pass."""
  static = (cell, reverse, save)
  return transforms.kernel(_by_loops, _by_jax, static, *args, platform="cpu")


def _by_loops(cell, reverse, save, params, initial, carry, inputs, flags):
  outputs, last, saved = loops.forward(
    kind(cell),
    inputs,
    params.kernel,
    params.bias,
    params.recurrent,
    tuple(carry),
    tuple(initial),
    **_options(cell, reverse, params, flags),
    save=save,
  )
  return (type(carry)(*last), outputs), saved


def _by_jax(cell, reverse, save, params, initial, carry, inputs, flags):
  """Computes `_by_loops` in JAX operations, with zeros as the saved gates."""
  time_steps = _time_steps(cell, params, inputs, flags)
  args = cell, reverse, True, params, initial, carry, time_steps
  batch, time = inputs.shape[:2]
  nothing = jnp.zeros((0,), inputs.dtype)
  carries, gates = (nothing,) * len(carry), nothing
  if save == "nothing":
    last, outputs = loop_run(*args)
  else:
    (last, outputs), (*_, (carries, _)) = loop_forward(*args)
    carries = _as_loops_do(carries)
  if save == "all":
    width = loops.SAVED[kind(cell)] * cell.features
    gates = jnp.zeros((time, batch, width), inputs.dtype)
  return (last, _turn(outputs)), (gates, carries)


def _time_steps(cell, params, inputs, flags):
  """Returns projected inputs and flags, time-major, from batch-major ones."""
  inputs, mask, resets = jax.tree.map(_turn, (inputs, *flags))
  projected = cell.project(bulk_gradients(params), inputs)
  return TimeSteps(projected, mask, resets)


def _as_loops_do(carries):
  """Transposes the hidden states only, which the C++ loops have batch-major."""
  hidden, *cell = carries
  return _turn(hidden), *cell


def _tangent(cell, reverse, recompute, kept, d_args):
  """Forward derivatives, by the plain loop."""
  del recompute
  run = lambda *args: _by_jax(cell, reverse, "nothing", *args)[0]
  return jax.jvp(run, kept[:-1], d_args)[1]


def _backward(cell, reverse, recompute, kept, cotangents):
  params, _, _, inputs, flags, saved = kept
  d_projected, d_mixed, d_first, d_initial = transforms.kernel(
    _pull_by_loops,
    _pull_by_jax,
    (cell, reverse, recompute),
    params,
    inputs,
    flags,
    saved,
    cotangents,
    platform="cpu",
  )
  gradients = {
    "kernel": _weights(inputs, d_projected),
    "bias": jnp.sum(d_projected, (0, 1)),
    "recurrent": _weights(saved[1][0], d_mixed),
  }
  if hasattr(params, "recurrent_bias"):
    inner = d_mixed[..., -cell.features :]
    gradients["recurrent_bias"] = jnp.sum(inner, (0, 1))
  d_params = zeros(params)._replace(**gradients)
  d_inputs = jnp.einsum("btg,dg->btd", d_projected, params.kernel)
  return d_params, d_initial, d_first, d_inputs, None


def _pull_by_loops(cell, reverse, recompute, params, inputs, flags, saved, d):
  """The reverse pass by the loops in C++.

  Returns:
    Cotangents of the projected inputs, of the products with the recurrent
    weights, of the first carry and of the initial carry.
  """
  d_carry, d_outputs = d
  if recompute:
    saved = _gates(cell, params, inputs, saved[1]), saved[1]
  d_projected, d_mixed, d_first, d_initial = loops.backward(
    kind(cell),
    d_outputs,
    params.recurrent,
    saved,
    tuple(d_carry),
    **_options(cell, reverse, params, flags),
  )
  as_carry = type(d_carry)
  return d_projected, d_mixed, as_carry(*d_first), as_carry(*d_initial)


def _pull_by_jax(cell, reverse, recompute, params, inputs, flags, saved, d):
  """Computes `_pull_by_loops` in JAX operations; it reads no saved gates."""
  del recompute
  d_carry, d_outputs = d
  carries = type(d_carry)(*_as_loops_do(saved[1]))
  time_steps = _time_steps(cell, params, inputs, flags)
  kept = params, zeros(d_carry), None, time_steps, (carries, None)
  d = d_carry, _turn(d_outputs)
  found = reverse_loop(cell, reverse, True, kept, d)
  return _turn(found.projected), _turn(found.mixed), found.carry, found.initial


def _gates(cell, params, inputs, carries):
  """Recomputes the gates from the carries, all time steps as rows of one."""
  batch, time = inputs.shape[:2]
  hidden, *cells = carries
  # The cell states are [time, batch, H], the hidden states [batch, time, H].
  parts = hidden, *map(_turn, cells)
  carry = tuple(x.reshape(batch * time, -1) for x in parts)
  rows = inputs.reshape(batch * time, 1, -1)
  _, _, (gates, _) = loops.forward(
    kind(cell),
    rows,
    params.kernel,
    params.bias,
    params.recurrent,
    carry,
    carry,
    **_options(cell, False, params, (None, None)),
    save="all",
  )
  return _turn(gates.reshape(batch, time, -1))


CPU_KERNEL = transforms.Passes(_run, _forward, _tangent, _backward)


def _weights(left, right):
  """Contracts two arrays [batch, time, ...] over batch and time.

  The pullback that JAX derives swaps the factors and transposes the result,
  which takes XLA 1.1 to 2 times as long on a CPU.
  """
  return jax.lax.dot_general(left, right, (((0, 1), (0, 1)), ((), ())))


def _options(cell, reverse, params, flags):
  mask, resets = flags
  activation = getattr(cell, "activation", "tanh")
  return {
    "bias": getattr(params, "recurrent_bias", None),
    "mask": mask,
    "resets": resets,
    "reverse": reverse,
    "activation": ACTIVATIONS.index(activation),
  }
