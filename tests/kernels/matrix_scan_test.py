"""The matrix recurrence in chunks against a loop in NumPy and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurrent import kernels
from recurrent.cells import MLSTM
from recurrent.kernels.matrix_scan import CHUNKS
from tests.cells.cases import assert_close, cases, everything, law

CHUNK = CHUNKS[0]  # heads are narrow here
B, N, K, V = 2, 2, 3, 4
# A part of a chunk, just one, one and a bit, several.
TIMES = (1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 22)


def draw(time, seed=0):
  random = np.random.default_rng(seed)
  time_steps = {
    "log_decay": -random.exponential(0.1, size=(time, B, N)),
    "key": random.normal(size=(time, B, N, K)),
    "value": random.normal(size=(time, B, N, V)),
    "query": random.normal(size=(time, B, N, K)),
  }
  start, fresh = random.normal(size=(2, B, N, K, V))
  return time_steps, start, fresh, random.random((time, B)) < 0.05


def by_loop(time_steps, start, fresh, resets, reverse):
  found = np.zeros((len(resets), B, N, V))
  state = start.copy()
  for t in range(len(resets))[:: -1 if reverse else 1]:
    state[resets[t]] = fresh[resets[t]]
    outer = (
      time_steps["key"][t][..., None] * time_steps["value"][t][..., None, :]
    )
    state = np.exp(time_steps["log_decay"][t])[..., None, None] * state + outer
    found[t] = (time_steps["query"][t][..., None] * state).sum(axis=-2)
  return found, state


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.usefixtures("x64")
def test_it_is_the_loop(time, reverse):
  time_steps, start, fresh, resets = draw(time)
  for flags in (resets, np.zeros_like(resets)):
    got = kernels.matrix_scan(
      **time_steps, start=start, fresh=fresh, resets=flags, reverse=reverse
    )
    assert_close(got, by_loop(time_steps, start, fresh, flags, reverse), 1e-12)
  got = kernels.matrix_scan(**time_steps, start=start, reverse=reverse)
  assert_close(got, by_loop(time_steps, start, fresh, flags, reverse), 1e-12)


@pytest.mark.usefixtures("x64")
def test_a_shut_gate_in_a_chunk_costs_no_digits():
  time_steps, start, fresh, resets = draw(CHUNK)
  time_steps["log_decay"][5] = -1e6
  narrow = lambda x: jnp.asarray(x, jnp.float32)
  got = kernels.matrix_scan(
    **jax.tree.map(narrow, time_steps), start=narrow(start)
  )
  want = by_loop(time_steps, start, fresh, np.zeros_like(resets), False)
  assert_close(got, want, 1e-6)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.usefixtures("x64")
@settings(law, max_examples=3)
@given(data=st.data())
def test_over_several_chunks_all_gradients_are_those_of_the_scan(reverse, data):
  cell = MLSTM(4, heads=2)
  case = data.draw(cases(cell, ((2, 2 * CHUNK + 9, 3),)))
  got, want = (
    everything(cell, method=method, reverse=reverse)(case)
    for method in ("chunkwise", "scan")
  )
  assert_close(got, want, 1e-11)


@pytest.mark.usefixtures("x64")
def test_nothing_of_what_was_before_a_reset_gets_past_it():
  time_steps, start, fresh, resets = draw(CHUNK + 9)
  resets[:] = False
  resets[7] = True
  found, state = kernels.matrix_scan(
    **time_steps, start=start * np.nan, fresh=fresh, resets=resets
  )
  assert np.isnan(found[:7]).all()
  after = jax.tree.map(lambda x: x[7:], time_steps)
  want = by_loop(after, fresh, fresh, np.zeros_like(resets[7:]), False)
  assert_close((found[7:], state), want, 1e-12)
