"""Tests of the plans: golden files, quoting, and what is refused.

`python -m tests.launch.plans_test` writes the golden files anew.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import stat
import subprocess

import pytest

from launch import backends, common, plan
from launch.backends import BACKENDS
from launch.errors import LaunchError
from launch.job import from_json
from launch.plan import Command, Write
from tests.launch import jobs

GOLDEN = pathlib.Path(__file__).parent / "golden"
SHELLCHECK = shutil.which("shellcheck")

each = pytest.mark.parametrize("name", BACKENDS)


def run_steps(job, found=""):
  return [
    *backends.acquire(job, found),
    *BACKENDS[job.backend].module.submit(job),
  ]


def all_plans(job):
  module = BACKENDS[job.backend].module
  plans = {
    "run": run_steps(job),
    "status": module.status(job),
    "logs --follow": module.logs(job, True),
    "stop": module.stop(job),
    "delete": module.delete(job),
  }
  return "".join(f"## {k}\n{plan.script(v)}\n" for k, v in plans.items())


@each
def test_the_plan_is_that_of_the_golden_file(name):
  assert all_plans(jobs.make(name)) == (GOLDEN / f"{name}.sh").read_text()


@pytest.mark.skipif(SHELLCHECK is None, reason="no shellcheck")
@each
@pytest.mark.parametrize("hostile", [False, True])
def test_shellcheck_finds_nothing(name, hostile, tmp_path):
  flags = (*(jobs.HOSTILE if hostile else ["--steps=1"]), "--workdir=/x")
  job = jobs.make(name, flags=flags)
  # Two notes are about data in single quotes that looks like code.
  check("#!/bin/bash\n" + all_plans(job), tmp_path, "--exclude=SC2016,SC1003")
  for step in run_steps(job):
    if isinstance(step, Write) and step.path.endswith(".sh"):
      check(step.text, tmp_path)


def check(text, folder, *options):
  (folder / "plan.sh").write_text(text)
  argv = [SHELLCHECK, *options, folder / "plan.sh"]
  done = subprocess.run(argv, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout


def stubs(folder, names):
  """Programs that record their arguments, and print ACTIVE."""
  folder.mkdir()
  for name in names:
    path = folder / name
    path.write_text(
      "#!/bin/bash\n"
      f'printf \'%s\\0\' {name} "$@" >> "$RECORD"\n'
      "printf '\\1' >> \"$RECORD\"\necho ACTIVE\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
  return folder


STUBS = "git tar env ssh scp gcloud sbatch xpk python3 kubectl".split()


@each
def test_hostile_names_are_data_in_a_plan_that_is_pasted(name, tmp_path):
  assert len(jobs.HOSTILE) >= 40
  flags = (
    *(f"--text_file={x}" for x in jobs.HOSTILE),
    *jobs.HOSTILE,
    "--workdir=/shared/a 'b' $(touch pwned)\nc",
  )
  job = jobs.make(name, flags=flags, workdir="/shared/a 'b' $(touch pwned)\nc")
  steps = run_steps(job)
  programs = stubs(tmp_path / "stubs", STUBS)
  work = tmp_path / "work"
  work.mkdir()
  record = tmp_path / "record"
  subprocess.run(
    ["bash", "-eu", "-c", plan.script(steps)],
    cwd=work,
    env={"PATH": f"{programs}:/usr/bin:/bin", "RECORD": str(record)},
    capture_output=True,
    check=True,
  )
  # The file descriptions of the job are what they were.
  for step in steps:
    if isinstance(step, Write):
      assert (work / step.path).read_text() == step.text
      if step.path.endswith(".json"):
        assert from_json(step.text) == job
  wanted = [
    list(step.argv)
    for step in steps
    if isinstance(step, Command) and step.argv[0] in STUBS
  ]
  found = [
    call.split("\0")[:-1] for call in record.read_text().split("\1")[:-1]
  ]
  agreeing = ["python3", "-m", "launch.host", "agree"]
  assert [x for x in found if x != agreeing] == wanted
  assert not list(tmp_path.rglob("pwned"))


@each
def test_no_name_that_a_user_chose_is_in_a_command(name):
  # They travel in job.json, so that no shell on another machine reads them.
  flags = (*(f"--text_file={x}x" for x in jobs.HOSTILE), "--workdir=/w/$(x)")
  job = jobs.make(name, flags=flags, workdir="/w/$(x)")
  for step in run_steps(job):
    if isinstance(step, Command):
      for text in step.argv:
        assert "text_file" not in text and "$(x)" not in text


@pytest.mark.parametrize("value", jobs.HOSTILE)
@pytest.mark.parametrize(
  ("name", "option"),
  [
    *(("ssh", "hosts"), ("tpu_vm", "zone"), ("tpu_vm", "accelerator")),
    *(("slurm", "partition"), ("xpk", "cluster"), ("xpk", "image")),
  ],
)
def test_hostile_names_of_machines_are_refused(name, option, value):
  if (value, option) == ("", "partition") or value == "a=b":
    return  # as if it were not given; harmless
  given = ["ok", value] if option == "hosts" else value
  with pytest.raises(LaunchError):
    jobs.make(name, options={option: given})


@pytest.mark.parametrize("value", [*jobs.HOSTILE, "Big", "a" * 41, "a-", "1a"])
def test_hostile_run_ids_are_refused(value):
  with pytest.raises(LaunchError, match="run_id"):
    jobs.make("local", run_id=value)


@pytest.mark.parametrize("value", jobs.HOSTILE)
def test_hostile_modules_are_refused(value):
  with pytest.raises(LaunchError, match="module"):
    jobs.make("local", module=value)


@pytest.mark.parametrize(
  "flag",
  [
    "--wandb_api_key=x",
    "--password=x",
    "--db_password=x",
    "--x=ghp_" + "a" * 36,
    "--x=hf_" + "a" * 34,
    "--x=AKIA" + "A" * 16,
    "--data_dir=https://me:word@host/x",
  ],
)
def test_a_secret_in_a_flag_is_refused_and_not_shown(flag):
  with pytest.raises(LaunchError, match="secret") as caught:
    jobs.make("local", flags=(flag, "--workdir=/w"))
  assert flag.partition("=")[2] not in str(caught.value).replace("secret", "")


@pytest.mark.parametrize(
  "flag", ["--tokenizer=word", "--num_tokens=9", "--key=1", "--features=2048"]
)
def test_ordinary_flags_are_no_secrets(flag):
  jobs.make("local", flags=(flag, "--workdir=/w"))


@pytest.mark.parametrize(
  ("name", "changes", "told"),
  [
    ("ssh", {"workdir": "runs/x"}, "relative"),
    ("xpk", {"secrets": ("TOKEN",)}, "manifest"),
    ("local", {"secrets": ("TOKEN=value",)}, "names of environment variables"),
    ("local", {"workdir": ""}, "--workdir is missing"),
    ("local", {"flags": ("a\0b",)}, "null"),
    ("local", {"options": {"zone": "a"}}, "--zone does nothing"),
    ("tpu_vm", {"options": {"zone": None}}, "--zone is missing"),
    ("tpu_vm", {"options": {"accelerator": None}}, "--accelerator is missing"),
    ("tpu_vm", {"options": {"accelerator": "v9-8"}}, "--runtime_version"),
    ("tpu_vm", {"options": {"node": "mine"}}, "does nothing with --node"),
    ("xpk", {"options": {"device_type": "h100-80gb-8"}}, "one of"),
    ("slurm", {"options": {"nodes": -1}}, "--nodes"),
  ],
)
def test_what_cannot_work_is_refused_with_a_remedy(name, changes, told):
  with pytest.raises(LaunchError, match=told) as caught:
    jobs.make(name, **changes)
  assert len(str(caught.value).splitlines()) == 2
  assert caught.value.code == 2


def test_an_unknown_back_end_is_refused():
  job = dataclasses.replace(jobs.make("local"), backend="moon")
  with pytest.raises(LaunchError, match="unknown"):
    backends.prepare(job)


@pytest.mark.parametrize(
  ("state", "wanted"),
  [
    ("", ["create", "describe"]),
    ("ACTIVE", []),
    ("PROVISIONING", ["describe"]),
    ("WAITING_FOR_RESOURCES", ["describe"]),
    ("SUSPENDED", ["delete", "create", "describe"]),
    ("FAILED", ["delete", "create", "describe"]),
  ],
)
def test_tpus_are_made_again_when_they_were_taken_away(state, wanted):
  steps = backends.acquire(jobs.make("tpu_vm"), state)
  assert [step.argv[4] for step in steps] == wanted


def test_a_tpu_vm_that_is_there_is_neither_made_nor_deleted():
  options = {"node": "mine", "accelerator": None, "spot": None}
  job = jobs.make("tpu_vm", options=options)
  assert backends.acquire(job) == []
  assert backends.state(job) is None
  with pytest.raises(LaunchError, match="was there before"):
    BACKENDS["tpu_vm"].module.delete(job)
  assert all("mine" in s.argv for s in BACKENDS["tpu_vm"].module.stop(job))


@pytest.mark.parametrize("name", ["tpu_vm", "slurm", "xpk"])
def test_what_is_billed_has_a_name(name):
  assert "big-run" in BACKENDS[name].module.billed(jobs.make(name))


def test_a_job_is_read_as_it_was_written():
  job = jobs.make("ssh", flags=(*jobs.HOSTILE,), workdir="/w")
  assert from_json(job.to_json()) == job
  with pytest.raises(LaunchError, match="damaged"):
    from_json(json.dumps({"flags": []}))


def test_a_comment_of_a_plan_is_one_line():
  step = Command(("true",), why="a\ntouch pwned")
  assert plan.script([step]) == "# a touch pwned\ntrue\n"


def test_folders_of_runs_are_below_one():
  job = jobs.make("local")
  assert os.path.dirname(common.state(job)) == "runs/launch"


if __name__ == "__main__":
  for backend in BACKENDS:
    (GOLDEN / f"{backend}.sh").write_text(all_plans(jobs.make(backend)))
