"""Compares the C++ loops with the plain scan, for each split over threads."""

import os
import stat
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.busy import busy
from recurrent import executors, unroll
from recurrent.cells import GRU, LRU, LSTM, RNN, Heads, LSTMVariant
from recurrent.executors import Setting
from recurrent.kernels import cpu
from tests.cells.cases import Case, assert_close, drawn_by_init, everything
from tests.kernels import cpu_fuzz

pytestmark = pytest.mark.skipif(
  cpu.unavailable() != "", reason=f"it {cpu.unavailable()}"
)
HERE = Setting(jnp.dtype("float32"), jnp.dtype("float32"), "cpu", 1)


def draw(cell, batch, time, dtype):
  random = np.random.default_rng(0)
  normal = lambda *shape: random.normal(size=shape).astype(dtype)
  params, start = drawn_by_init(cell, 3)
  return Case(
    params=jax.tree.map(lambda x: (x + 0.2).astype(dtype) / 2, params),
    carry=jax.tree.map(lambda x: normal(batch, *x.shape), start),
    inputs=normal(batch, time, 3),
    mask=random.random((batch, time)) < 0.8,
    resets=random.random((batch, time)) < 0.2,
    weights=(
      normal(batch, time, cell.features),
      jax.tree.map(lambda x: normal(batch, *x.shape), start),
    ),
  )


# Rows and units that fill vectors and tiles, and that leave some over; enough
# work for threads by rows, by units, with weights too large for rows, alone.
@pytest.mark.parametrize(
  ("make", "batch", "time", "features"),
  [
    (LSTM, 45, 6, 48),
    (LSTM, 3, 6, 130),
    (LSTM, 17, 2, 300),
    (LSTM, 1, 40, 100),
    (lambda h: LSTMVariant(h, coupled=True), 33, 6, 70),
    (GRU, 37, 5, 65),
    (GRU, 2, 30, 128),
    (RNN, 40, 10, 129),
    (lambda h: RNN(h, activation="relu"), 1, 50, 200),
    (lambda h: RNN(h, activation="sigmoid"), 5, 7, 31),
  ],
)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.usefixtures("x64")
def test_it_is_the_plain_scan(make, batch, time, features, reverse):
  cell = make(features)
  case = draw(cell, batch, time, np.float64)
  want = everything(cell, method="scan", reverse=reverse)(case)
  for remat in (None, "gates"):
    how = {"method": "cpu_kernel", "reverse": reverse, "remat": remat}
    assert_close(everything(cell, **how)(case), want, 1e-12)
  narrow = lambda x: x.astype(np.float32) if x.dtype == np.float64 else x
  got = everything(cell, method="cpu_kernel", reverse=reverse)(
    jax.tree.map(narrow, case)
  )
  # float32 rounds at 6e-8, times the time steps and the root of the units.
  assert_close(got, want, 5e-6)


@pytest.mark.parametrize("cell", [RNN(5), LSTM(5), GRU(5)], ids=str)
def test_its_own_sigmoids_are_right_wherever_they_are_asked(cell):
  # One unit alone: projected inputs from 0 to overflow, of both signs.
  sums = np.concatenate(
    [[0.0], 10.0 ** np.linspace(-30, 30, 241), np.linspace(0, 20, 400)]
  )
  sums = np.concatenate([sums, -sums]).astype(np.float32)
  params = cell.init(jax.random.key(0), 1)
  params = jax.tree.map(jnp.zeros_like, params)
  params = params._replace(kernel=jnp.ones_like(params.kernel))
  inputs = jnp.asarray(sums)[:, None, None]
  got, want = (
    unroll(cell, params, None, inputs, method=method)[1]
    for method in ("cpu_kernel", "scan")
  )
  np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-30)


CELLS = (
  *(RNN(20, activation=name) for name in ("tanh", "relu", "sigmoid")),
  *(LSTM(20), GRU(20), LSTMVariant(20, coupled=True)),
)


