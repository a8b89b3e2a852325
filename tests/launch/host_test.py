"""Tests of what `launch` does on a host."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from launch import host
from tests.launch import jobs

FAKE = """
import json, os, pathlib, signal, sys, time
flag = [x for x in sys.argv if x.startswith("--workdir=")][-1]
workdir = pathlib.Path(flag.partition("=")[2])
workdir.mkdir(parents=True, exist_ok=True)
names = ("TOKEN", "PYTHONPATH")
with open(workdir / "calls.jsonl", "a") as file:
  file.write(json.dumps({"argv": sys.argv[1:], "cwd": os.getcwd(),
    "environment": {n: os.environ.get(n) for n in names}}) + "\\n")
number = len((workdir / "calls.jsonl").read_text().splitlines())
plan = json.loads((workdir / "plan.json").read_text())
step, code = plan[min(number, len(plan)) - 1]
if step > 0:
  (workdir / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
if code == "wait":
  def handle(*_):
    (workdir / "checkpoints" / str(step + 1)).mkdir(parents=True)
    sys.exit(75)
  signal.signal(signal.SIGTERM, handle)
  (workdir / "waiting").touch()
  time.sleep(60)
if code < 0:
  os.kill(os.getpid(), -code)
sys.exit(code)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
  """Makes a run of an experiment that does what a plan says."""
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.setattr("launch.retry.FIRST_DELAY", 0.0)
  (tmp_path / "fake.py").write_text(FAKE)
  workdir = tmp_path / "work dir $(x)"
  workdir.mkdir()

  def make(plan, *flags, **changes):
    (workdir / "plan.json").write_text(json.dumps(plan))
    job = jobs.make(
      "local",
      module="fake",
      flags=(*flags, f"--workdir={workdir}"),
      workdir=str(workdir),
      python=sys.executable,
      options={"processes": 1},
      **changes,
    )
    (tmp_path / "job.json").write_text(job.to_json())
    made = host.Host(tmp_path)
    assert made.source == tmp_path  # No code was unpacked.
    return made

  make.workdir = workdir
  make.calls = lambda: [
    json.loads(x) for x in (workdir / "calls.jsonl").read_text().splitlines()
  ]
  return make


@pytest.fixture(autouse=True)
def _keep_signals():
  kept = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
  yield
  for number, handler in kept.items():
    signal.signal(number, handler)


def state(made, capsys):
  capsys.readouterr()
  made.status()
  return json.loads(capsys.readouterr().out)


def test_hostile_flags_arrive_as_they_are(run, tmp_path):
  flags = [f"--text_file={x}" for x in jobs.HOSTILE] + jobs.HOSTILE
  made = run([(5, 0)], *flags)
  assert made.supervise() == 0
  (call,) = run.calls()
  assert call["argv"] == [*flags, f"--workdir={run.workdir}"]
  assert not list(tmp_path.rglob("pwned"))


def test_a_run_that_is_preempted_and_fails_ends_well(run, capsys):
  plan = [(1, 75), (2, 75), (2, 1), (3, -9), (3, 75), (4, 0)]
  made = run(plan, retries=1)
  assert state(made, capsys)["state"] == "absent"
  assert made.supervise() == 0
  assert len(run.calls()) == len(plan)
  found = state(made, capsys)
  assert (found["state"], found["code"], found["step"]) == ("ended", 0, 4)


def test_a_run_without_progress_ends_and_says_where(run, capsys):
  made = run([(7, 1), (7, 134)], retries=2)
  assert made.supervise() == 134
  assert len(run.calls()) == 3
  found = state(made, capsys)
  assert found["code"] == 134
  assert "failure 3 since the checkpoint of step 7" in found["why"]


def test_a_scheduler_gets_the_preemption(run):
  made = run([(7, 75)])
  made.job["options"]["rerun_preempted"] = False
  assert made.supervise() == 75
  assert len(run.calls()) == 1


def wait_for(condition):
  end = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.02)


def test_a_run_is_started_once_shows_its_state_and_stops(run, capsys):
  made = run([(3, "wait")])
  # The real code, and its own process.
  source = made.folder / f"src-{jobs.COMMIT[:12]}"
  source.symlink_to(host.Path(host.__file__).parents[1])
  made.source = source
  made.job["cwd"] = str(made.folder)
  made.job["python"] = str(made.folder / "python")
  python = made.folder / "python"
  python.write_text(f'#!/bin/sh\nPYTHONPATH=. exec {sys.executable} "$@"\n')
  python.chmod(0o755)
  (made.folder / "job.json").write_text(json.dumps(made.job))
  made.start()
  wait_for((run.workdir / "waiting").exists)
  made.start()
  assert "is running already" in capsys.readouterr().out
  with pytest.raises(host.Failure, match="already"):
    made.supervise()
  assert state(made, capsys)["state"] == "running"
  made.stop()
  wait_for(lambda: not made.alive())
  found = state(made, capsys)
  assert (found["code"], found["stopped"], found["step"]) == (75, True, 4)
  assert len(run.calls()) == 1
  made.stop()
  assert "is not running" in capsys.readouterr().out


