"""Checks that the core imports only JAX, Flax, Optax and NumPy."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.processes

# Of the packages that setup.cfg asks for, those that one task or one kind of
# run needs; and the accelerators' kernels, which a CPU never needs.
BLOCKED = (
  "array_record",
  "google.protobuf",
  "grain",
  "h5py",
  "importlib_resources",
  "jax.experimental.pallas",
  "matplotlib",
  "orbax",
  "sentencepiece",
  "seqeval",
  "sklearn",
  "tensorboardX",
  "tensorflow",
  "tensorflow_datasets",
  "tqdm",
)


def run(code: str) -> str:
  """The output of a new interpreter."""
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_an_lstm_trains_where_only_the_core_packages_are_installed():
  out = run(f"""
import sys
sys.modules.update(dict.fromkeys({BLOCKED}))
import jax.numpy as jnp, optax
from flax import nnx
import experiments.benchmark
from recurrent import cells, converters, decoding, models, nn, sharding
from recurrent.metrics import Mean
from recurrent.training import loop, state, step

def loss(model, carry, batch, key):
  carry, outputs = model(carry, batch["inputs"])
  error = (outputs - batch["targets"]) ** 2
  return error.mean(), (carry, {{"squares": Mean.of(error)}})

model = nn.Recurrent(cells.LSTM(3), 2, rngs=nnx.Rngs(0))
optimizer = optax.with_extra_args_support(optax.adam(0.1))
graphdef, now = state.create(
  model,
  optimizer,
  model.initial_carry(2),
  ["squares", "grad_norm"],
  ema=False,
)
train_step = step.make_train_step(
  graphdef, loss, optimizer, sharding.make_mesh(1), seed=0, ema_decay=0.0
)
batch = {{"inputs": jnp.ones((2, 4, 2)), "targets": jnp.ones((2, 4, 3))}}
for _ in range(2):
  now, status = train_step(now, batch)
print(int(now.step), float(status.loss))
""")
  step, loss = out.split()
  assert int(step) == 2
  assert 0 < float(loss) < 2


def test_the_suite_for_accelerators_needs_no_package_but_the_core_ones():
  out = run(f"""
import sys
sys.modules.update(dict.fromkeys(("jaxtyping", *{BLOCKED})))
from experiments import runner
from experiments.benchmarks import accelerator
from experiments.benchmarks.implementations import IMPLEMENTATIONS
for name in ("ours", "lax", "flax", "unrolled", "language_model", "decoding"):
  __import__("experiments.benchmarks.peers." + name)
print(len(accelerator.FULL.timings))
""")
  assert int(out) > 20


def test_importing_recurrent_adds_no_package_to_those_of_jax_and_jaxtyping():
  out = run("""
import sys
import jax, jaxtyping
from jaxtyping import PyTree  # jaxtyping imports its parts when asked for them
before = set(sys.modules)
import recurrent
added = set(sys.modules) - before
print(*{name.split(".")[0] for name in added} - {*sys.stdlib_module_names})
""")
  assert set(out.split()) <= {"jax", "recurrent"}


def test_kernels_for_accelerators_are_imported_when_they_are_asked_for():
  out = run("""
import sys
import recurrent
from recurrent import decoding, kernels, nn
modules = lambda: [m for m in sys.modules if "experimental.pallas" in m]
print(len(modules()))
kernels.tpu.scan, kernels.gpu.scan
print(len(modules()))
""")
  before, after = map(int, out.split())
  assert before == 0
  assert after > 1
