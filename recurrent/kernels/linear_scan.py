"""h_t = decay_t * h_{t-1} + drive_t, elementwise, over the leading axis.

Two ways, equal forward and in every gradient:

`associative_scan` is `jax.lax.associative_scan`, differentiated by JAX: log T
passes over all of memory, and as many arrays kept for the reverse pass.

`linear_scan` runs over chunks side by side: first each chunk by itself from
zero, with the product of its decays; then the few carries from chunk to chunk;
then one multiply and add over everything. Its reverse pass is the same scan
run backwards, from the outputs alone (Martin & Cundy, 2018). On one CPU device
it is a plain loop in C++ instead (`kernels.native`), which memory bounds.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from recurrent.kernels import native, transforms
from recurrent.types import Array

# Elements that a tick of the inner loop should have: fewer, and the loop costs
# more than the arithmetic. Measured on a 2-core CPU: docs/performance.md.
WIDTH = 4096


def associative_scan(
  decay: Array,
  drive: Array,
  start: Array,
  *,
  resets: Array | None = None,
  reverse: bool = False,
) -> Array:
  """The recurrence by `jax.lax.associative_scan`.

  Args:
    decay: [time, ...], real or complex.
    drive: [time, ...], of the same shape and dtype.
    start: [...], the state before the first tick.
    resets: [time, ...] bool, broadcastable: there the state is the drive alone,
      whatever came before, NaN included.
    reverse: from the last tick to the first.

  Returns:
    The states after each tick, [time, ...].

  Reference:
    Blelloch, "Prefix sums and their applications", 1990.
  """
  first = -1 if reverse else 0
  if resets is not None:
    resets = jnp.broadcast_to(resets, drive.shape)
    # Before the product: a NaN behind a `where` comes back in the gradient.
    start = jnp.where(resets[first], jnp.zeros_like(start), start)
  drive = drive.at[first].add(decay[first] * start)
  if resets is None:
    return jax.lax.associative_scan(_compose, (decay, drive), reverse=reverse)[
      1
    ]
  return jax.lax.associative_scan(
    _compose_with_resets, (decay, drive, resets), reverse=reverse
  )[1]


def _compose(early, late):
  """The map of two stretches, one after the other."""
  return late[0] * early[0], late[0] * early[1] + late[1]


def _compose_with_resets(early, late):
  decay, drive = _compose(early[:2], late[:2])
  return (
    jnp.where(late[2], jnp.zeros_like(decay), decay),
    jnp.where(late[2], late[1], drive),
    early[2] | late[2],
  )


def linear_scan(
  decay: Array,
  drive: Array,
  start: Array,
  *,
  resets: Array | None = None,
  reverse: bool = False,
) -> Array:
  """The recurrence, with a reverse pass of its own.

  Args and results are those of `associative_scan`.

  Reference:
    Martin & Cundy, "Parallelizing linear recurrent neural nets over sequence
    length", 2018.
  """
  # A call in C++ is one device's: what is sharded would be gathered for it.
  by_loops = (
    jax.default_backend() == "cpu"
    and jax.device_count() == 1
    and drive.dtype in native.LINEAR_DTYPES
    and not native.unavailable()
  )
  scan = in_loops if by_loops else in_chunks
  return scan(decay, drive, start, resets=resets, reverse=reverse)


def with_own_gradient(
  run: Callable[..., Array],
  backward: Callable[..., tuple[Array, Array, Array]] | None = None,
) -> Callable[..., Array]:
  """A `linear_scan` whose reverse pass is one more scan.

  Args:
    run: `(reverse, decay, drive, start, resets) -> states`.
    backward: `(reverse, decay, start, resets, states, d_states)` to what decay,
      drive and start have for gradients; None: by `run`, backwards.

  Returns:
    A function with the args and results of `associative_scan`.
  """

  def scan(decay, drive, start, *, resets=None, reverse=False):
    return transforms.call(passes, (reverse,), decay, drive, start, resets)

  def forward(reverse, decay, drive, start, resets):
    states = run(reverse, decay, drive, start, resets)
    return states, (decay, start, resets, states)

  def tangent(reverse, kept, d_args):
    decay, start, resets, states = kept
    d_decay, d_drive, d_start, _ = d_args
    d_decay *= _shift(states, start, reverse)
    if resets is not None:
      resets = jnp.broadcast_to(resets, d_decay.shape)
      d_decay = jnp.where(resets, jnp.zeros_like(d_decay), d_decay)
    return scan(
      decay, d_drive + d_decay, d_start, resets=resets, reverse=reverse
    )

  backward = backward or functools.partial(_backward, run)

  def pull(reverse, kept, d_states):
    return (*backward(reverse, *kept, d_states), None)

  passes = transforms.Passes(run, forward, tangent, pull)
  return scan


def _backward(run, reverse, decay, start, resets, states, d_states):
  first, last = (-1, 0) if reverse else (0, -1)
  # What reaches a state comes from its output and from the tick after it; none
  # comes after the last.
  after = _shift(decay, jnp.zeros_like(decay[last]), not reverse)
  cut = None
  if resets is not None:
    cut = _shift(resets, jnp.ones_like(resets[last]), not reverse)
  d_drive = run(not reverse, after, d_states, jnp.zeros_like(start), cut)
  before = _shift(states, start, reverse)
  d_decay = d_drive * before
  d_start = d_drive[first] * decay[first]
  if resets is not None:
    d_decay = jnp.where(resets, jnp.zeros_like(d_decay), d_decay)
    d_start = jnp.where(resets[first], jnp.zeros_like(d_start), d_start)
  return d_decay, d_drive, d_start


def _shift(array, edge, back):
  """The neighbour's value: of the tick before, or with `back` the one after."""
  if back:
    return jnp.concatenate([array[1:], edge[None]])
  return jnp.concatenate([edge[None], array[:-1]])