def test_a_killed_supervisor_is_noticed_and_not_a_later_process(run, capsys):
  made = run([(3, 0)])
  # Its number was given to another process, this one.
  known = {**host._identity(os.getpid()), "started": "1"}
  made.file("pid").write_text(json.dumps(known))
  assert not made.alive()
  found = state(made, capsys)
  assert (found["state"], found["code"]) == ("lost", 137)
  made.stop()  # It would end this process.


def test_secrets_come_from_a_file_that_only_the_user_can_read(
  run, tmp_path, capsys
):
  made = run([(5, 0)], secrets=("TOKEN",))
  with pytest.raises(host.Failure, match="TOKEN is not set"):
    made.supervise()
  assert "TOKEN" in state(made, capsys)["why"]
  path = tmp_path / "home/.config/recurrent-launch/secrets"
  path.parent.mkdir(parents=True)
  path.write_text("OTHER=1\nTOKEN=a=b c\n")
  path.chmod(0o644)
  with pytest.raises(host.Failure, match="chmod 600"):
    made.variables()
  path.chmod(0o600)
  assert made.supervise() == 0
  (call,) = run.calls()
  assert call["environment"]["TOKEN"] == "a=b c"
  written = [p.read_text() for p in tmp_path.glob("*.*") if p.is_file()]
  assert not any("a=b c" in text for text in written)
  assert "a=b c" not in str(call["argv"])


def test_the_code_of_the_run_comes_before_the_current_directory(run):
  found = run([]).variables()
  assert found["PYTHONSAFEPATH"] == "1"


REPORT = {
  "host": "a",
  "commit": "1",
  "versions": {"jax": "1"},
  "devices": 4,
  "kind": "TPU v5e",
  "clock": 1000.0,
  "received": 1000.5,
}


@pytest.mark.parametrize(
  ("change", "told"),
  [
    ({}, None),
    ({"clock": 1010.0, "received": 1012.0}, None),
    ({"versions": {"jax": "2"}}, "versions"),
    ({"devices": 3}, "devices"),
    ({"kind": "TPU v4"}, "kind"),
    ({"commit": "2"}, "commit"),
    ({"clock": 1100.0}, "clocks"),
    ({"running": True, "devices": 0}, None),
  ],
)
def test_hosts_must_agree(change, told):
  problems = host.agree([REPORT, {**REPORT, "host": "b", **change}])
  assert len(problems) == (told is not None)
  if told:
    assert told in problems[0] and "b" in problems[0]


def test_reports_are_found_among_other_output():
  lines = ["SSH: connecting", json.dumps(REPORT), "{not json", ""]
  (found,) = host.read_lines(lines)
  assert found["received"] > REPORT["received"]


def test_a_host_that_cannot_write_into_the_workdir_says_so(run, tmp_path):
  made = run([])
  (tmp_path / "file").touch()
  made.job["workdir"] = str(tmp_path / "file" / "x")
  with pytest.raises(host.Failure, match="cannot write into"):
    made._check_workdir()


def test_a_python_without_jax_fails_the_check(run, tmp_path):
  made = run([])
  made.job["python"] = str(tmp_path / "none")
  with pytest.raises(host.Failure, match="JAX does not start"):
    made.preflight()


@pytest.mark.processes
def test_a_host_reports_versions_and_devices(run, capsys):
  made = run([])
  made.preflight()
  (found,) = host.read_lines(capsys.readouterr().out.splitlines())
  assert found["devices"] == 1 and "jax" in found["versions"]
  assert (run.workdir / ".launch" / made.name).exists()
  made.job["devices"] = 8
  with pytest.raises(host.Failure, match="1 devices, not 8"):
    made.preflight()


@pytest.mark.processes
def test_an_environment_is_made_once_for_a_lock_file(run, tmp_path, capfd):
  made = run([])
  made.job["python"] = ""
  (tmp_path / "requirements").mkdir()
  for minor in range(11, 15):
    lock = tmp_path / "requirements" / f"py3{minor}.txt"
    lock.write_text("# nothing\n")
  made.setup()
  version = [
    made.python(),
    "-c",
    "import sys; print(sys.version_info >= (3, 11))",
  ]
  assert subprocess.check_output(version, text=True) == "True\n"
  assert "has made" in capfd.readouterr().out
  made.setup()
  assert "uses" in capfd.readouterr().out
  first = made.environment()
  lock.write_text("# other\n")
  assert made.environment() != first


def test_an_unknown_command_is_an_error(run):
  folder = run([]).folder
  done = subprocess.run(
    [sys.executable, "-m", "launch.host", "dance", str(folder)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 1 and "dance" in done.stderr
