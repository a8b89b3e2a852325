"""Runs `python -m launch` for real: here, and on machines that are pretended.

Programs named ssh, scp and gcloud, first on the path, have a folder for each
host and run the commands there.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from launch import runner
from launch.errors import LaunchError
from launch.plan import Command, Write
from tests.launch import host_test, jobs

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.processes

PROGRAMS = {
  "ssh": r"""
    [ "$1 $2 $3" = "-o BatchMode=yes --" ] || exit 99
    cd "$HOSTS/$4" && HOME=$PWD exec bash -c "$5"
  """,
  "scp": r"""
    [ "$1 $2 $3 $4" = "-q -o BatchMode=yes --" ] || exit 99
    host=${7%%:*} folder=${7#*:}
    cp -- "$5" "$6" "$HOSTS/$host/$folder"
  """,
  "gcloud": r"""
    echo "$3 $4" >> "$HOSTS/gcloud.log"
    state="$HOSTS/state" workers="$HOSTS/worker0 $HOSTS/worker1"
    case "$*" in *--worker=0*) workers="$HOSTS/worker0" ;; esac
    case "$3 $4" in
      "queued-resources create") mkdir -p $workers; echo ACTIVE > "$state" ;;
      "queued-resources describe") cat "$state" ;;
      "queued-resources delete") rm -r $workers "$state" ;;
      "tpu-vm ssh")
        [ "$(cat "$state")" = ACTIVE ] || exit 1
        for x in "$@"; do
          case $x in --command=*) command=${x#--command=} ;; esac
        done
        for x in $workers; do
          (cd "$x" && HOME=$x bash -c "$command") || exit
        done ;;
      "tpu-vm scp")
        for x in $workers; do cp "$5" "$6" "$x/${7#*:}" || exit; done ;;
      *) exit 99 ;;
    esac
  """,
}

LOSE = """
# A machine is taken away: nothing on it ends in order.
if code == "lose":
  import subprocess
  pathlib.Path(os.environ["HOSTS"], "state").write_text("SUSPENDED")
  os.kill(os.getppid(), 9)
  os.kill(os.getpid(), 9)
