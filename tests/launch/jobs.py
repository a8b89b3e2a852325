"""Jobs for the tests of `launch`."""

from launch import backends
from launch.job import Job

COMMIT = "0123456789abcdef0123456789abcdef01234567"

OPTIONS = {
  "local": {"processes": 2},
  "ssh": {"hosts": ["gpu0", "me@gpu1"]},
  "tpu_vm": {
    "zone": "us-west4-a",
    "accelerator": "v5litepod-16",
    "spot": True,
  },
  "slurm": {"nodes": 2, "gpus_per_node": 8, "time": "24:00:00"},
  "xpk": {
    "cluster": "cluster",
    "image": "gcr.io/project/image:1",
    "accelerator": "v5litepod-16",
  },
}

# Names that a shell, a remote shell, YAML or a program could take for something
# else.
HOSTILE = [
  "a b",
  " leading and trailing ",
  "'",
  '"',
  "it's",
  'say "hi"',
  "'; touch pwned; '",
  '"; touch pwned; "',
  "$(touch pwned)",
  "`touch pwned`",
  "$HOME",
  "${IFS}touch${IFS}pwned",
  "; touch pwned",
  "&& touch pwned",
  "|| touch pwned",
  "| tee pwned",
  "& touch pwned &",
  "> pwned",
  "< /etc/passwd",
  "\n",
  "line\nbreak",
  "\ntouch pwned\n",
  "\r\n",
  "\t",
  "-rf",
  "--help",
  "--workdir",
  "-",
  "--",
  "*",
  "?[a-z]",
  "~",
  "~root",
  "!!",
  "#comment",
  "\\",
  "\\n",
  "a\\'b",
  "%s%n",
  "{a,b}",
  "$'\\x41'",
  "äöü ß",
  "数据",
  "🦜",
  "\u202egnp.exe",
  "",
  "=",
  "a=b",
  "EOF\ntouch pwned\nEOF",
  "../../etc/passwd",
]


def make(backend, **changes) -> Job:
  """A job for a back end."""
  values = {
    "run_id": "big-run",
    "module": "experiments.language_model",
    "flags": ("--features=2048", "--workdir=/shared/big"),
    "workdir": "/shared/big",
    "commit": COMMIT,
    "backend": backend,
    "options": OPTIONS[backend],
  }
  options = {**values["options"], **changes.pop("options", {})}
  return backends.prepare(Job(**{**values, **changes, "options": options}))
