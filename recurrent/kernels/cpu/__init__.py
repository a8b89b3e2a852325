"""Layers over time in C++ for CPUs, compiled when they are first used.

The sources are `loops.cc` and `products.cc`. The C++ compiler on the path
compiles them for this machine, which takes up to a minute, and the library is
kept in the folder `cpu_kernel` of the cache (`recurrent.cache`). Setting
`RECURRENT_CPU_KERNEL=0` in the environment turns them off. `unavailable`
returns the reason if the loops cannot be used.
"""

import ctypes
import functools
import hashlib
import logging
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from recurrent.cache import private_folder
from recurrent.setting import Setting
from recurrent.types import Array

SOURCE = pathlib.Path(__file__).with_name("loops.cc")
FLAGS = (
  *("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread"),
  *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)
KINDS = ("rnn", "lstm", "gru", "lstm_coupled")
SAVED = {"rnn": 1, "lstm": 4, "gru": 4, "lstm_coupled": 3}
DTYPES = {jnp.dtype("float32"): "f32", jnp.dtype("float64"): "f64"}
LINEAR_DTYPES = {
  **DTYPES,
  jnp.dtype("complex64"): "c64",
  jnp.dtype("complex128"): "c128",
}
_LOOPS = [(kind, dtype) for kind in KINDS for dtype in DTYPES.values()]
_LOOPS += [("linear", dtype) for dtype in LINEAR_DTYPES.values()]
HANDLERS = tuple(
  f"{kind}_{way}_{dtype}"
  for kind, dtype in _LOOPS
  for way in ("forward", "backward")
)
# At most; a handler takes as many as the process may run on when it runs.
THREADS = np.int64(2**31 - 1)
_LOG = logging.getLogger(__name__)


@functools.cache
def unavailable() -> str:
  """Why the loops cannot be had on this machine; empty if they can.

  The first call compiles them, or finds them compiled.
  """
  return register(SOURCE, HANDLERS)


def why_not_here(setting: Setting, dtypes: Collection[Any] = DTYPES) -> str:
  """Returns why the loops cannot run in a setting; empty if they can.

  Args:
    setting: the platform and the dtypes.
    dtypes: those that the loop computes in.
  """
  if setting.platform != "cpu":
    return f"is for CPUs, not for {setting.platform}"
  if setting.dtype not in dtypes or setting.dtype != setting.carry_dtype:
    return (
      f"computes in float32 or float64, carry and all, not in {setting.widths}"
    )
  return unavailable()


def why_slow_here(setting: Setting) -> str:
  """Returns why the loops are slow in a setting; empty if they are not.

  A call into C++ runs on one device, so the compiler gathers sharded arrays.
  """
  if setting.devices == 1:
    return ""
  return f"gathers arrays that are sharded over {setting.devices} devices"


def register(source: pathlib.Path, names: Sequence[str]) -> str:
  """Compiles a source, once, and makes its functions known to XLA.

  Args:
    source: C++, of one library.
    names: of its functions; XLA knows them with "recurrent_" before.

  Returns:
    Why it cannot be had on this machine, as "it ..."; empty if it can.
  """
  if os.environ.get("RECURRENT_CPU_KERNEL") == "0":
    return "is turned off by RECURRENT_CPU_KERNEL=0"
  try:
    found = functions(source, names)
  except ImportError as error:
    return f"did not load: {error}"
  except (OSError, subprocess.CalledProcessError) as error:
    said = getattr(error, "stderr", None) or str(error)
    return f"did not compile: {said.strip().splitlines()[0]}"
  if found is None:
    return "needs a C++ compiler on the path, and there is none"
  for name, function in found.items():
    jax.ffi.register_ffi_target(
      f"recurrent_{name}", jax.ffi.pycapsule(function), platform="cpu"
    )
  return ""