def _in_chunks(reverse, decay, drive, start, resets):
  """The recurrence itself, without a gradient."""
  time = len(drive)
  rows = max(1, math.prod(drive.shape[1:]))
  # No more chunks than ticks a chunk, or the middle loop is the long one.
  chunks = max(1, min(-(-WIDTH // rows), math.isqrt(time)))
  if chunks == 1:
    return _sequential(reverse, decay, drive, start, resets)[0]
  size = -(-time // chunks)
  short = size * chunks - time

  def split(array, fill):
    # Where the loop ends nothing is to happen: decay 1, drive 0.
    edges = (short, 0) if reverse else (0, short)
    edges = [edges] + [(0, 0)] * (array.ndim - 1)
    array = jnp.pad(array, edges, constant_values=fill)
    return jnp.swapaxes(array.reshape(chunks, size, *array.shape[1:]), 0, 1)

  inner = split(decay, 1), split(drive, 0)
  cut = None if resets is None else split(resets, False)
  hidden, kept = _sequential(
    reverse, *inner, jnp.zeros_like(inner[1][0]), cut, products=True
  )
  last = 0 if reverse else -1
  # A product that is zero cuts off what came before, were it NaN.
  into = lambda kept, state: (
    kept * state
    if resets is None
    else jnp.where(kept == 0, jnp.zeros_like(state), kept * state)
  )
  step = lambda state, chunk: (chunk[0] + into(chunk[1], state), state)
  _, entering = jax.lax.scan(
    step, start, (hidden[last], kept[last]), reverse=reverse
  )
  hidden = hidden + into(kept, jnp.broadcast_to(entering, hidden.shape))
  hidden = jnp.swapaxes(hidden, 0, 1).reshape(size * chunks, *drive.shape[1:])
  return hidden[short:] if reverse else hidden[:time]


# The recurrence in chunks; see `linear_scan`.
in_chunks = with_own_gradient(_in_chunks)


def by_kernel(
  run: Callable[..., Array],
  backward: Callable[..., tuple[Array, Array, Array]] | None = None,
  platform: str | None = None,
) -> Callable[..., Array]:
  """`with_own_gradient` of a kernel, whose plain form is `in_chunks`.

  Args:
    run: as there.
    backward: as there.
    platform: the only one that the kernel runs on, or None.

  Returns:
    As there.
  """

  def whole(*args):
    static, args = args[:1], args[1:]
    return transforms.kernel(run, _in_chunks, static, *args, platform=platform)

  def pull(*args):
    static, args = args[:1], args[1:]
    return transforms.kernel(
      backward, _pull_in_chunks, static, *args, platform=platform
    )

  return with_own_gradient(whole, pull if backward else None)


_pull_in_chunks = functools.partial(_backward, _in_chunks)
# The recurrence in C++.
in_loops = by_kernel(native.linear_forward, native.linear_backward, "cpu")


def _sequential(reverse, decay, drive, start, resets, products=False):
  """States, and if asked the products of the decays up to each tick."""

  def tick(carry, now):
    state, kept = carry
    decay, drive, reset = now
    state = decay * state + drive
    kept = decay * kept if products else None
    if reset is not None:
      reset = jnp.broadcast_to(reset, state.shape)
      state = jnp.where(reset, drive, state)
      kept = jnp.where(reset, jnp.zeros_like(kept), kept) if products else None
    return (state, kept), (state, kept)

  kept = jnp.ones_like(start) if products else None
  return jax.lax.scan(
    tick, (start, kept), (decay, drive, resets), reverse=reverse
  )[1]
