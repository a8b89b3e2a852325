"""What `launch` does on each host: set up, check, start, report and stop.

  PYTHONPATH=SRC python3 -m launch.host COMMAND DIR [--process=N]

DIR contains `job.json` and the unpacked code. The commands are

  setup      makes the environment, unless one of the same lock file is there
  preflight  prints a report as one line of JSON: versions, devices, clock
  agree      reads such reports from stdin and says whether they agree
  start      starts `supervise` in the background
  supervise  runs the experiment, and again if it was preempted or failed
  status     prints the state as one line of JSON
  stop       tells the run to save its state and to end
  logs       shows the log; with --follow, what is added to it too

Everything that a user has chosen stands in `job.json`, so that no shell reads
it. It needs no packages, and Python 3.8.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from launch import retry

PYTHONS = ("python3.14", "python3.13", "python3.12", "python3.11")
MADE = "3.12"  # the Python that uv installs where there is none of these
CLOCKS = 30.0  # seconds by which the clocks of two hosts may differ
SECRETS = "~/.config/recurrent-launch/secrets"

PROBE = """
import importlib.metadata as m, json, sys
import jax
names = "jax jaxlib flax optax orbax-checkpoint numpy".split()
versions = {n: m.version(n) for n in names}
versions["python"] = ".".join(map(str, sys.version_info[:2]))
devices = jax.local_devices()
print(json.dumps({"versions": versions, "devices": len(devices),
                  "kind": devices[0].device_kind}))