@pytest.mark.parametrize("cell", CELLS, ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("where", ["inputs", "carry", "bias"])
def test_what_is_not_finite_goes_where_it_goes_in_the_plain_scan(
  cell, value, where
):
  params = cell.init(jax.random.key(0), 2)
  carry = jax.tree.map(
    lambda x: jnp.full((3, *x.shape[1:]), 0.1),
    cell.initial_carry(params, (3,)),
  )
  inputs = jnp.ones((3, 4, 2))
  if where == "inputs":
    inputs = inputs.at[1, 2, 0].set(value)
  elif where == "carry":
    carry = jax.tree.map(lambda x: x.at[1, 3].set(value), carry)
  else:
    params = params._replace(bias=params.bias.at[::7].set(value))

  def run(method):
    def loss(params, carry, inputs):
      made = unroll(cell, params, carry, inputs, method=method)
      return sum(x.sum() for x in jax.tree.leaves(made)), made

    return jax.grad(loss, (0, 1, 2), has_aux=True)(params, carry, inputs)

  jax.tree.map(
    lambda got, want: np.testing.assert_allclose(got, want, 1e-5, 1e-5),
    run("cpu_kernel"),
    run("scan"),
  )


def test_auto_takes_it_on_one_cpu_in_float32_and_says_so():
  coupled = [LSTMVariant(4, coupled=True, forget_bias=b) for b in (1.0, 3.0)]
  for cell in (RNN(4), LSTM(4), GRU(4), *coupled):
    assert executors.choose(cell, HERE).method == "cpu_kernel"
  for setting in (
    HERE._replace(devices=8),
    HERE._replace(platform="tpu"),
    HERE._replace(dtype=jnp.dtype("bfloat16")),
    HERE._replace(carry_dtype=jnp.dtype("float64")),
  ):
    assert executors.choose(LSTM(4), setting).method == "fused"
  assert executors.choose(LSTM(4, structure=Heads(2)), HERE).method == "fused"
  assert (
    executors.choose(LSTMVariant(4, peepholes=True), HERE).method == "fused"
  )


def test_what_it_cannot_run_is_refused():
  inputs = jnp.ones((1, 2, 2), jnp.bfloat16)
  params = LSTM(4).init(jax.random.key(0), 2)
  with pytest.raises(ValueError, match="not in bfloat16"):
    unroll(LSTM(4), params, None, inputs, method="cpu_kernel")
  cell = LRU(4)
  params = cell.init(jax.random.key(0), 2)
  with pytest.raises(ValueError, match="has no loop in C"):
    unroll(cell, params, None, jnp.ones((1, 2, 2)), method="cpu_kernel")


@pytest.fixture
def afresh(monkeypatch, tmp_path):
  """A machine that has not compiled the loops yet."""
  monkeypatch.setenv("RECURRENT_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
  (tmp_path / "temporary").mkdir()
  cpu.unavailable.cache_clear()
  yield tmp_path
  monkeypatch.undo()
  cpu.unavailable.cache_clear()


@pytest.fixture
def tiny(tmp_path):
  """The source of a library that is compiled at once."""
  source = tmp_path / "tiny.cc"
  source.write_text('extern "C" int answer() { return 42; }\n')
  return source


def answer(source):
  found = cpu.functions(source, ["answer"])
  return found and found["answer"]()


def kept(folder):
  return list((folder / "cache").rglob("*.so"))


def spoil(folder, monkeypatch):
  """Puts rubbish in the place of the library; the path of the new one.

  In another folder: the first is loaded.
  """
  (folder / "cache").rename(folder / "elsewhere")
  monkeypatch.setenv("RECURRENT_CACHE", str(folder / "elsewhere"))
  (library,) = folder.glob("elsewhere/cpu_kernel/*.so")
  library.unlink()
  library.write_bytes(b"rubbish")
  return library


def test_without_a_compiler_the_fused_loop_runs(afresh, monkeypatch):
  monkeypatch.setenv("PATH", str(afresh))
  assert "needs a C++ compiler" in cpu.unavailable()
  assert executors.choose(LSTM(4), HERE).method == "fused"


def test_a_compiler_that_fails_is_quoted(afresh, monkeypatch):
  compiler = afresh / "c++"
  compiler.write_text("#!/bin/sh\necho broken >&2; exit 1\n")
  compiler.chmod(0o755)
  monkeypatch.setenv("PATH", f"{afresh}{os.pathsep}{os.environ['PATH']}")
  assert cpu.unavailable() == "did not compile: broken"
  assert not kept(afresh) and not list(afresh.glob("temporary/*"))


def test_the_environment_turns_the_loops_off(afresh, monkeypatch):
  monkeypatch.setenv("RECURRENT_CPU_KERNEL", "0")
  assert cpu.unavailable() == "is turned off by RECURRENT_CPU_KERNEL=0"
  assert executors.choose(LSTM(4), HERE).method == "fused"
  assert not kept(afresh)


def test_a_library_is_compiled_once_and_one_line_says_so(afresh, tiny, caplog):
  assert answer(tiny) == 42
  (library,) = kept(afresh)
  assert stat.S_IMODE(library.parent.stat().st_mode) == 0o700
  (line,) = caplog.messages
  assert "compiling tiny.cc" in line and str(library.parent) in line
  assert answer(tiny) == 42
  assert len(caplog.messages) == 1 and kept(afresh) == [library]


def test_a_library_that_was_compiled_needs_no_compiler(
  afresh, tiny, monkeypatch
):
  answer(tiny)
  monkeypatch.setenv("PATH", str(afresh))
  assert answer(tiny) == 42


def test_what_cannot_be_kept_leaves_no_folder_and_the_remedy_is_said(
  afresh, tiny, caplog
):
  (afresh / "cache").write_text("a file is no folder")
  assert answer(tiny) == 42
  assert "cannot be kept" in caplog.text and "RECURRENT_CACHE" in caplog.text
  assert not list(afresh.glob("temporary/*"))


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_no_library_comes_from_a_folder_where_others_may_write(
  afresh, tiny, caplog, monkeypatch, mode
):
  answer(tiny)
  spoil(afresh, monkeypatch).parent.chmod(mode)
  assert answer(tiny) == 42
  assert "chmod 700" in caplog.text


def test_a_library_that_does_not_load_did_not_fail_to_compile(
  afresh, tiny, monkeypatch
):
  answer(tiny)
  library = spoil(afresh, monkeypatch)
  said = cpu.register(tiny, ["answer"])
  assert said.startswith("did not load: ") and str(library) in said


def test_random_calls_work_or_are_refused():
  found = cpu_fuzz.check(seed=1, count=500)
  assert min(found.values()) > 100


LAYER = {
  "inputs": (2, 3, 4),
  "kernel": (4, 20),
  "input_bias": (20,),
  "recurrent": (5, 20),
  "bias": (0,),
  "mask": (2, 3),
  "resets": (2, 3),
  "initial_hidden": (2, 5),
  "initial_cell": (2, 5),
  "hidden": (2, 5),
  "cell": (2, 5),
}


@pytest.mark.parametrize(
  ("name", "shape", "said"),
  [
    ("inputs", (2, 3, 3), r"kernel must be \[3, 20\], got \[4, 20\]"),
    ("kernel", (20, 4), r"kernel must be \[4, 20\], got \[20, 4\]"),
    ("recurrent", (20, 5), "recurrent must be"),
    ("input_bias", (19,), "input_bias must be"),
    ("mask", (3, 2), r"mask must be \[2, 3\] or \[0\]"),
    ("hidden", (1, 5), "hidden must be"),
    ("inputs", (2, 3), "inputs must have 3 axes"),
  ],
)
def test_a_wrong_shape_is_an_error_that_names_it(name, shape, said):
  arrays = [
    jnp.zeros(size, bool if x in ("mask", "resets") else jnp.float32)
    for x, size in (LAYER | {name: shape}).items()
  ]
  none = jax.ShapeDtypeStruct((0,), jnp.float32)
  at = jax.ShapeDtypeStruct((2, 5), jnp.float32)
  results = jax.ShapeDtypeStruct((2, 3, 5), jnp.float32), at, at
  call = jax.ffi.ffi_call("recurrent_lstm_forward_f32", (*results, *[none] * 3))
  with pytest.raises(jax.errors.JaxRuntimeError, match=said):
    jax.block_until_ready(
      call(*arrays, reverse=False, kind=np.int64(0), threads=np.int64(1))
    )


@pytest.mark.processes
def test_beside_busy_processes_it_makes_the_same_bits():
  cell = LSTM(200)
  params = cell.init(jax.random.key(0), 30)
  inputs = jax.random.normal(jax.random.key(1), (1, 100, 30))

  @jax.jit
  def run(params, inputs):
    outputs = lambda *args: unroll(cell, *args, method="cpu_kernel")[1]
    values, pullback = jax.vjp(lambda p, x: outputs(p, None, x), params, inputs)
    return values, pullback(values)

  want = run(params, inputs)
  with busy(2 * (os.cpu_count() or 1)):
    for _ in range(20):
      jax.tree.map(np.testing.assert_array_equal, run(params, inputs), want)