if code < 0:"""


@pytest.fixture
def clone(tmp_path, monkeypatch):
  """A clone with `launch` and an experiment that does what a plan says."""
  folder = tmp_path / "clone"
  shutil.copytree(
    ROOT / "launch",
    folder / "launch",
    ignore=shutil.ignore_patterns("__pycache__"),
  )
  fake = host_test.FAKE.replace("\nif code < 0:", LOSE)
  assert LOSE in fake
  (folder / "fake.py").write_text(fake)
  quick = folder / "launch" / "retry.py"
  text = quick.read_text()
  assert "LONGEST_DELAY = 10.0" in text
  quick.write_text(text.replace("LONGEST_DELAY = 10.0", "LONGEST_DELAY = 0.1"))
  (folder / ".gitignore").write_text("runs/\n__pycache__/\n")
  for argv in (
    ["init", "-q"],
    ["add", "-A"],
    "-c user.name=n -c user.email=e commit -q -m all".split(),
  ):
    subprocess.run(["git", *argv], cwd=folder, check=True)
  hosts = tmp_path / "hosts"
  for name in ("gpu0", "gpu1"):
    (hosts / name).mkdir(parents=True)
  programs = tmp_path / "programs"
  programs.mkdir()
  for name, text in PROGRAMS.items():
    (programs / name).write_text(f"#!/bin/bash\n{text}")
    (programs / name).chmod(0o755)
  path = f"{programs}:{os.environ['PATH']}"
  for name, value in {
    "PATH": path,
    "HOSTS": str(hosts),
    "HOME": str(tmp_path),
    "PYTHONPATH": "",
    "JAX_PLATFORMS": "cpu",
  }.items():
    monkeypatch.setenv(name, value)
  return folder


def start(clone, command, *flags, **options):
  argv = [sys.executable, "-m", "launch", command, "--run_id=big", *flags]
  return subprocess.run(
    argv, cwd=clone, capture_output=True, text=True, check=False, **options
  )


def calls(workdir):
  lines = (workdir / "calls.jsonl").read_text().splitlines()
  return [json.loads(line)["argv"] for line in lines]


def run(clone, workdir, plan, *flags, experiment=()):
  workdir.mkdir(exist_ok=True)
  (workdir / "plan.json").write_text(json.dumps(plan))
  return start(
    clone,
    *("run", "--poll=0.1", f"--python={sys.executable}"),
    *(f"--workdir={workdir}", *flags, "--", "fake", *experiment),
  )


def test_a_run_here_is_preempted_three_times_and_ends(clone, tmp_path):
  workdir = tmp_path / "work dir"
  plan = [(1, 75), (2, 75), (3, 75), (4, 0)]
  done = run(clone, workdir, plan, "--retries=0", experiment=jobs.HOSTILE)
  assert done.returncode == 0, done.stderr
  assert calls(workdir) == 4 * [[*jobs.HOSTILE, f"--workdir={workdir}"]]
  assert not list(tmp_path.rglob("pwned"))
  status = start(clone, "status")
  assert json.loads(status.stdout)["step"] == 4
  assert (
    "preempted since the checkpoint of step 3" in start(clone, "logs").stdout
  )
  # What was changed after the commit was not run.
  (clone / "fake.py").write_text("raise SystemExit(1)")
  assert "not committed" in run(clone, workdir, plan).stderr
  assert run(clone, workdir, plan, "--commit=HEAD").returncode == 0


def test_a_run_here_that_fails_ends_with_its_code_and_place(clone, tmp_path):
  done = run(clone, tmp_path / "w", [(5, 1)], "--retries=1")
  assert done.returncode == 1
  assert "failure 2 since the checkpoint of step 5" in done.stderr


def test_hosts_get_their_numbers_by_ssh(clone, tmp_path):
  done = run(
    clone,
    tmp_path / "w",
    [(1, 0)],
    *("--backend=ssh", "--hosts=gpu0,gpu1", "--port=1234"),
  )
  assert done.returncode == 0, done.stderr
  given = {(*call[1:],) for call in calls(tmp_path / "w")}
  same = ("--coordinator=gpu0:1234", "--processes=2")
  assert given == {(*same, "--process=0"), (*same, "--process=1")}
  assert len(start(clone, "status").stdout.splitlines()) == 2


def test_tpus_that_are_taken_away_are_replaced(clone, tmp_path):
  flags = ("--backend=tpu_vm", "--zone=z", "--accelerator=v5litepod-16")
  plan = [(3, "lose"), (3, "lose"), (4, 0)]
  done = run(clone, tmp_path / "w", plan, *flags, "--spot", "--retries=0")
  assert done.returncode == 0, done.stderr
  log = (tmp_path / "hosts" / "gcloud.log").read_text().splitlines()
  made = [x for x in log if "create" in x or "delete" in x]
  # Both workers are lost at once, or the second one after a replacement.
  again = ["queued-resources delete", "queued-resources create"]
  assert made[0] == again[1] and made[1:] in (again, 2 * again)
  assert calls(tmp_path / "w")[-1][1:] == ["--coordinator=auto"]
  # Deleting asks first, and says what is billed.
  asked = start(clone, "delete", stdin=subprocess.DEVNULL)
  assert asked.returncode == 2
  assert "billed until then: the TPUs v5litepod-16" in asked.stderr
  assert (tmp_path / "hosts" / "state").exists()
  assert start(clone, "delete", "--yes").returncode == 0
  assert not (tmp_path / "hosts" / "state").exists()


def test_a_dry_run_does_nothing(clone, tmp_path):
  done = start(
    clone,
    *("run", "--dry_run", "--backend=ssh", "--hosts=gpu0", "--workdir=/w"),
    *("--", "fake"),
  )
  assert done.returncode == 0 and "scp" in done.stdout
  assert not (clone / "runs").exists()
  assert not list((tmp_path / "hosts" / "gpu0").iterdir())


@pytest.mark.parametrize(
  ("argv", "told"),
  [
    (["run"], "no experiment"),
    (["run", "--", "fake", "--steps=1"], "--workdir is missing"),
    (["run", "--workdir=a", "--", "fake", "--workdir=b"], "twice"),
    (["run", "--workdir=a", "--commit=--help", "--", "fake"], "no commit"),
    (["status"], "was not launched from here"),
    (["stop", "now"], "unexpected argument"),
    (["fly"], "unknown command"),
  ],
)
def test_mistakes_are_told_with_a_remedy(argv, told, clone):
  done = start(clone, *argv)
  assert done.returncode == 2
  assert told in done.stderr and "Traceback" not in done.stderr


def test_a_run_id_is_not_used_for_another_run(clone, tmp_path):
  assert run(clone, tmp_path / "w", [(1, 0)]).returncode == 0
  done = run(clone, tmp_path / "v", [(1, 0)])
  assert done.returncode == 2 and "is taken" in done.stderr


def test_a_plan_ends_at_the_first_failure(tmp_path):
  steps = [
    Write(str(tmp_path / "a"), "x"),
    Command(("false",)),
    Write(str(tmp_path / "b"), "x"),
  ]
  with pytest.raises(LaunchError, match="exit code 1 of: false"):
    runner.execute(steps)
  assert [x.name for x in tmp_path.iterdir()] == ["a"]


def test_hosts_that_differ_end_a_plan():
  told = [json.dumps({**host_test.REPORT, "host": x}) for x in "ab"]
  told[1] = told[1].replace('"devices": 4', '"devices": 3')
  steps = [Command(("echo", text), reports=True) for text in told]
  with pytest.raises(LaunchError, match="differ in devices"):
    runner.execute([*steps, Command(("false",))])


def test_a_program_that_is_missing_is_named():
  with pytest.raises(LaunchError, match="no-such-program does not start"):
    runner.execute([Command(("no-such-program",))])


def test_waiting_ends_when_the_machines_have_failed(capsys):
  states = Command(("echo", "ACTIVE"), until="ACTIVE")
  runner.execute([states], pause=0)
  with pytest.raises(LaunchError, match="FAILED"):
    runner.execute([Command(("echo", "FAILED"), until="ACTIVE")], pause=0)


def waited(monkeypatch, *answers, **changes):
  """The exit code of a wait, and how often the run was started again."""
  answers = list(answers)
  asked = lambda job: answers.pop(0) if len(answers) > 1 else answers[0]
  monkeypatch.setattr(runner, "question", asked)
  monkeypatch.setattr(runner, "ask", lambda command: changes.get("state", ""))
  monkeypatch.setattr(runner.retry, "FIRST_DELAY", 0.0)
  starts = []
  name = changes.get("backend", "ssh")
  job = jobs.make(name, retries=2)
  code = runner.wait(job, poll=0.0, start=starts.append)
  return code, len(starts)


def state_of(name, code=0, step=1):
  return {"host": "a", "state": name, "code": code, "step": step}


@pytest.mark.parametrize(
  ("answers", "wanted"),
  [
    ([[state_of("running")], [state_of("ended")]], (0, 0)),
    ([None, None, [state_of("ended")]], (0, 0)),
    ([[state_of("ended", 1)]], (1, 0)),
    # One host was restarted, and the other waits for it.
    (
      [
        [state_of("lost", 137), state_of("running")],
        [state_of("running")] * 2,
        [state_of("ended")] * 2,
      ],
      (0, 1),
    ),
    # It is restarted again and again.
    ([[state_of("lost", 137), state_of("running")]], (137, 2)),
  ],
)
def test_a_run_is_waited_for(answers, wanted, monkeypatch):
  assert waited(monkeypatch, *answers) == wanted


def test_hosts_that_never_answer_are_given_up(monkeypatch):
  with pytest.raises(LaunchError, match="have not answered 10 times"):
    waited(monkeypatch, None)


def test_tpus_that_are_suspended_are_got_again(monkeypatch):
  answers = (None, [state_of("ended")])
  options = {"backend": "tpu_vm", "state": "SUSPENDED"}
  assert waited(monkeypatch, *answers, **options) == (0, 1)
