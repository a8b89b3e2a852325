"""Fixtures and settings of all tests: strict promotion, and one CPU device.

By default JAX has one CPU device, and so have the tests: `method="auto"` then
chooses as it does for users. Tests that need more are marked `several_devices`:

  pytest                # all tests without the mark
  pytest --devices=8    # the tests with the mark, on eight CPU devices

JAX fixes the number of CPU devices when it first uses one, hence two runs.
"""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Each worker of pytest-xdist has one core; more threads would slow it down.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Most of the time of the tests is XLA's, which compiles thousands of small
# programs that each run a few times. Without LLVM's optimisations, MLIR's
# emitters of fusions and threads of its own it takes a third of the time. Where
# a flag is set twice the last one wins, so those of the caller stand.
os.environ["XLA_FLAGS"] = " ".join(
  [
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
    os.environ.get("XLA_FLAGS", ""),
  ]
)

# Tests compile the same small programs again and again.
_XLA_CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_XLA_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_addoption(parser):
  parser.addoption(
    "--devices",
    type=int,
    default=1,
    help="CPU devices; with more than one only the tests that need several run",
  )


def pytest_configure(config):
  jax.config.update("jax_num_cpu_devices", config.getoption("devices"))


def pytest_collection_modifyitems(config, items):
  several = config.getoption("devices") > 1
  chosen, others = [], []
  for item in items:
    marked = item.get_closest_marker("several_devices") is not None
    (chosen if marked == several else others).append(item)
  if others:
    config.hook.pytest_deselected(items=others)
    items[:] = chosen


_TESTS_A_CLEARING = 200
_tests_run = 0


@pytest.fixture(autouse=True)
def _forget_programs():
  """Clears JAX's caches of compiled programs every 200 tests.

  Each program holds some memory maps, of which Linux allows a process 65,530. A
  worker that kept the programs of 2,000 tests would crash.
  """
  global _tests_run
  yield
  _tests_run += 1
  if _tests_run % _TESTS_A_CLEARING == 0:
    jax.clear_caches()


@pytest.fixture
def standard_promotion():
  """JAX's default promotion of dtypes and ranks; some libraries need it."""
  with (
    jax.numpy_dtype_promotion("standard"),
    jax.numpy_rank_promotion("allow"),
  ):
    yield


@pytest.fixture
def x64():
  """Enables float64 for one test."""
  with jax.enable_x64(True):
    yield
