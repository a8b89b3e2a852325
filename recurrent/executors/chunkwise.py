"""`"chunkwise"`: a `MatrixCell` as attention within chunks, a loop over them.

A state is a matrix; one for every time step is more than everything else
together. Here only those between chunks are written down. Within a chunk, what
a query
finds is the sum over the keys since, weighted by the decays between: a product
of queries and keys, masked to the past.

On a CPU that pays for the reverse pass only, which the plain loop would hand a
matrix a time step: where no gradient is asked for, the plain loop runs.

Reference:
  Hua et al., "Transformer quality in linear time", 2022; Beck et al., "Tiled
  flash linear attention", 2025, for the mLSTM.
"""

import functools

import jax

from recurrent.executors.scan import scan
from recurrent.kernels import matrix_scan, transforms
from recurrent.masking import blank


def chunkwise(cell, reverse, params, initial, carry, time_steps):
  """As all executors: the carry and the outputs."""
  args = params(), initial, carry, time_steps
  return transforms.call(CHUNKWISE, (cell, reverse), *args)


def _run(cell, reverse, params, *rows):
  loop = lambda params, *rows: scan(cell, reverse, lambda: params, *rows)
  chunks = functools.partial(_chunks, cell, reverse)
  return jax.lax.platform_dependent(params, *rows, cpu=loop, default=chunks)


def _forward(cell, reverse, *args):
  out, pull = jax.vjp(functools.partial(_chunks, cell, reverse), *args)
  return out, (args, pull)


def _tangent(cell, reverse, kept, d_args):
  return jax.jvp(functools.partial(_chunks, cell, reverse), kept[0], d_args)[1]


def _backward(cell, reverse, kept, cotangents):
  del cell, reverse
  return kept[1](cotangents)


CHUNKWISE = transforms.Passes(_run, _forward, _tangent, _backward)


def _chunks(cell, reverse, params, initial, carry, time_steps):
  """Folds masks into decays and keys, runs the chunks, reads out."""
  log_decay, key, value, query, skip = time_steps.projected
  # A time step that does not take place changes nothing: decay 1, no key.
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
