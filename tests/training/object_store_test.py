"""Tests of workdirs in an object store; a local folder stands in for one."""

import json
import pathlib
import threading
import time

import pytest
import tensorstore

from recurrent.errors import ConfigError, WorkdirError
from recurrent.training import object_store
from recurrent.training.object_store import ObjectStore
from recurrent.training.workdir import Workdir


@pytest.fixture
def url(tmp_path):
  return f"file://{tmp_path}/bucket/run"


@pytest.fixture
def short_lease(monkeypatch):
  monkeypatch.setattr(object_store, "LEASE_SECONDS", 0.4)


def folder(url):
  return pathlib.Path(url.removeprefix("file://"))


def test_files_are_there_again_on_another_machine(url):
  with Workdir(url) as workdir:
    workdir.claim({"features": 8}, {})
    with (workdir.path / "metrics.jsonl").open("a") as file:
      file.write("row\n")
    workdir.figures.mkdir()
    (workdir.figures / "curves.png").write_bytes(b"\0png")
    first = workdir.path
  assert not first.exists()
  with Workdir(url) as workdir:
    assert workdir.config()["config"] == {"features": 8}
    assert (workdir.path / "metrics.jsonl").read_text() == "row\n"
    assert (workdir.figures / "curves.png").read_bytes() == b"\0png"
    (workdir.path / "metrics.jsonl").unlink()
  with Workdir(url) as workdir:
    assert not (workdir.path / "metrics.jsonl").exists()
    with pytest.raises(ConfigError, match="holds a run of another"):
      workdir.claim({"features": 9}, {})


def test_only_what_has_changed_is_sent(url, monkeypatch):
  with Workdir(url) as workdir:
    workdir.write("a", "1")
    (folder(url) / "a").write_text("left alone")
    workdir.write("b", "2")
    assert (folder(url) / "a").read_text() == "left alone"


def test_a_live_run_keeps_others_out_and_a_dead_one_does_not(url, short_lease):
  first = Workdir(url)
  with pytest.raises(WorkdirError, match="in use by the run on"):
    Workdir(url)
  first._store._lease._ended.set()  # as if it were killed
  Workdir(url).close()


def test_a_run_whose_lease_was_taken_may_not_write(url, short_lease):
  first = Workdir(url)
  first._store._lease._ended.set()
  time.sleep(0.5)
  second = Workdir(url)
  first._store._lease._ended.clear()
  first._store._lease._renew()
  with pytest.raises(WorkdirError, match="lease of .* is lost"):
    first.publish()
  first.close()  # It leaves the lease of the other one alone.
  second.publish()
  second.close()
  assert not (folder(url) / object_store.LEASE).exists()


def test_of_many_that_want_the_lease_one_gets_it(url, monkeypatch):
  monkeypatch.setattr(object_store, "LEASE_SECONDS", 2.0)
  got, refused = [], []

  def take():
    try:
      got.append(Workdir(url))
    except WorkdirError:
      refused.append(True)

  threads = [threading.Thread(target=take) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert (len(got), len(refused)) == (1, 7)
  got[0].close()


def test_names_that_lead_outside_are_not_copied(url):
  folder(url).mkdir(parents=True)
  (folder(url) / "config.json").write_text("{}")
  store = ObjectStore(url)
  memory = tensorstore.KvStore.open({"driver": "memory"}).result()
  for key in ("../evil", "/evil", "a/../../evil", "good", "lease.json"):
    memory.write(key, b"x").result()
  memory.write("checkpoints/1/state", b"x").result()
  store._store = memory
  store.pull()
  assert [p.name for p in store.local.rglob("*")] == ["good"]
  store.close()


def test_an_unknown_scheme_or_a_missing_package_is_said(monkeypatch):
  with pytest.raises(ConfigError, match="there is no store ftp://"):
    ObjectStore("ftp://host/run")
  monkeypatch.setitem(object_store.PACKAGES, "gs", "no_such_package")
  with pytest.raises(ConfigError, match="needs the package no_such_package"):
    ObjectStore("gs://bucket/run")


def test_checkpoints_lie_in_the_store_itself(url):
  store = ObjectStore(url)
  assert store.checkpoints == folder(url) / "checkpoints"
  store.close()


def test_the_lease_says_who_has_it_and_until_when(url):
  with Workdir(url):
    lease = json.loads((folder(url) / object_store.LEASE).read_text())
    assert "pid" in lease["owner"] and lease["until"] > time.time()