def functions(
  source: pathlib.Path, names: Sequence[str]
) -> dict[str, Any] | None:
  """The functions of a library that was kept, or is compiled now.

  Args:
    source: C++, of one library; it is compiled anew when a header beside it
      changes.
    names: of its functions.

  Returns:
    A function of `ctypes` for each name; None if there is no compiler.

  Raises:
    ImportError: if the library does not load.
    OSError: if it cannot be compiled.
    subprocess.CalledProcessError: if the compiler fails.
  """
  name = f"{source.stem}-{_digest(source)}.so"
  folder: pathlib.Path | None
  try:
    folder, problem = private_folder("cpu_kernel"), ""
  except OSError as error:
    folder, problem = None, str(error)
  if folder and (folder / name).exists():
    return _load(folder / name, names)
  found = filter(None, map(shutil.which, ("c++", "g++", "clang++")))
  if not (compiler := next(found, "")):
    return None
  if folder and not os.access(folder, os.W_OK):
    folder, problem = None, f"{folder} cannot be written"
  _LOG.warning(
    "compiling %s for this CPU, which takes up to a minute; %s",
    source.name,
    f"it is kept in {folder}"
    if folder
    else f"it cannot be kept ({problem}): set RECURRENT_CACHE to a folder that"
    " you can write, or do without it by RECURRENT_CPU_KERNEL=0",
  )
  with tempfile.TemporaryDirectory(prefix="recurrent", dir=folder) as work:
    made = pathlib.Path(work) / name
    subprocess.run(
      [compiler, *FLAGS, f"-I{jax.ffi.include_dir()}", source, "-o", made],
      capture_output=True,
      text=True,
      check=True,
    )
    if folder:
      # Whoever compiles at the same time puts the same file there.
      made = made.replace(folder / name)
    # A library that is not kept stays loaded when its file is gone.
    return _load(made, names)


def _load(path, names):
  try:
    library = ctypes.CDLL(str(path))
    return {name: getattr(library, name) for name in names}
  except (OSError, AttributeError) as error:
    raise ImportError(str(error)) from error


def _digest(source):
  """Of all that the library depends on, but for the compiler.

  A library that was compiled before serves where there is no compiler.
  """
  digest = hashlib.sha256(source.read_bytes())
  for header in sorted(source.parent.glob("*.h")):
    digest.update(header.read_bytes())
  about = (jaxlib.__version__, _processor(), *FLAGS)
  digest.update("\n".join(about).encode())
  return digest.hexdigest()[:16]


