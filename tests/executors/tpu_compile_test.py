"""Compiles the TPU kernels for TPUs, without having one (`make tpu-compile`).

libtpu contains the compiler and needs no TPU for this. The tests show that the
kernels compile under Mosaic and fit into VMEM; they do not measure time.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments import language_model, programs, runner
from experiments.benchmarks import ahead
from recurrent import kernels, optim, sharding, unroll
from recurrent.cells import CELLS
from recurrent.executors import EXECUTORS
from recurrent.training import step

pytest.importorskip(
  "libtpu", reason="needs libtpu, some 700 MB: make tpu-compile"
)

TPUS = {
  "v4": "v4:2x2x1",
  "v5e": "v5e:2x2",
  "v5p": "v5p:2x2x1",
  "v6e": "v6e:2x2",
}
each_tpu = pytest.mark.parametrize("tpu", TPUS)
ABLE = [n for n in CELLS if not EXECUTORS["tpu_kernel"].why_not(CELLS[n](8))]


def compiled(tpu, function, *args):
  return jax.jit(function).lower(*ahead.on_tpu(TPUS[tpu], args)).compile()


def passes(cell, batch, time, in_features, dtype, method="tpu_kernel"):
  """The forward pass, both passes, and their arguments."""
  shape = jax.ShapeDtypeStruct
  args = (
    jax.eval_shape(lambda: cell.init(jax.random.key(0), in_features)),
    shape((batch, time, in_features), dtype),
    shape((batch, time), jnp.bool_),
    shape((batch, time), jnp.bool_),
  )

  def forward(params, inputs, mask, resets):
    return unroll(
      cell, params, None, inputs, mask=mask, resets=resets, method=method
    )

  def total(*args):
    return sum(jnp.sum(x * x) for x in jax.tree.leaves(forward(*args)[0]))

  return forward, jax.grad(total, argnums=(0, 1)), args


def vmem(program):
  """Bytes that each kernel of a program takes of VMEM, without operands."""
  scoped = (
    r'"{}scoped_memory_configs":\[{{"memory_space":"1","offset":"(\d+)"{}'
  )
  first, last = (
    scoped.format(*edges) for edges in (("", ""), ("used_", ',"size":"(\\d+)"'))
  )
  lines = [x for x in program.splitlines() if '"tpu_custom_call"' in x]
  return [
    int(re.search(last, line)[2]) - int(re.search(first, line)[1])
    for line in lines
  ]


def check(label, executable, kernels_wanted):
  program = executable.as_text()
  found = vmem(program)
  memory = executable.memory_analysis()
  mebi = lambda x: f"{x / 2**20:.1f}"
  print(
    f"\n| {label} | {', '.join(map(mebi, found))} |"
    f" {mebi(memory.argument_size_in_bytes)} |"
    f" {mebi(memory.output_size_in_bytes)} |"
    f" {mebi(memory.temp_size_in_bytes)} |",
    end="",
  )
  assert len(found) == kernels_wanted
  # Time goes by inside the kernel, not around it.
  assert not re.search(r"\bwhile\(", program)


@each_tpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_both_passes_of_a_cell_compile(name, dtype, tpu):
  forward, both, args = passes(CELLS[name](512), 32, 64, 256, jnp.dtype(dtype))
  label = f"{tpu} | {name} (32, 64, 256, 512) {dtype}"
  check(f"{label} | forward", compiled(tpu, forward, *args), 1)
  check(f"{label} | both", compiled(tpu, both, *args), 2)


@each_tpu
def test_both_passes_of_the_linear_scan_compile(tpu):
  shape = (4096, 8, 256)
  decay = jax.ShapeDtypeStruct(shape, jnp.float32)
  start = jax.ShapeDtypeStruct(shape[1:], jnp.float32)
  resets = jax.ShapeDtypeStruct((*shape[:2], 1), jnp.bool_)

  def forward(decay, drive, start, resets):
    return kernels.tpu.linear_scan(decay, drive, start, resets=resets)

  both = jax.grad(lambda *args: jnp.sum(forward(*args) ** 2), argnums=(0, 1, 2))
  args = (decay, decay, start, resets)
  label = f"{tpu} | linear scan (8, 4096, 256) float32"
  check(f"{label} | forward", compiled(tpu, forward, *args), 1)
  check(f"{label} | both", compiled(tpu, both, *args), 2)


# As many time steps as make a block, so that the compiler has less to do around
# it.
@pytest.mark.parametrize("name", ABLE)
def test_every_cell_compiles(name):
  _, both, args = passes(CELLS[name](128), 8, 32, 8, jnp.dtype("bfloat16"))
  check(f"v5e | {name} (8, 32, 8, 128) | both", compiled("v5e", both, *args), 2)


@pytest.mark.parametrize(
  ("tpu", "name", "batch", "time", "in_features", "features"),
  [
    # Gates that end between lanes; rows that fill no tile; one row.
    ("v4", "lstm", 20, 35, 650, 650),
    ("v5e", "gru", 3, 7, 5, 100),
    ("v5e", "lstm", 1, 100, 1024, 1024),
    # Rows in blocks; weights of 32 MiB.
    ("v5p", "lstm", 512, 64, 512, 512),
    ("v5e", "lstm", 32, 64, 256, 2048),
  ],
)
def test_odd_and_large_shapes_compile(
  tpu, name, batch, time, in_features, features
):
  _, both, args = passes(
    CELLS[name](features), batch, time, in_features, jnp.dtype("bfloat16")
  )
  label = f"{tpu} | {name} {(batch, time, in_features, features)} bfloat16"
  check(f"{label} | both", compiled(tpu, both, *args), 2)


def test_weights_that_do_not_fit_are_refused_by_the_compiler():
  forward, _, args = passes(CELLS["lstm"](2048), 8, 8, 8, jnp.dtype("bfloat16"))
  with pytest.raises(jax.errors.JaxRuntimeError, match="vmem"):
    compiled("v4", forward, *args)


def test_under_shard_map_only_the_weight_gradients_are_reduced():
  cell = CELLS["lstm"](512)
  mesh = jax.make_mesh(
    (4,),
    ("data",),
    devices=ahead.devices(TPUS["v5e"]),
    axis_types=(AxisType.Auto,),
  )
  whole, rows = PartitionSpec(), PartitionSpec("data")
  run = jax.shard_map(
    lambda params, inputs: unroll(
      cell, params, None, inputs, method="tpu_kernel"
    )[1],
    mesh=mesh,
    in_specs=(whole, rows),
    out_specs=rows,
    check_vma=False,
  )
  put = lambda tree, spec: jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
    ),
    tree,
  )
  params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 256))
  inputs = jax.ShapeDtypeStruct((64, 64, 256), jnp.float32)
  program = (
    jax.jit(jax.grad(lambda *args: jnp.sum(run(*args))))
    .lower(put(params, whole), put(inputs, rows))
    .compile()
    .as_text()
  )
  assert len(vmem(program)) == 2
  assert set(re.findall(r"\ball-\w+(?=\()", program)) == {"all-reduce"}


@pytest.mark.parametrize(
  ("tpu", "where"), [("v4", "S(3)"), ("v5e", "S(1)"), ("v6e", "S(1)")]
)
def test_xla_keeps_the_weights_of_the_plain_loop_on_chip_too(tpu, where):
  # Should this change, so should the advice in docs/tpu.md.
  _, both, args = passes(
    CELLS["lstm"](512), 32, 64, 256, jnp.dtype("bfloat16"), method="fused"
  )
  program = compiled(tpu, both, *args).as_text()
  loops = [x for x in program.splitlines() if re.search(r"\bwhile\(", x)]
  assert len(loops) == 2
  for loop in loops:
    assert re.findall(r"bf16\[512,2048\]\{[^}]*?(S\(\d\))?\}", loop)[0] == where


def placed(array, where):
  return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where)


def compiled_step(topology, folder, model_parallel=1, zero=False, **flags):
  """The train step of a language model, and the number of its parameters."""
  file = folder / "text.txt"
  file.write_text("the quick brown fox jumps over the lazy dog\n" * 2000)
  config = language_model.Config(
    workdir="x",
    smoke=True,
    text_file=str(file),
    cell="lstm",
    batch_size=128,
    features=128,
    **flags,
  )
  task = language_model.make_task(config)
  optimizer = optim.make_optimizer(config, 1)
  init, graphdef = runner.initialiser(config, task, optimizer)
  devices = np.array(ahead.devices(topology)).reshape(-1, model_parallel)
  axes = ("data", "model") if model_parallel > 1 else ("data",)
  mesh = Mesh(
    devices if model_parallel > 1 else devices.ravel(),
    axes,
    axis_types=(AxisType.Auto,) * len(axes),
  )
  shapes = jax.eval_shape(init)
  where = step.state_sharding(mesh, shapes, zero=zero)
  state = jax.tree.map(placed, shapes, where)
  rows = sharding.split_batch(mesh)
  batch = {k: placed(x, rows) for k, x in task.batches[0].items()}
  train_step = step.make_train_step(
    graphdef, task.loss, optimizer, mesh, seed=0, zero=zero
  )
  program = train_step.lower(state, batch).compile()
  return program, sum(x.size for x in jax.tree.leaves(state.params))


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
  "topology", ["v4:2x2x1", "v5e:2x4", "v5p:2x2x2", "v6e:4x4"]
)
@pytest.mark.parametrize("method", ["auto", "tpu_kernel"])
def test_a_train_step_on_several_tpus_has_one_all_reduce(
  topology, method, tmp_path
):
  program, size = compiled_step(topology, tmp_path, method=method)
  text = program.as_text()
  [found] = programs.collectives(text)
  assert found[:3] == ("all-reduce", False, 1)
  assert size < found.bytes / 4 <= size + 8
  assert len(vmem(text)) == (2 if method == "tpu_kernel" else 0)


@pytest.mark.usefixtures("standard_promotion")
def test_a_divided_model_takes_less_of_each_tpu(tmp_path):
  ways = {
    "whole": {},
    "optimiser divided": {"zero": True},
    "matrices divided": {"model_parallel": 4},
    "both": {"model_parallel": 4, "zero": True},
  }
  taken = {}
  for name, flags in ways.items():
    program, _ = compiled_step("v5e:4x4", tmp_path, ema=0.9, **flags)
    taken[name] = program.memory_analysis().argument_size_in_bytes
    found = programs.collectives(program.as_text())
    print(f"\n| {name} | {taken[name]} |", found)
    # The hidden states: forward, and their gradients.
    in_loop = sum(c.number for c in found if c.in_loop)
    assert in_loop <= 2 * ("model_parallel" in flags)
  assert taken["optimiser divided"] < taken["whole"] / 2
  assert taken["matrices divided"] < taken["whole"] / 2
  assert taken["both"] < taken["matrices divided"] / 1.5
