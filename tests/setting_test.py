"""Tests which setting every choice is made for, and that all of them ask it."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from recurrent import cells, compile_for, explain, unroll
from recurrent.decoding import packing
from recurrent.kernels import cpu, linear_scan
from recurrent.kernels.cpu import products
from recurrent.setting import Setting

X = jnp.ones((2, 5, 3))


def place():
  """Platform and devices of the present setting."""
  return Setting.here()[2:]


@pytest.fixture
def with_compiler(monkeypatch):
  """Pretends that the C++ libraries are there; nothing is run."""
  monkeypatch.setattr(cpu, "unavailable", lambda: "")
  monkeypatch.setattr(products, "unavailable", lambda: "")


def program(cell, **how):
  """The jaxpr of a layer, as text."""
  params = cell.init(jax.random.key(0), 3)
  run = lambda x: unroll(cell, params, None, x, **how)[1]
  return str(jax.make_jaxpr(run)(X))


def test_it_is_the_default_backend_with_all_its_devices():
  assert place() == (jax.default_backend(), jax.device_count())


def test_it_follows_compile_for_within_one_thread_and_ends_with_it():
  found = []
  with compile_for("tpu", devices=4):
    assert place() == ("tpu", 4)
    with compile_for("cuda"):
      assert place() == ("gpu", 1)
    assert place() == ("tpu", 4)
    thread = threading.Thread(target=lambda: found.append(place()))
    thread.start()
    thread.join()
  assert [*found, place()] == [("cpu", jax.device_count())] * 2


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (("tpu", 0), "devices must be at least 1, got 0"),
    (("tpu", 1.0), "devices must be at least 1, got 1.0"),
    ((None,), "platform must be a name such as"),
    (("",), "platform must be a name such as"),
  ],
)
def test_a_wrong_platform_or_number_is_refused(args, message):
  with pytest.raises(ValueError, match=message):
    compile_for(*args)


def test_the_carry_is_float32_or_wider():
  for dtype, carry in (("bfloat16", "float32"), ("float64", "float64")):
    assert Setting.here(dtype).carry_dtype == jnp.dtype(carry)


def test_it_follows_the_default_device(monkeypatch):
  with jax.default_device(jax.devices()[0]):
    assert place() == ("cpu", 1)
  # As on a machine whose backend is a GPU.
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert place()[0] == "gpu"
  for device in (jax.devices()[0], "cpu"):
    with jax.default_device(device):
      assert place()[0] == "cpu"


@pytest.mark.several_devices
def test_a_default_device_is_one_device_and_its_loop_is_in_cpp(with_compiler):
  cell = cells.LSTM(4)
  assert place() == ("cpu", jax.device_count())
  first, second = explain(cell).splitlines()[:2]
  assert "by 'fused'" in first
  assert "each device runs it by 'cpu_kernel'" in second
  with jax.default_device(jax.devices()[1]):
    assert place() == ("cpu", 1)
    assert "by 'cpu_kernel'" in explain(cell)


@pytest.mark.several_devices
def test_it_follows_the_mesh_in_use():
  mesh = jax.make_mesh(
    (4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2
  )
  found = []

  def look(x):
    found.append(place())
    return x

  with jax.set_mesh(mesh):
    assert place() == ("cpu", 8)
  rows = PartitionSpec("data")
  for axes in ({"data", "model"}, {"data"}):
    # Along manual axes each device runs a program of its own.
    sharded = jax.shard_map(
      look, mesh=mesh, in_specs=rows, out_specs=rows, axis_names=axes
    )
    jax.jit(sharded)(jnp.ones(8))
  assert found == [("cpu", 1), ("cpu", 2)]
  sharded = jax.shard_map(look, mesh=mesh, in_specs=rows, out_specs=rows)
  with compile_for("tpu", devices=8):
    jax.jit(sharded).trace(jnp.ones(8))
  assert found[2:] == [("tpu", 1)]
  one = jax.make_mesh(
    (1,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1]
  )
  with jax.set_mesh(one):
    assert place() == ("cpu", 1)


# Every choice asks it.


@pytest.mark.usefixtures("with_compiler")
def test_the_method_is_that_of_the_setting():
  cell = cells.LSTM(4)
  assert "recurrent_kernel" in program(cell)
  for how in (("tpu", 1), ("gpu", 1), ("cpu", 2)):
    with compile_for(*how):
      assert "recurrent_kernel" not in program(cell)


@pytest.mark.usefixtures("with_compiler")
def test_the_loop_of_a_linear_scan_is_that_of_the_setting():
  def text(time=64):
    x = jnp.ones((time, 2, 3))
    run = lambda x: linear_scan(x, x, x[0])
    return str(jax.make_jaxpr(run)(x))

  assert "recurrent_kernel" in text()
  with compile_for("cpu", devices=2):
    # Several CPU devices: one plain loop over all 64 time steps.
    assert "recurrent_kernel" not in text()
    assert text().count("scan[") == 1 and "length=64" in text()
  with compile_for("tpu"):
    assert "recurrent_kernel" not in text()
    assert text().count("scan[") == 2 and "length=8" in text()


def test_chunkwise_is_chosen_for_the_setting():
  cell = cells.MLSTM(4)
  long = jnp.ones((1, 64, 3))
  params = cell.init(jax.random.key(0), 3)
  run = lambda x: unroll(cell, params, None, x, method="chunkwise")[1]
  text = lambda: str(jax.make_jaxpr(run)(long))
  assert "length=64" in text()
  with compile_for("tpu"):
    assert "length=64" not in text() and "length=4" in text()


@pytest.mark.usefixtures("with_compiler")
def test_packed_matrices_are_laid_out_for_the_setting():
  weights = jnp.ones((4, 8))
  dims = lambda: packing.pack(weights, "bfloat16").entries.ndim
  assert dims() == 3
  with compile_for("tpu"):
    assert dims() == 2


@pytest.mark.usefixtures("with_compiler")
@pytest.mark.parametrize("name", ["lstm", "lru", "mlstm"])
def test_a_jitted_function_is_traced_again_in_another_context(name):
  cell = cells.get(name)(4)
  params = cell.init(jax.random.key(0), 3)
  run = jax.jit(lambda x: unroll(cell, params, None, x)[1])
  trace = lambda: str(run.trace(X).jaxpr)
  here = trace()
  with compile_for("tpu"):
    there = trace()
    # What is traced for a TPU is right here too.
    np.testing.assert_allclose(
      run(X), unroll(cell, params, None, X, method="scan")[1], rtol=1e-5
    )
  assert here != there and trace() == here


@pytest.mark.parametrize("name", ["lstm", "lru", "mlstm"])
def test_a_program_for_a_tpu_is_lowered_without_one(name):
  cell = cells.get(name)(4)
  params = cell.init(jax.random.key(0), 3)
  run = jax.jit(jax.grad(lambda x: unroll(cell, params, None, x)[1].sum()))
  with compile_for("tpu", devices=4):
    text = run.trace(X).lower(lowering_platforms=("tpu",)).as_text()
    exported = jax.export.export(run, platforms=("tpu",))(X)
  assert "@recurrent_" not in text
  assert "@recurrent_" not in exported.mlir_module()


# `explain` tells of all of them.


def first_line(name, **how):
  return explain(cells.get(name)(4), **how).splitlines()[0]


@pytest.mark.usefixtures("with_compiler")
def test_explain_names_the_loop_of_the_method():
  assert "by 'linear_scan', by the loop in C++: " in first_line("lru")
  plain = "'chunkwise', by the plain loop without a gradient, by chunks with"
  assert plain in first_line("mlstm")
  with compile_for("cpu", devices=2):
    assert (
      "by 'linear_scan', by a plain loop, as the one in C++ gathers arrays"
      " that are sharded over 2 devices: "
    ) in first_line("lru")
    assert "cpu_kernel: possible, gathers arrays that are sharded" in explain(
      cells.LSTM(4)
    )
  with compile_for("tpu"):
    assert "'linear_scan', by chunks of time steps in" in first_line("lru")
    assert "by 'chunkwise', by chunks: " in first_line("mlstm")
    assert "tpu_kernel: possible\n" in explain(cells.LSTM(4))
  assert "by 'cpu_kernel': " in first_line("lstm")
  assert "by 'fused': " in first_line("lstm", dtype="bfloat16")


def test_explain_says_why_there_is_no_loop_in_cpp(monkeypatch):
  monkeypatch.setattr(cpu, "unavailable", lambda: "needs a C++ compiler")
  assert ("a plain loop, as the one in C++ needs a C++ compiler") in first_line(
    "lru"
  )


@pytest.mark.usefixtures("with_compiler")
@pytest.mark.parametrize("name", cells.CELLS)
def test_explain_says_what_is_in_the_program(name):
  cell = cells.CELLS[name](4)
  if not cell.takes_vectors:
    pytest.skip("takes inputs that are not vectors")
  for how in (("cpu", 1), ("cpu", 2), ("tpu", 1)):
    with compile_for(*how):
      said = first_line(name)
      in_cpp = "'cpu_kernel'" in said or "the loop in C++" in said
      assert in_cpp == ("recurrent_kernel" in program(cell))