def _processor() -> str:
  """What `-march=native` depends on."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return platform.processor() or platform.machine()
  first = next((x for x in lines if x.startswith(("flags", "Features"))), "")
  return first or platform.machine()


def forward(
  kind: str,
  inputs: Array,
  kernel: Array,
  input_bias: Array,
  recurrent: Array,
  carry: tuple[Array, ...],
  initial: tuple[Array, ...],
  *,
  bias: Array | None = None,
  mask: Array | None = None,
  resets: Array | None = None,
  reverse: bool = False,
  activation: int = 0,
  save: str = "nothing",
) -> tuple[Array, tuple[Array, ...], tuple[Array, tuple[Array, ...]]]:
  """A layer over all time steps.

  Args:
    kind: one of `KINDS`.
    inputs: [batch, time, D].
    kernel: [D, G*H].
    input_bias: [G*H].
    recurrent: [H, G*H].
    carry: hidden [batch, H], and cell [batch, H] of an LSTM.
    initial: the same, of time steps that reset.
    bias: [H], the GRU's within its reset product.
    mask: [batch, time], True where a time step is real.
    resets: [batch, time].
    reverse: from the last time step to the first.
    activation: of the RNN: 0 tanh, 1 ReLU, 2 sigmoid.
    save: for the reverse pass: "nothing", the "carries", or "all", which are
      the gates too.

  Returns:
    Outputs [batch, time, H]; the last carry; what `backward` needs: the saved
    gates [time, batch, ...], and the carries before each time step, hidden
    [batch, time, H], cell [time, batch, H]; empty where they are not saved.
  """
  batch, time, _ = inputs.shape
  h, dtype = len(recurrent), inputs.dtype
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, dtype)
  at, none = shape(batch, h), shape(0)
  has_cell, carries = len(carry) > 1, save != "nothing"
  outputs, hidden, cell, saved, *olds = _call(
    f"{kind}_forward",
    dtype,
    (
      shape(batch, time, h),
      at,
      at if has_cell else none,
      shape(time, batch, SAVED[kind] * h) if save == "all" else none,
      shape(batch, time, h) if carries else none,
      shape(time, batch, h) if carries and has_cell else none,
    ),
    (inputs, kernel, input_bias, *_fixed(recurrent, bias, mask, resets))
    + _two(initial)
    + _two(carry),
    reverse,
    activation,
  )
  count = len(carry)
  return outputs, (hidden, cell)[:count], (saved, tuple(olds[:count]))


def backward(
  kind: str,
  d_outputs: Array,
  recurrent: Array,
  residuals: tuple[Array, tuple[Array, ...]],
  d_carry: tuple[Array, ...],
  *,
  bias: Array | None = None,
  mask: Array | None = None,
  resets: Array | None = None,
  reverse: bool = False,
  activation: int = 0,
) -> tuple[Array, Array, tuple[Array, ...], tuple[Array, ...]]:
  """The reverse pass of `forward`, whose arguments it takes.

  Args:
    kind: as there, and so on.
    d_outputs: [batch, time, H]; where the mask is False they are not read.
    recurrent: [H, G*H].
    residuals: what `forward` saved.
    d_carry: cotangents of the last carry.
    bias: as there.
    mask: as there.
    resets: as there.
    reverse: as there.
    activation: as there.

  Returns:
    Cotangents of the projected inputs and of the products with the recurrent
    weights, [batch, time, G*H] each; of the first carry; of the initial one.
  """
  batch, time, h = d_outputs.shape
  dtype = d_outputs.dtype
  saved, olds = residuals
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, dtype)
  gates, at, none = (
    shape(batch, time, recurrent.shape[1]),
    shape(batch, h),
    shape(0),
  )
  has_cell = len(d_carry) > 1
  apart = kind == "gru"
  d_projected, d_mixed, *rest = _call(
    f"{kind}_backward",
    dtype,
    (
      gates if apart else none,
      gates,
      at,
      at if has_cell else none,
      at,
      at if has_cell else none,
    ),
    (d_outputs, *_fixed(recurrent, bias, mask, resets), saved, *_two(olds))
    + _two(d_carry),
    reverse,
    activation,
  )
  count = len(d_carry)
  return (
    d_projected if apart else d_mixed,
    d_mixed,
    tuple(rest[:count]),
    tuple(rest[2 : 2 + count]),
  )


def linear_forward(
  reverse: bool,
  decay: Array,
  drive: Array,
  start: Array,
  resets: Array | None,
) -> Array:
  """The linear recurrence; arguments and result as `kernels.linear_scan`."""
  # Of their own shapes: XLA does not vectorise what ends in a reshape.
  return jax.ffi.ffi_call(
    f"recurrent_linear_forward_{LINEAR_DTYPES[drive.dtype]}",
    jax.ShapeDtypeStruct(drive.shape, drive.dtype),
    vmap_method="sequential",
  )(
    decay,
    drive,
    start,
    _flags(resets, drive.shape),
    reverse=reverse,
    threads=THREADS,
  )


def linear_backward(
  reverse: bool,
  decay: Array,
  start: Array,
  resets: Array | None,
  hidden: Array,
  d_hidden: Array,
) -> tuple[Array, Array, Array]:
  """Its reverse pass: the gradients of decay, drive and start."""
  all_time_steps, at = (
    jax.ShapeDtypeStruct(x.shape, hidden.dtype) for x in (hidden, start)
  )
  d_decay, d_drive, d_start = jax.ffi.ffi_call(
    f"recurrent_linear_backward_{LINEAR_DTYPES[hidden.dtype]}",
    (all_time_steps, all_time_steps, at),
    vmap_method="sequential",
  )(
    decay,
    start,
    _flags(resets, hidden.shape),
    hidden,
    d_hidden,
    reverse=reverse,
    threads=THREADS,
  )
  return d_decay, d_drive, d_start


def _flags(resets, shape):
  """Resets for every element, or none at all."""
  if resets is None:
    return jnp.zeros((0,), bool)
  return jnp.broadcast_to(resets, shape)


def _call(name, dtype, results, arguments, reverse, activation):
  return jax.ffi.ffi_call(
    f"recurrent_{name}_{DTYPES[dtype]}", results, vmap_method="sequential"
  )(
    *arguments,
    reverse=reverse,
    kind=np.int64(activation),
    threads=THREADS,
  )


def _fixed(recurrent, bias, mask, resets):
  flags = lambda x: jnp.zeros((0,), bool) if x is None else x
  bias = jnp.zeros((0,), recurrent.dtype) if bias is None else bias
  return recurrent, bias, flags(mask), flags(resets)


def _two(carry):
  """Hidden and cell; empty if there is no cell."""
  return carry if len(carry) > 1 else (*carry, jnp.zeros((0,), carry[0].dtype))
