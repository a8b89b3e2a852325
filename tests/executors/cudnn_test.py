"""Tests "cudnn" without a GPU, by JAX's reference implementation of it."""

import jax
import numpy as np
import pytest
from jax.experimental import rnn

from recurrent import compile_for, explain, unroll
from recurrent.cells import CELLS, LSTM
from recurrent.executors import EXECUTORS, Setting, choose
from tests.cells.cases import Case, assert_close, results

HERE = Setting(np.dtype("float32"), np.dtype("float32"), "gpu", 1)


def reference(x, h, c, weights, lengths, *sizes):
  """`rnn.lstm`, in plain JAX."""
  parts = rnn.unpack_lstm_weights(weights, *sizes[:3], sizes[4])
  return rnn.lstm_ref(x, h, c, *parts, lengths, *sizes)


@pytest.fixture
def gpu(monkeypatch):
  """Pretends that there is a GPU with cuDNN."""
  monkeypatch.setattr(rnn, "lstm", reference)
  with compile_for("gpu"):
    yield


def drawn(cell, batch=3, time=7, width=5):
  random = np.random.default_rng(0)
  normal = lambda *shape: random.normal(size=shape).astype(np.float32)
  noisy = lambda x: np.asarray(x) + 0.2 * normal(*x.shape)
  params = jax.tree.map(noisy, cell.init(jax.random.key(0), width))
  carry = jax.tree.map(noisy, cell.initial_carry(params, (batch,)))
  weights = jax.tree.map(lambda x: normal(*x.shape), carry)
  weights = (normal(batch, time, cell.features), weights)
  inputs = normal(batch, time, width)
  return Case(params, carry, inputs, None, None, weights)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("time", [7, 1])
@pytest.mark.parametrize("remat", [None, 3])
def test_it_is_the_plain_scan_forward_and_in_every_gradient(
  time, reverse, remat
):
  cell = LSTM(6)
  case = drawn(cell, time=time)
  run = lambda **how: jax.jit(
    lambda case: results(case, cell, reverse=reverse, **how)
  )(case)
  got, want = run(method="cudnn", remat=remat), run(method="scan")
  assert_close(got, want, 1e-5)
  assert all(np.any(leaf) for leaf in jax.tree.leaves(got))


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", ["mask", "resets"])
def test_flags_are_refused_with_cause_and_remedy(name):
  case = drawn(LSTM(6))
  flags = {name: np.ones((3, 7), bool)}
  with pytest.raises(ValueError, match=f'takes no {name}.*use method="fused"'):
    unroll(
      LSTM(6), case.params, case.carry, case.inputs, method="cudnn", **flags
    )


def test_only_the_plain_lstm_runs_and_only_in_float32_on_a_gpu():
  executor = EXECUTORS["cudnn"]
  able = [name for name in CELLS if not executor.why_not(CELLS[name](6))]
  assert able == ["lstm"]
  assert not executor.why_not_here(HERE)
  narrow = HERE._replace(dtype=np.dtype("float16"))
  assert "computes in float32" in executor.why_not_here(narrow)
  tpu = HERE._replace(platform="tpu")
  assert executor.why_not_here(tpu) == "is for NVIDIA GPUs, not for tpu"
  with pytest.raises(ValueError, match="LSTM is for NVIDIA GPUs, not for cpu"):
    explain(LSTM(6), method="cudnn")


def test_auto_takes_no_method_that_was_not_timed_on_a_gpu():
  for name in CELLS:
    assert choose(CELLS[name](6), HERE).method not in (
      "cudnn",
      "gpu_kernel",
      "tpu_kernel",
    )


@pytest.mark.usefixtures("gpu")
def test_forward_derivatives_are_the_scans_and_second_ones_are_refused():
  case = drawn(LSTM(6))

  def value(inputs, method):
    args = case.params, case.carry, inputs
    return (unroll(LSTM(6), *args, method=method)[1] ** 2).sum()

  slope = lambda f: jax.jit(lambda x: jax.jvp(f, (x,), (x,))[1])(case.inputs)
  by = lambda method: lambda x: value(x, method)
  assert_close(slope(by("cudnn")), slope(by("scan")), 1e-5)
  with pytest.raises(ValueError, match='"cudnn" has no second derivative'):
    slope(jax.grad(by("cudnn")))
