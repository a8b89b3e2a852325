import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recurrent.kernels import (
  associative_scan,
  block_scan,
  cpu,
  linear_scan,
  tpu,
)
from recurrent.kernels.linear_scan import in_chunks, in_cpp, one_by_one

WAYS = {
  "associative": associative_scan,
  "chunks": in_chunks,
  "one by one": one_by_one,
  "tpu_kernel": tpu.linear_scan,
  **({} if cpu.unavailable() else {"C++": in_cpp}),
}


def drawn(time, width, kind, seed=0):
  random = np.random.default_rng(seed)
  normal = lambda *shape: random.normal(size=shape)
  if kind == "complex":
    make = lambda *shape: normal(*shape) + 1j * normal(*shape)
  else:
    make = normal
  return (
    make(time, 2, width) / 2,
    make(time, 2, width),
    make(2, width),
    random.random((time, 2, 1)) < 0.2,
  )


def by_hand(decay, drive, start, resets, reverse):
  state, states = start, np.zeros_like(drive)
  order = range(len(drive))
  for t in reversed(order) if reverse else order:
    kept = decay[t] * state
    if resets is not None:
      kept = np.where(resets[t], 0, kept)
    states[t] = state = kept + drive[t]
  return states


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("kind", ["real", "complex"])
# One time step; no whole number of chunks; wide enough for one chunk.
@pytest.mark.parametrize(("time", "width"), [(1, 3), (23, 3), (9, 2048)])
def test_it_is_the_recurrence(way, reverse, with_resets, kind, time, width):
  decay, drive, start, resets = drawn(time, width, kind)
  resets = resets if with_resets else None
  got = jax.jit(WAYS[way], static_argnames="reverse")(
    decay, drive, start, resets=resets, reverse=reverse
  )
  want = by_hand(decay, drive, start, resets, reverse)
  np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_all_ways_have_the_same_gradients(reverse, with_resets, kind):
  decay, drive, start, resets = drawn(23, 3, kind)
  resets = resets if with_resets else None
  weights = drawn(23, 3, kind, seed=1)[1]

  def gradients(scan):
    return jax.grad(
      lambda *args: jnp.sum(
        (scan(*args, resets=resets, reverse=reverse) * weights).real
      ),
      argnums=(0, 1, 2),
    )(decay, drive, start)

  want, *others = map(gradients, WAYS.values())
  for got in others:
    for one, other in zip(got, want, strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_a_reset_stops_a_nan_in_both_passes(way):
  decay, drive, start, _ = drawn(23, 3, "real")
  resets = np.zeros((23, 2, 1), bool)
  resets[4] = True

  def after(decay, drive, start):
    return jnp.sum(WAYS[way](decay, drive, start, resets=resets)[4:])

  args = [jnp.float32(x) for x in (decay, drive, start * np.nan)]
  value, (d_decay, d_drive, d_start) = jax.value_and_grad(
    after, argnums=(0, 1, 2)
  )(*args)
  assert np.isfinite(value)
  assert np.isfinite(d_drive).all() and not np.any(d_start)
  if way != "associative":  # JAX's own rule multiplies the NaN by zero
    assert np.isfinite(d_decay[4:]).all()


@pytest.mark.parametrize("time", [1_000, 100_000])
def test_a_decay_near_one_keeps_its_digits(time):
  # 1 - 1e-7 is the last float32 below 1 but one; a product of 1e5 of them
  # is 0.99, and the sum of the drives is the time.
  decay = np.full((time, 1), 1 - 1e-7, np.float32)
  drive = np.ones((time, 1), np.float32)
  got = linear_scan(decay, drive, np.zeros(1, np.float32))[-1, 0]
  exact = float(decay[0, 0])
  want = (1 - exact**time) / (1 - exact)
  # By halves and chunks, a sum of n rounds some sqrt(n) times.
  assert got == pytest.approx(want, rel=1e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("time", [1, 2, 23])
def test_blocks_are_small_matrix_products(reverse, time):
  random = np.random.default_rng(0)
  blocks = random.normal(size=(3, 3, time, 2, 4)) / 3
  drives, start = (
    random.normal(size=(3, time, 2, 4)),
    random.normal(size=(3, 2, 4)),
  )
  got = block_scan(
    [list(row) for row in blocks], list(drives), list(start), reverse
  )
  state, order = start, range(time)
  for t in reversed(order) if reverse else order:
    state = np.einsum("ij...,j...->i...", blocks[:, :, t], state) + drives[:, t]
    np.testing.assert_allclose([x[t] for x in got], state, rtol=1e-12)


@pytest.mark.parametrize("way", [x for x in WAYS if x in ("chunks", "C++")])
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.usefixtures("x64")
def test_rounding_does_not_add_up_over_many_time_steps(way, dtype):
  time = 100_000
  decay = np.full((time, 2), 1 - 1e-7, dtype)
  drive = np.random.default_rng(0).uniform(0.5, 1.5, (time, 2)).astype(dtype)
  start = np.ones(2, dtype)

  def run(drive):
    states = WAYS[way](decay, drive, start)
    return states.real.sum(), states

  gradient, states = jax.grad(run, has_aux=True)(drive)
  wide = np.complex128 if dtype == np.complex64 else np.float64
  args = [x.astype(wide) for x in (decay, drive, start)]
  want = by_hand(*args, None, False)
  np.testing.assert_allclose(states, want, 5e-6)
  ones = np.ones_like(args[1])
  want = by_hand(args[0], ones, np.zeros_like(args[2]), None, True)
  np.testing.assert_allclose(gradient, want, 5e-6)