"""


class Failure(Exception):
  """Something on this host is not as it must be."""


class Host:
  """A run on this host.

  Args:
    folder: directory of the run, which contains `job.json`.
    process: number of this host's process; None if the cluster knows it.
  """

  def __init__(self, folder, process=None):
    self.folder = Path(folder).absolute()
    self.job = json.loads((self.folder / "job.json").read_text())
    self.name = socket.gethostname()
    self.process = process
    # In an image the description is among the code.
    unpacked = self.folder / f"src-{self.job['commit'][:12]}"
    self.source = unpacked if unpacked.exists() else self.folder

  def file(self, kind):
    """Path of a file of this host; hosts may share the folder."""
    return self.folder / f"{self.name}.{kind}"

  # The environment.

  def environment(self):
    """Folder of the environment, which is named by what is installed."""
    key = hashlib.sha256(self.job["install"].encode())
    for lock in sorted((self.source / "requirements").glob("py3*.txt")):
      key.update(lock.read_bytes())
    return Path("~/.cache/recurrent-launch").expanduser() / key.hexdigest()[:16]

  def python(self):
    """Path of the Python that runs the experiment."""
    return self.job["python"] or str(self.environment() / "bin" / "python")

  def setup(self):
    """Makes the environment, unless it is there."""
    folder = self.environment()
    done = folder / "installed"
    if self.job["python"] or done.exists():
      print(f"{self.name}: uses {self.python()}", flush=True)
      return
    folder.parent.mkdir(parents=True, exist_ok=True)
    call = lambda *argv: subprocess.run([str(x) for x in argv], check=True)
    found = next((name for name in PYTHONS if _can_make_venv(name)), None)
    if found:
      call(found, "-m", "venv", "--clear", folder)
      install = [self.python(), "-m", "pip", "install", "--quiet"]
    else:
      # Such as Ubuntu 22.04, whose Python 3.10 is too old.
      uv = shutil.which("uv")
      if uv is None:
        tools = folder.with_name("uv")
        call(sys.executable, "-m", "venv", tools)
        call(tools / "bin" / "pip", "install", "--quiet", "uv")
        uv = tools / "bin" / "uv"
      call(uv, "venv", "--quiet", "--python", MADE, folder)
      install = [uv, "pip", "install", "--quiet", "--python", self.python()]
    tell = "import sys; print('py%d%d' % sys.version_info[:2])"
    version = subprocess.check_output(
      [self.python(), "-c", tell], text=True
    ).strip()
    lock = self.source / "requirements" / f"{version}.txt"
    call(*install, "--require-hashes", "-r", lock)
    if self.job["install"] != "cpu":
      tell = "import importlib.metadata as m; print(m.version('jax'))"
      jax = subprocess.check_output(
        [self.python(), "-c", tell], text=True
      ).strip()
      call(*install, f"jax[{self.job['install']}]=={jax}")
    done.touch()
    print(f"{self.name}: has made {folder}", flush=True)

  def variables(self):
    """The environment variables of the experiment.

    Raises:
      Failure: if a secret is missing, or others may read the file of secrets.
    """
    found = {
      **os.environ,
      "PYTHONPATH": str(self.source),
      # The current directory must not come before the code of the run.
      "PYTHONSAFEPATH": "1",
      **self.job["options"].get("variables", {}),
    }
    stored = _stored_secrets() if self.job["secrets"] else {}
    for name in self.job["secrets"]:
      if name in stored:
        found[name] = stored[name]
      elif name not in found:
        raise Failure(
          f"the variable {name} is not set, and not in {SECRETS} on {self.name}"
        )
    return found

  # The checks before the run.

  def preflight(self):
    """Prints a report on this host.

    Raises:
      Failure: if it cannot run the experiment.
    """
    report = {"host": self.name, "commit": self.job["commit"]}
    if self.alive():
      print(json.dumps({**report, "running": True}), flush=True)
      return
    try:
      probe = subprocess.run(
        [self.python(), "-c", PROBE],
        env=self.variables(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
      )
    except (OSError, subprocess.TimeoutExpired) as error:
      raise Failure(f"{self.name}: JAX does not start: {error}") from error
    if probe.returncode:
      last = probe.stderr.strip().splitlines()[-1:]
      raise Failure(f"{self.name}: JAX does not start: {''.join(last)}")
    report.update(json.loads(probe.stdout.splitlines()[-1]))
    wanted = self.job["devices"]
    if wanted and report["devices"] != wanted:
      raise Failure(
        f"{self.name} has {report['devices']} devices, not {wanted}"
      )
    self._check_workdir()
    print(json.dumps({**report, "clock": time.time()}), flush=True)

  def _check_workdir(self):
    """Raises Failure if this host cannot write into the workdir."""
    workdir = self.job["workdir"]
    text = f"written by the check of {self.name}\n"
    try:
      if workdir.startswith("gs://"):
        target = f"{workdir.rstrip('/')}/.launch/{self.name}"
        subprocess.run(
          ["gcloud", "storage", "cp", "-", target],
          input=text,
          capture_output=True,
          text=True,
          timeout=120,
          check=True,
        )
      elif "://" not in workdir:
        path = Path(workdir) / ".launch" / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except (OSError, subprocess.SubprocessError) as error:
      detail = getattr(error, "stderr", None) or error
      raise Failure(
        f"{self.name} cannot write into {workdir}: {detail}"
      ) from error

  # The run.

  def command(self):
    """The command line of the experiment on this host."""
    job, options = self.job, self.job["options"]
    run = [job["module"], *job["flags"]]
    local = options.get("processes", 1) if job["backend"] == "local" else 1
    if local > 1:
      run = ["launch.local", f"--processes={local}", "--", *run]
    elif options.get("coordinator"):
      run.append(f"--coordinator={options['coordinator']}")
      if self.process is not None:
        run.append(f"--processes={len(options['hosts'])}")
        run.append(f"--process={self.process}")
    return [self.python(), "-m", *run]

  def supervise(self):
    """Runs the experiment until it is done, is stopped, or fails too often.

    Returns:
      The exit code.
    """
    if self.alive():
      raise Failure(f"the run is running already on {self.name}")
    _write(self.file("pid"), json.dumps(_identity(os.getpid())))
    self.file("code").unlink(missing_ok=True)
    child = None
    asked = False

    def forward(number, frame):
      nonlocal asked
      del frame
      asked = True
      if child is not None and child.poll() is None:
        child.send_signal(number)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, forward)

    def run_once():
      nonlocal child
      variables = self.variables()
      if asked:
        return retry.PREEMPTED
      # A session of its own: signals to this process's group are forwarded, and
      # would otherwise arrive twice.
      child = subprocess.Popen(
        self.command(),
        env=variables,
        cwd=self.job["cwd"] or str(self.source),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
      )
      if asked:  # between the check above and the start
        child.send_signal(signal.SIGTERM)
      code = child.wait()
      return 128 - code if code < 0 else code

    said = ""

    def say(text):
      nonlocal said
      said = text
      print(f"launch: {text}", file=sys.stderr, flush=True)

    def pause(seconds):
      end = time.monotonic() + seconds
      while not asked and time.monotonic() < end:
        time.sleep(0.05)

    code = 1
    try:
      code = retry.supervise(
        run_once,
        lambda: retry.newest_checkpoint(self.job["workdir"]),
        self.job["retries"],
        say,
        lambda: asked or (self.folder / "stop").exists(),
        self.job["options"].get("rerun_preempted", True),
        pause,
      )
    except (Failure, OSError) as error:
      said = str(error)
      raise
    finally:
      result = {"code": code, "stopped": asked, "why": said}
      _write(self.file("code"), json.dumps(result))
      self.file("pid").unlink()
    return code

  def start(self):
    """Starts `supervise` in the background."""
    if self.alive():
      print(f"{self.name}: is running already", flush=True)
      return
    argv = [sys.executable, "-m", "launch.host", "supervise", str(self.folder)]
    if self.process is not None:
      argv.append(f"--process={self.process}")
    with open(self.file("log"), "a") as log:
      process = subprocess.Popen(
        argv,
        env={**os.environ, "PYTHONPATH": str(self.source)},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
      )
    while process.poll() is None and not self.alive():
      time.sleep(0.02)
    print(f"{self.name}: started, process {process.pid}", flush=True)
    process.returncode = 0  # It outlives this process, which is no mistake.

  def alive(self):
    """Whether `supervise` is running."""
    try:
      known = json.loads(self.file("pid").read_text())
    except (OSError, ValueError):
      return False
    return known == _identity(known["pid"])

  def status(self):
    """Prints the state of the run on this host."""
    state = {
      "host": self.name,
      "state": "absent",
      "step": retry.newest_checkpoint(self.job["workdir"]),
    }
    if self.alive():
      state["state"] = "running"
    else:
      try:
        result = json.loads(self.file("code").read_text())
        state.update(state="ended", **result)
      except (OSError, ValueError):
        if self.file("pid").exists():
          # Nothing on this host starts it again.
          why = "the host was restarted, or the process was killed"
          state.update(state="lost", code=128 + 9, stopped=False, why=why)
    print(json.dumps(state), flush=True)

  def stop(self):
    """Tells the run to save its state and to end."""
    if not self.alive():
      print(f"{self.name}: is not running", flush=True)
      return
    pid = json.loads(self.file("pid").read_text())["pid"]
    os.kill(pid, signal.SIGTERM)
    print(f"{self.name}: told process {pid} to save and end", flush=True)

  def logs(self, follow):
    """Shows the log."""
    rest = ["-F"] if follow else []
    os.execvp("tail", ["tail", "-n", "200", *rest, "--", str(self.file("log"))])


def agree(reports):
  """Compares the reports of `preflight` on several hosts.

  Args:
    reports: the reports, and for each the time at which it was read, as
      `received`.

  Returns:
    A list of differences; empty if the run can start.
  """
  reports = [report for report in reports if not report.get("running")]
  problems = []
  for key in ("commit", "versions", "devices", "kind"):
    values = {}
    for report in reports:
      text = json.dumps(report[key], sort_keys=True)
      values.setdefault(text, []).append(report["host"])
    if len(values) > 1:
      told = "; ".join(f"{', '.join(h)}: {v}" for v, h in values.items())
      problems.append(f"the hosts differ in {key}: {told}")
  ahead = {r["host"]: r["clock"] - r["received"] for r in reports}
  if ahead and max(ahead.values()) - min(ahead.values()) > CLOCKS:
    told = ", ".join(f"{host} {x:+.0f} s" for host, x in ahead.items())
    problems.append(f"the clocks of the hosts differ: {told}")
  return problems


def read_lines(lines):
  """Yields the objects among lines of output, some of which may be JSON."""
  for line in lines:
    line = line.strip()
    if line.startswith("{"):
      try:
        yield {**json.loads(line), "received": time.time()}
      except ValueError:
        continue


def _identity(pid):
  """What tells a process from a later one with the same number."""
  try:
    stat = Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return None
  # The name in parentheses may contain anything, also spaces.
  fields = stat.rpartition(")")[2].split()
  return None if fields[0] == "Z" else {"pid": pid, "started": fields[19]}


def _write(path, text):
  """Replaces a file as a whole."""
  part = path.with_name(path.name + ".part")
  part.write_text(text)
  os.replace(part, path)


def _can_make_venv(name):
  if not shutil.which(name):
    return False
  argv = [name, "-c", "import ensurepip, venv"]
  return not subprocess.run(argv, capture_output=True, check=False).returncode


def _stored_secrets():
  """Reads lines NAME=VALUE that only this user may read."""
  path = Path(SECRETS).expanduser()
  try:
    mode = path.stat().st_mode
    text = path.read_text()
  except OSError:
    return {}
  if mode & 0o077:
    raise Failure(f"others may read {path}: chmod 600 {path}")
  pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
  return {name.strip(): value for name, _, value in pairs}


def main():
  """Carries out a command."""
  parser = argparse.ArgumentParser("launch.host")
  parser.add_argument("command")
  parser.add_argument("folder", nargs="?", default=".")
  parser.add_argument("--process", type=int)
  parser.add_argument("--follow", action="store_true")
  args = parser.parse_args()
  try:
    if args.command == "agree":
      problems = agree(list(read_lines(sys.stdin)))
      if problems:
        raise Failure("\n".join(problems))
      return 0
    host = Host(args.folder, args.process)
    if args.command == "logs":
      return host.logs(args.follow)
    commands = "setup preflight start supervise status stop".split()
    if args.command not in commands:
      raise Failure(f"no command {args.command}; there are {commands}")
    return getattr(host, args.command)() or 0
  except (Failure, subprocess.CalledProcessError, OSError) as error:
    print(f"launch: {error}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
  sys.exit(main())
