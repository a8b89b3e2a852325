"""Tests that checkpoints, or older good ones, are restored exactly."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recurrent import sharding
from recurrent.errors import CheckpointError, WorkdirError
from recurrent.training import checkpoint
from recurrent.training.checkpoint import Checkpoints
from recurrent.training.digest import tree_sha256
from tests.training import hostile

# Orbax leaves coroutines of a closed event loop behind when a read fails.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"
)


# `make faults` tries many more.
ALL_FAULTS = "RECURRENT_ALL_FAULTS" in os.environ


def state_at(step):
  key = jax.random.fold_in(jax.random.key(0), step)
  return {
    "params": {"kernel": jax.random.normal(key, (64, 48))},
    "carry": (jax.random.normal(key, (8, 16)).astype(jnp.bfloat16),),
    "step": jnp.int32(step),
  }


def template(devices=1):
  mesh = sharding.make_mesh(devices)
  where = sharding.replicated(mesh), sharding.split_batch(mesh)
  return {
    "params": {
      "kernel": jax.ShapeDtypeStruct((64, 48), jnp.float32, sharding=where[0])
    },
    "carry": (jax.ShapeDtypeStruct((8, 16), jnp.bfloat16, sharding=where[1]),),
    "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=where[0]),
  }


@pytest.fixture
def folder(tmp_path):
  """Steps 1, 2 and 3; the best is 2."""
  checkpoints = Checkpoints(tmp_path / "checkpoints", "fingerprint")
  for step in (1, 2, 3):
    checkpoints.save(step, state_at(step), {"seen": step}, best_step=2)
  checkpoints.close()
  return tmp_path / "checkpoints"


def restore(folder, devices=1):
  return Checkpoints(folder, "fingerprint").restore_latest(template(devices))


def test_every_bit_comes_back(folder):
  found = restore(folder)
  assert (found.step, found.progress) == (3, {"seen": 3})
  assert tree_sha256(found.state) == tree_sha256(state_at(3))


@pytest.mark.several_devices
@pytest.mark.parametrize("devices", [2, 8])
def test_every_bit_comes_back_on_another_mesh(folder, devices):
  found = restore(folder, devices)
  assert found.state["carry"][0].sharding.num_devices == devices
  assert tree_sha256(found.state) == tree_sha256(state_at(3))


def test_a_part_of_the_state_can_be_restored_alone(folder):
  part = {"params": template()["params"]}
  found = Checkpoints(folder, "fingerprint").restore(2, part)
  want = state_at(2)["params"]["kernel"]
  np.testing.assert_array_equal(found.state["params"]["kernel"], want)


def test_a_part_needs_no_template(folder):
  checkpoints = Checkpoints(folder, "fingerprint")
  found = checkpoints.restore_part(2, "params")
  assert found.keys() == {"kernel"}
  np.testing.assert_array_equal(
    found["kernel"], state_at(2)["params"]["kernel"]
  )
  flip_a_bit(data_files(folder, 2)[0])
  with pytest.raises(CheckpointError, match="is damaged"):
    checkpoints.restore_part(2, "params")


def test_the_latest_two_and_the_best_are_kept(folder):
  checkpoints = Checkpoints(folder, "fingerprint")
  for step in (4, 5, 6):
    checkpoints.save(step, state_at(step), {}, best_step=2)
  checkpoints.close()
  assert checkpoints.steps() == [2, 5, 6]


def test_no_checkpoint_is_none(tmp_path):
  assert restore(tmp_path / "nothing") is None


def data_files(folder, step):
  """Files of a step, the largest first: the arrays lead."""
  root = folder / str(step)
  files = [f for f in root.rglob("*") if f.is_file()]
  return sorted(files, key=lambda f: -f.stat().st_size)


def truncate(file):
  os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(file):
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 4
  file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, os.remove])
def test_a_damaged_array_falls_back_to_the_step_before(folder, damage, caplog):
  damage(data_files(folder, 3)[0])
  found = restore(folder)
  assert found.step == 2
  assert tree_sha256(found.state) == tree_sha256(state_at(2))
  assert "3 is damaged" in caplog.text
  assert (folder.parent / "checkpoints.damaged" / "3").is_dir()


def test_every_file_of_a_step_may_be_missing(folder, tmp_path):
  names = [f.relative_to(folder) for f in data_files(folder, 3)]
  for number, name in enumerate(names):
    copy = tmp_path / f"copy{number}" / "checkpoints"
    shutil.copytree(folder, copy)
    (copy / name).unlink()
    found = restore(copy)
    # Some files only describe: then nothing is lost. Never other numbers.
    assert found.step in (2, 3), name
    assert tree_sha256(found.state) == tree_sha256(state_at(found.step)), name


def test_flipped_bits_never_change_a_number(folder, tmp_path):
  rng = np.random.default_rng(0)
  for number in range(500 if ALL_FAULTS else 12):
    copy = tmp_path / f"copy{number}" / "checkpoints"
    shutil.copytree(folder, copy)
    files = data_files(copy, 3)
    file = files[number % len(files)]
    content = bytearray(file.read_bytes())
    if not content:
      continue
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    file.write_bytes(content)
    found = restore(copy)
    assert tree_sha256(found.state) == tree_sha256(state_at(found.step)), file
    shutil.rmtree(copy.parent)


def test_an_empty_folder_with_a_number_is_no_checkpoint(folder):
  (folder / "10").mkdir()
  assert restore(folder).step == 3


@pytest.mark.parametrize("name", ["007", "-1", "5 (copy)", "note.txt"])
def test_other_names_are_ignored(folder, name):
  (folder / name).mkdir()
  assert restore(folder).step == 3


def test_a_step_under_another_number_is_damaged(folder):
  shutil.copytree(folder / "2", folder / "9")
  assert restore(folder).step == 3


def test_a_link_in_a_checkpoint_is_refused(folder, tmp_path):
  (tmp_path / "secret").write_text("secret")
  (folder / "3" / "state" / "link").symlink_to(tmp_path / "secret")
  assert restore(folder).step == 2


@pytest.fixture
def short_folder():
  """A folder whose path is short, with steps 2 and 3."""
  with tempfile.TemporaryDirectory(dir="/tmp") as name:
    root = pathlib.Path(name)
    with Checkpoints(root / "checkpoints", "fingerprint") as checkpoints:
      for step in (2, 3):
        checkpoints.save(step, state_at(step), {"seen": step}, best_step=2)
    (root / "outside").mkdir()
    yield root


@pytest.mark.parametrize("name", hostile.ATTACKS)
def test_a_hostile_checkpoint_is_refused_and_nothing_outside_opened(
  short_folder, name
):
  folder, outside = short_folder / "checkpoints", short_folder / "outside"
  hostile.ATTACKS[name](folder / "3", outside)
  with hostile.Openings(outside) as openings:
    with pytest.raises(CheckpointError):
      Checkpoints(folder, "fingerprint").restore_part(3, "params")
    assert restore(folder).step == 2
  assert openings.seen == b""


def test_it_is_seen_when_a_file_outside_is_opened(tmp_path):
  (tmp_path / "secret").write_text("secret")
  with hostile.Openings(tmp_path) as openings:
    (tmp_path / "secret").read_text()
  assert b"secret" in openings.seen


def test_the_tables_of_a_hostile_checkpoint_can_be_rewritten(short_folder):
  # A file of another name inside the checkpoint is found: the attacks that name
  # one outside are refused for the path alone.
  folder = short_folder / "checkpoints"
  hostile.elsewhere(folder / "3", "d/other")
  assert restore(folder).step == 3


def test_when_none_is_good_it_says_so_and_loses_nothing(folder):
  for step in (1, 2, 3):
    if (folder / str(step)).exists():
      flip_a_bit(data_files(folder, step)[0])
  with pytest.raises(CheckpointError, match="none of the checkpoints"):
    restore(folder)
  kept = folder.parent / "checkpoints.damaged"
  assert sorted(d.name for d in kept.iterdir()) == ["2", "3"]


def test_training_goes_on_after_a_fall_back(folder):
  truncate(data_files(folder, 3)[0])
  checkpoints = Checkpoints(folder, "fingerprint")
  assert checkpoints.restore_latest(template()).step == 2
  checkpoints.save(3, state_at(3), {}, best_step=2)
  checkpoints.close()
  assert restore(folder).step == 3


def test_another_configuration_is_refused(folder):
  with pytest.raises(CheckpointError, match="another configuration"):
    Checkpoints(folder, "other").restore_latest(template())


def test_another_model_is_refused_by_the_name_of_its_array(folder):
  other = template()
  other["params"]["peephole"] = other["params"].pop("kernel")
  with pytest.raises(CheckpointError, match="params/peephole"):
    Checkpoints(folder, "fingerprint").restore_latest(other)


def test_keys_come_back_as_keys(tmp_path):
  mesh = sharding.make_mesh(1)
  state = {
    "key": jax.random.key(3),
    "fast": jax.random.split(jax.random.key(4, impl="rbg"), 2),
  }
  shapes = jax.tree.map(
    lambda k: jax.ShapeDtypeStruct(
      k.shape, k.dtype, sharding=sharding.replicated(mesh)
    ),
    state,
  )
  with Checkpoints(tmp_path / "checkpoints", "fingerprint") as checkpoints:
    checkpoints.save(1, state, {}, best_step=1)
  found = Checkpoints(tmp_path / "checkpoints", "fingerprint").restore(
    1, shapes
  )
  for name, key in state.items():
    assert found.state[name].dtype == key.dtype
    np.testing.assert_array_equal(
      jax.random.key_data(found.state[name]), jax.random.key_data(key)
    )


def test_the_progress_of_a_saved_step_can_be_replaced(folder):
  with Checkpoints(folder, "fingerprint") as checkpoints:
    checkpoints.save(3, state_at(3), {"seen": "more"}, best_step=2)
  found = restore(folder)
  assert (found.step, found.progress) == (3, {"seen": "more"})
  assert tree_sha256(found.state) == tree_sha256(state_at(3))


def test_a_save_that_fails_in_the_background_is_known_before_the_next(
  tmp_path, monkeypatch
):
  def fail(self, *args):
    raise ValueError("RESOURCE_EXHAUSTED: [OS error 28: ENOSPC No space]\nmore")

  checkpoints = Checkpoints(tmp_path / "checkpoints", "fingerprint")
  checkpoints.save(1, state_at(1), {}, best_step=1)
  checkpoints.wait()
  manager = checkpoint.ocp.CheckpointManager
  monkeypatch.setattr(manager, "_finalize_checkpoint", fail)
  checkpoints.save(2, state_at(2), {}, best_step=1)
  deadline = time.monotonic() + 60
  with pytest.raises(WorkdirError, match="cannot be saved: ENOSPC No space\n"):
    while time.monotonic() < deadline:
      checkpoints.check()
      time.sleep(0.01)
  assert restore(tmp_path / "checkpoints").step in (1, 2)


def test_a_full_disk_ends_a_save_and_keeps_those_before(tmp_path):
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
  try:
    subprocess.run(mount, check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError):
    pytest.skip("mounting takes a superuser")
  try:
    checkpoints = Checkpoints(disk / "checkpoints", "fingerprint")
    checkpoints.save(1, state_at(1), {}, best_step=1)
    checkpoints.wait()
    with contextlib.suppress(OSError), (disk / "rest").open("wb") as rest:
      while True:
        rest.write(bytes(4096))
    with pytest.raises(WorkdirError) as error:
      checkpoints.save(2, state_at(2), {}, best_step=1)
      checkpoints.wait()
    assert error.value.exit_code == 5
    assert len(error.value.cause.splitlines()) == 1
    found = restore(disk / "checkpoints")
    assert found.step == 1
    assert tree_sha256(found.state) == tree_sha256(state_at(1))
  finally:
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_another_format_names_the_remedy(folder):
  file = folder / "3" / "about" / "metadata"
  file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
  with pytest.raises(CheckpointError, match="has format 99, not 1") as error:
    restore(folder)
  assert "version of recurrent that wrote it" in error.value.remedy
