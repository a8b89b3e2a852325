"""The linear recurrence h_t = decay_t * h_{t-1} + drive_t, elementwise.

Two functions compute it over the leading axis, with the same results and
gradients.

`associative_scan` is `jax.lax.associative_scan`, differentiated by JAX. It
makes log T passes over the arrays, and stores as many arrays for the reverse
pass.

`linear_scan` has a reverse pass that is the same scan, run backwards, and that
stores only the outputs (Martin & Cundy, 2018). `loop_for` chooses one of three
loops for the present setting:

- `in_cpp`, a loop in C++ (`kernels.cpu`), which is limited by memory bandwidth.
  It runs on a single CPU device.
- `one_by_one`, a plain `jax.lax.scan`, on several CPU devices or without a
  compiler.
- `in_chunks`, chunks of time steps in parallel, on a GPU or TPU: first all
  chunks from zero states, along with the products of their decays; then the
  states at the ends of the chunks, one after the other; then one multiply-add
  over all time steps.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from recurrent.kernels import chunks, cpu, transforms
from recurrent.setting import Setting
from recurrent.types import Array

# The number of elements that a time step of the inner loop should have. With
# fewer, the overhead of the loop exceeds the arithmetic. Measured on a 2-core
# CPU: docs/performance.md.
WIDTH = 4096


def associative_scan(
  decay: Array,
  drive: Array,
  start: Array,
  *,
  resets: Array | None = None,
  reverse: bool = False,
) -> Array:
  """Solves the linear recurrence by `jax.lax.associative_scan`.

  Args:
    decay: [time, ...], real or complex.
    drive: [time, ...], of the same shape and dtype.
    start: [...], the state before the first time step.
    resets: [time, ...] bool, broadcastable. Where True, the state is the drive,
      even if the state before is NaN.
    reverse: whether to run from the last time step to the first.

  Returns:
    The states after each time step, [time, ...].

  Reference:
    Blelloch, "Prefix sums and their applications", 1990.
  """
  first = -1 if reverse else 0
  if resets is not None:
    resets = jnp.broadcast_to(resets, drive.shape)
    # `where` comes before the product: after it, a NaN in `start` would still
    # reach the gradient.
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
  """Composes the affine maps of two adjacent segments."""
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
  """Solves the linear recurrence, with a custom reverse pass.

  Arguments and results are those of `associative_scan`.

  Reference:
    Martin & Cundy, "Parallelizing linear recurrent neural nets over sequence
    length", 2018.
  """
  loop = loop_for(Setting.here(drive.dtype, start.dtype))
  return loop.scan(decay, drive, start, resets=resets, reverse=reverse)


def with_own_gradient(
  run: Callable[..., Array],
  backward: Callable[..., tuple[Array, Array, Array]] | None = None,
) -> Callable[..., Array]:
  """Makes a `linear_scan` whose reverse pass is one more scan.

  Args:
    run: the recurrence without a gradient, `(reverse, decay, drive, start,
      resets) -> states`.
    backward: `(reverse, decay, start, resets, states, d_states) -> (d_decay,
      d_drive, d_start)`; None: computed with `run` in the other direction.

  Returns:
    A function with the arguments and results of `associative_scan`.
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
  # The cotangent of a state comes from its output and from the next time step,
  # which the last state does not have.
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
  """Shifts by one time step: to the value before, or after if `back`."""
  if back:
    return jnp.concatenate([array[1:], edge[None]])
  return jnp.concatenate([edge[None], array[:-1]])


def _in_chunks(reverse, decay, drive, start, resets):
  """Solves the recurrence in chunks, without a custom gradient."""
  time = len(drive)
  rows = max(1, math.prod(drive.shape[1:]))
  # There are no more chunks than time steps in a chunk, or the loop over chunks
  # would be the longest.
  number = max(1, min(-(-WIDTH // rows), math.isqrt(time)))
  if number == 1:
    return _one_by_one(reverse, decay, drive, start, resets)
  size = -(-time // number)

  def split(array, fill):
    # Padding at the end of the loop leaves the state unchanged: decay 1, drive
    # 0. Chunks run in parallel, so the axis of the loop comes first.
    array = chunks.split(array, size, fill=fill, front=reverse)
    return jnp.swapaxes(array, 0, 1)

  inner = split(decay, 1), split(drive, 0)
  cut = None if resets is None else split(resets, False)
  hidden, kept = _sequential(
    reverse, *inner, jnp.zeros_like(inner[1][0]), cut, products=True
  )
  last = 0 if reverse else -1
  # With resets, a product of zero removes the earlier state, even if it is NaN.
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
  return chunks.join(jnp.swapaxes(hidden, 0, 1), time, front=reverse)


# The recurrence in chunks; see `linear_scan`.
in_chunks = with_own_gradient(_in_chunks)


def by_kernel(
  run: Callable[..., Array],
  backward: Callable[..., tuple[Array, Array, Array]] | None = None,
  platform: str | None = None,
) -> Callable[..., Array]:
  """Makes a `linear_scan` of a kernel, with `in_chunks` as its plain form.

  Args:
    run: the kernel, as in `with_own_gradient`.
    backward: as in `with_own_gradient`.
    platform: the only platform that the kernel runs on; None: any.

  Returns:
    A function with the arguments and results of `associative_scan`.
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
in_cpp = by_kernel(cpu.linear_forward, cpu.linear_backward, "cpu")


def _one_by_one(*args):
  """Solves the recurrence one time step after the other."""
  return _sequential(*args)[0]


one_by_one = with_own_gradient(_one_by_one)


class Loop(NamedTuple):
  """A loop of `linear_scan`.

  Attributes:
    scan: a function with the arguments and results of `associative_scan`.
    about: what it is and why it was chosen, for `recurrent.explain`.
  """

  scan: Callable[..., Array]
  about: str


CPP = Loop(in_cpp, "by the loop in C++")
PLAIN = Loop(one_by_one, "by a plain loop")
CHUNKS = Loop(in_chunks, "by chunks of time steps in parallel")


def loop_for(setting: Setting) -> Loop:
  """Returns the loop of `linear_scan` in a setting."""
  if setting.platform != "cpu":
    return CHUNKS
  why_not = cpu.why_not_here(setting, cpu.LINEAR_DTYPES)
  why_not = why_not or cpu.why_slow_here(setting)
  if why_not:
    return PLAIN._replace(about=f"{PLAIN.about}, as the one in C++ {why_not}")
  return CPP


def _sequential(reverse, decay, drive, start, resets, products=False):
  """Returns states and, if `products`, the products of the decays so far."""

  def time_step(carry, now):
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
    time_step, (start, kept), (decay, drive, resets), reverse=reverse
  )[1]
