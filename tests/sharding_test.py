import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from recurrent import sharding
from recurrent.errors import ConfigError

pytestmark = pytest.mark.several_devices

DEVICES = (1, 2, 4, 8)


@pytest.mark.parametrize("devices", DEVICES)
def test_a_mesh_holds_the_first_devices_on_one_axis(devices):
  mesh = sharding.make_mesh(devices)
  assert dict(mesh.shape) == {"data": devices}
  assert list(mesh.devices) == jax.devices()[:devices]
  assert mesh.axis_types == (AxisType.Auto,)


@pytest.mark.parametrize("everything", [None, 0])
def test_without_a_number_the_mesh_holds_all_devices(everything):
  assert sharding.make_mesh(everything).size == 8


def test_too_many_devices_are_refused_with_the_number_there_are():
  with pytest.raises(ConfigError, match="`devices=9`, but there are 8") as info:
    sharding.make_mesh(9)
  assert "`devices=8`" in info.value.remedy


@pytest.mark.parametrize("devices", DEVICES)
def test_a_batch_is_split_by_its_first_axis(devices):
  mesh = sharding.make_mesh(devices)
  batch = {
    "inputs": np.arange(16, dtype=np.int32).reshape(8, 2),
    "resets": np.arange(8) % 3 == 0,
  }
  placed = sharding.put(batch, sharding.split_batch(mesh))
  rows = 8 // devices
  for name, array in batch.items():
    shards = placed[name].addressable_shards
    assert [shard.device for shard in shards] == jax.devices()[:devices]
    for number, shard in enumerate(shards):
      np.testing.assert_array_equal(
        shard.data, array[number * rows : (number + 1) * rows]
      )


@pytest.mark.parametrize("devices", DEVICES)
def test_what_is_replicated_is_whole_on_every_device(devices):
  mesh = sharding.make_mesh(devices)
  array = np.arange(6, dtype=np.float32).reshape(3, 2)
  placed = sharding.put({"kernel": array}, sharding.replicated(mesh))["kernel"]
  assert len(placed.addressable_shards) == devices
  for shard in placed.addressable_shards:
    np.testing.assert_array_equal(shard.data, array)


TREE = {
  "tokens": np.arange(16, dtype=np.uint16).reshape(8, 2),
  "ids": np.arange(8, dtype=np.int64),
  "values": np.linspace(0, 1, 8),
  "resets": np.arange(8) % 2 == 0,
}


@pytest.mark.parametrize("place", [sharding.split_batch, sharding.replicated])
def test_one_process_of_many_places_arrays_as_a_single_one_does(
  place, monkeypatch
):
  where = place(sharding.make_mesh(4))
  alone = sharding.put(TREE, where)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  among_many = sharding.put(TREE, where)
  for name in TREE:
    one, other = alone[name], among_many[name]
    assert one.dtype == other.dtype
    assert one.sharding == other.sharding
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("processes", [1, 2])
def test_scalars_can_be_placed(processes, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: processes)
  where = sharding.replicated(sharding.make_mesh(2))
  placed = sharding.put({"step": 3, "rate": 0.5}, where)
  assert (int(placed["step"]), float(placed["rate"])) == (3, 0.5)


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("rows", [8, 16, 24])
def test_a_batch_that_divides_is_accepted(devices, rows):
  sharding.check_batch_size("batch_size", rows, sharding.make_mesh(devices))


@pytest.mark.parametrize(
  "rows,devices,remedy",
  [
    (1, 2, "use `batch_size=2`"),
    (3, 8, "use `batch_size=8`"),
    (9, 8, "use `batch_size=8` or `batch_size=16`"),
    (31, 8, "use `batch_size=24` or `batch_size=32`"),
    (5, 4, "use `batch_size=4` or `batch_size=8`"),
  ],
)
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_do(
  rows, devices, remedy
):
  mesh = sharding.make_mesh(devices)
  with pytest.raises(ConfigError, match=f"`batch_size={rows}` ") as info:
    sharding.check_batch_size("batch_size", rows, mesh)
  assert info.value.remedy == remedy


def test_the_refusal_names_the_argument_it_was_asked_about():
  with pytest.raises(ConfigError, match="`eval_rows=3` ") as info:
    sharding.check_batch_size("eval_rows", 3, sharding.make_mesh(2))
  assert info.value.remedy.startswith("use `eval_rows=")


def test_a_split_batch_and_a_replicated_kernel_multiply_to_a_split_product():
  mesh = sharding.make_mesh(8)
  inputs = np.arange(16, dtype=np.float32).reshape(8, 2)
  kernel = np.array([[1.0, -1.0], [2.0, 0.5]], np.float32)
  outputs = jax.jit(lambda x, w: x @ w)(
    sharding.put(inputs, sharding.split_batch(mesh)),
    sharding.put(kernel, sharding.replicated(mesh)),
  )
  # Halves of small integers: exact.
  np.testing.assert_array_equal(outputs, inputs @ kernel)
  assert outputs.addressable_shards[0].data.shape == (1, 2)


# A second axis.


@pytest.mark.parametrize("model_parallel", [2, 4, 8])
def test_a_divided_model_has_an_axis_of_its_own(model_parallel):
  mesh = sharding.make_mesh(8, model_parallel)
  assert dict(mesh.shape) == {
    "data": 8 // model_parallel,
    "model": model_parallel,
  }
  sharding.check_batch_size("batch_size", 8 // model_parallel, mesh)


def test_a_division_that_does_not_divide_the_devices_is_refused():
  with pytest.raises(ConfigError, match="`model_parallel=3` does not") as info:
    sharding.make_mesh(8, 3)
  assert info.value.remedy == "use one of 1, 2, 4, 8"


SHAPES = {
  "embedding": (100, 16),
  "recurrent": (16, 64),
  "bias": (64,),
  "heads": (2, 3, 8),
  "odd": (5, 7),
  "count": (),
  "empty": (0, 8),
}


@pytest.mark.parametrize(
  ("mesh", "by_data", "want"),
  [
    ((4, 1), False, dict.fromkeys(SHAPES, ())),
    (
      (8, 2),
      False,
      {
        "embedding": (None, "model"),
        "recurrent": (None, "model"),
        "heads": (None, None, "model"),
        "empty": (None, "model"),
      },
    ),
    (
      (8, 2),
      True,
      {
        "embedding": ("data", "model"),
        "recurrent": ("data", "model"),
        "bias": ("data",),
        "heads": (None, None, "model"),
        "empty": (None, "model"),
      },
    ),
    (
      (2, 1),
      True,
      {
        "embedding": ("data",),
        "recurrent": ("data",),
        "bias": ("data",),
        "heads": ("data",),
        "empty": (None, "data"),
      },
    ),
  ],
)
def test_matrices_are_divided_by_columns_and_what_is_by_data_by_rows(
  mesh, by_data, want
):
  shapes = {
    name: jax.ShapeDtypeStruct(shape, np.float32)
    for name, shape in SHAPES.items()
  }
  mesh = sharding.make_mesh(*mesh)
  for name, where in sharding.columns(shapes, mesh, by_data=by_data).items():
    wanted = PartitionSpec(*want.get(name, ()))
    rank = len(SHAPES[name])
    assert where.is_equivalent_to(NamedSharding(mesh, wanted), rank), name
