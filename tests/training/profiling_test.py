"""Tests of the trace of some training steps."""

import jax
import jax.numpy as jnp
import pytest

from recurrent.errors import ConfigError
from recurrent.training import profiling


def test_the_steps_are_parsed():
  assert profiling.parse("") == range(0)
  assert profiling.parse("100,5") == range(100, 105)


@pytest.mark.parametrize("text", ["5", "a,b", "1,0", "-1,2", "1,2,3", ","])
def test_other_texts_are_refused(text):
  with pytest.raises(ConfigError, match="which steps to record"):
    profiling.parse(text)


@pytest.mark.parametrize("last", [3, 9])
def test_a_trace_is_written_also_when_the_run_ends_within_it(tmp_path, last):
  add = jax.jit(lambda x: x + 1)
  state = jnp.float32(0)
  with profiling.Profiler(tmp_path, range(2, 5)) as profiler:
    for step in range(last + 1):
      with profiler.step(step, state):
        state = add(state)
  assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1


def test_without_steps_nothing_is_written(tmp_path):
  with profiling.Profiler(tmp_path) as profiler, profiler.step(0, None):
    pass
  assert not list(tmp_path.iterdir())
