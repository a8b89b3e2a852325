"""`"chunkwise"` runs a `MatrixCell` as causal attention within chunks.

The state of such a cell is a matrix, and the states of all time steps would
take more memory than all other arrays together. This executor stores only the
states between chunks of time steps. Within a chunk the result of a query is a
sum over the values so far, weighted by the products of the query with their
keys and by the decays since: causal attention. A loop passes the state from
chunk to chunk.

On a CPU this is faster only if there is a reverse pass, for which the plain
loop stores a matrix for every time step. Without a gradient the plain loop
runs there.

Reference:
  Hua et al., "Transformer quality in linear time", 2022; Beck et al., "Tiled
  flash linear attention", 2025, for the mLSTM.
"""

import functools

import jax

from recurrent.executors.scan import scan
from recurrent.kernels import matrix_scan, transforms
from recurrent.masking import blank
from recurrent.setting import Setting


def chunkwise(cell, reverse, params, initial, carry, time_steps):
  """Runs the cell; the arguments are those of every executor."""
  static = cell, reverse, _loops(Setting.here())
  return transforms.call(
    CHUNKWISE, static, params(), initial, carry, time_steps
  )


def how(cell, setting) -> str:
  """Returns how this method runs in a setting, for `recurrent.explain`."""
  del cell
  if _loops(setting):
    return "by the plain loop without a gradient, by chunks with one"
  return "by chunks"


def _loops(setting):
  """Whether the plain loop runs if there is no gradient."""
  return setting.platform == "cpu"


def _run(cell, reverse, loops, params, *rows):
  if loops:
    return scan(cell, reverse, lambda: params, *rows)
  return _chunks(cell, reverse, params, *rows)


def _forward(cell, reverse, loops, *args):
  del loops
  out, pull = jax.vjp(functools.partial(_chunks, cell, reverse), *args)
  return out, (args, pull)


def _tangent(cell, reverse, loops, kept, d_args):
  del loops
  return jax.jvp(functools.partial(_chunks, cell, reverse), kept[0], d_args)[1]


def _backward(cell, reverse, loops, kept, cotangents):
  del cell, reverse, loops
  return kept[1](cotangents)


CHUNKWISE = transforms.Passes(_run, _forward, _tangent, _backward)


def _chunks(cell, reverse, params, initial, carry, time_steps):
  """Applies the mask to decays and keys, then computes states and outputs."""
  log_decay, key, value, query, skip = time_steps.projected
  # A masked time step leaves the state unchanged: decay 1, key 0.
  log_decay, key = blank(time_steps.mask, (log_decay, key))
  found, last = matrix_scan(
    log_decay,
    key,
    value,
    query,
    cell.pack(carry),
    fresh=None if time_steps.resets is None else cell.pack(initial),
    resets=time_steps.resets,
    reverse=reverse,
  )
  outputs = cell.read(params, found, skip)
  return cell.unpack(last), blank(time_steps.mask, outputs)
