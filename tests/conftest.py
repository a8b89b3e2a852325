"""What every test runs under: strict numerics, eight CPU devices."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A worker of pytest-xdist has one core; more threads only get in its way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def x64():
  """float64 for one test."""
  with jax.enable_x64(True):
    yield
