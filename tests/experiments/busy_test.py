"""The benchmark beside busy processes, on its smallest work."""

import jax
import pytest

from experiments.benchmarks import busy
from recurrent.kernels.cpu import products

pytestmark = pytest.mark.skipif(
  products.unavailable() != "", reason=f"it {products.unavailable()}"
)


@pytest.mark.parametrize("name", busy.WORK)
def test_each_implementation_of_the_work_can_be_built(name):
  assert set(busy.WORK[name]()) == {"C++", "XLA"}


def test_both_ways_of_a_product_agree():
  fast, plain = busy.tokens(16, "float32", count=3).values()
  difference = jax.numpy.abs(fast() - plain()).max()
  assert difference < 1e-5


def test_busy_processes_end_with_the_measurement():
  with busy.busy(1) as started:
    assert all(process.poll() is None for process in started)
  assert all(process.poll() is not None for process in started)
