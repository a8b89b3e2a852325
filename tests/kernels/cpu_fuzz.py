"""Fuzzes the C++ handlers with random calls, most of them slightly wrong.

XLA passes buffers of any shape to a handler, so each handler must check them,
return an error for wrong ones, and never read or write out of bounds. The calls
are made without XLA (`cpu_fuzz.cc`).

  python -m tests.kernels.cpu_fuzz --tries=10000

builds the libraries with AddressSanitizer and UBSan and makes the calls under
them, with several threads; `make sanitize` runs it. An error ends the process
with a report on stderr and an exit code that is not zero.
"""

import argparse
import collections
import ctypes
import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from recurrent.kernels import cpu
from recurrent.kernels.cpu import products

SOURCE = pathlib.Path(__file__).with_suffix(".cc")
Shape = tuple[int, ...]
SIZES = (0, 1, 2, 3, 5, 16, 17, 33)
NONE = (0,)  # the shape that stands for no array


class Buffer(NamedTuple):
  """An argument or a result of a handler; `absent`: whether NONE will do."""

  shape: Shape
  dtype: Any
  absent: bool = False


class Call(NamedTuple):
  """What a handler is called with; `right`: must it work, None: it may."""

  name: str
  arguments: dict[str, Buffer]
  results: dict[str, Buffer]
  attributes: dict[str, Any]
  right: bool | None = True


def sizes(random, count):
  """Some sizes, of which few are zero."""
  weights = np.array([1 if size == 0 else 4 for size in SIZES])
  return random.choice(SIZES, count, p=weights / weights.sum()).tolist()


def a_layer(random, forward) -> Call:
  """A right call of a layer's loop."""
  kind = str(random.choice(cpu.KINDS))
  short = str(random.choice(list(cpu.DTYPES.values())))
  dtype = {"f32": np.float32, "f64": np.float64}[short]
  batch, time, depth, h = sizes(random, 4)
  if random.random() < 0.05:  # enough work for several threads
    batch, time, depth, h = int(random.choice([2, 40])), 20, 17, 97
  gh = {"rnn": 1, "lstm": 4, "gru": 3, "lstm_coupled": 3}[kind] * h
  has_cell, apart = kind.startswith("lstm"), kind == "gru"
  maybe = lambda: random.random() < 0.5
  some = lambda *shape: Buffer(shape, dtype)
  none = some(*NONE)
  cell = lambda *shape: some(*shape) if has_cell else none
  flags = lambda: Buffer((batch, time) if maybe() else NONE, bool, True)
  bias = Buffer((h,) if apart and maybe() else NONE, dtype, apart)
  olds = some(batch, time, h), cell(time, batch, h)
  saved = some(time, batch, cpu.SAVED[kind] * h)
  if forward:
    if maybe():
      saved = none
    if maybe():
      olds = none, none
    arguments = {
      "inputs": some(batch, time, depth),
      "kernel": some(depth, gh),
      "input_bias": some(gh),
      "recurrent": some(h, gh),
      "bias": bias,
      "mask": flags(),
      "resets": flags(),
      "initial_hidden": some(batch, h),
      "initial_cell": cell(batch, h),
      "hidden": some(batch, h),
      "cell": cell(batch, h),
    }
    results = {
      "outputs": some(batch, time, h),
      "last_hidden": some(batch, h),
      "last_cell": cell(batch, h),
      "saved": saved._replace(absent=True),
      "old_hidden": olds[0]._replace(absent=not has_cell),
      "old_cell": olds[1],
    }
  else:
    arguments = {
      "d_outputs": some(batch, time, h),
      "recurrent": some(h, gh),
      "bias": bias,
      "mask": flags(),
      "resets": flags(),
      "saved": saved,
      "old_hidden": olds[0],
      "old_cell": olds[1],
      "d_last_hidden": some(batch, h),
      "d_last_cell": cell(batch, h),
    }
    results = {
      "d_projected": some(batch, time, gh) if apart else none,
      "d_mixed": some(batch, time, gh),
      "d_hidden": some(batch, h),
      "d_cell": cell(batch, h),
      "d_initial_hidden": some(batch, h),
      "d_initial_cell": cell(batch, h),
    }
  way = "forward" if forward else "backward"
  attributes = {
    "reverse": maybe(),
    "kind": np.int64(random.integers(3) if kind == "rnn" else 0),
    "threads": np.int64(random.integers(1, 4)),
  }
  return Call(f"{kind}_{way}_{short}", arguments, results, attributes)


def a_scan(random, forward) -> Call:
  """A right call of the linear recurrence."""
  dtype, short = list(cpu.LINEAR_DTYPES.items())[random.integers(4)]
  all_steps = tuple(sizes(random, random.integers(1, 4)))
  if random.random() < 0.05:  # enough work for several threads
    all_steps = (7, 2, 9001)
  every, state = Buffer(all_steps, dtype), Buffer(all_steps[1:], dtype)
  resets = Buffer(all_steps if random.random() < 0.5 else NONE, bool, True)
  if forward:
    arguments = {
      "decay": every,
      "drive": every,
      "start": state,
      "resets": resets,
    }
    results = {"hidden": every}
  else:
    arguments = {
      "decay": every,
      "start": state,
      "resets": resets,
      "hidden": every,
      "d_hidden": every,
    }
    results = {"d_decay": every, "d_drive": every, "d_start": state}
  attributes = {
    "reverse": bool(random.random() < 0.5),
    "threads": np.int64(random.integers(1, 4)),
  }
  way = "forward" if forward else "backward"
  return Call(f"linear_{way}_{short}", arguments, results, attributes)


def a_product(random) -> Call:
  """A right call of a product with a packed matrix."""
  dtype = str(random.choice(products.DTYPES))
  rows, depth, columns = sizes(random, 3)
  if random.random() < 0.3:
    rows, depth, columns = rows, 300, 701
  panels = -(-columns // products.PANEL)
  arguments = {
    "inputs": Buffer((rows, depth), np.float32),
    "panels": Buffer((panels, depth, products.PANEL), jnp.dtype(dtype)),
    "scale": Buffer((columns,), np.float32),
  }
  results = {"outputs": Buffer((rows, columns), np.float32)}
  attributes = {"threads": np.int64(random.integers(1, 4))}
  return Call(f"product_{dtype}", arguments, results, attributes)


def a_call(random) -> Call:
  """A right call of any handler."""
  return [
    lambda: a_layer(random, True),
    lambda: a_layer(random, False),
    lambda: a_scan(random, random.random() < 0.5),
    lambda: a_product(random),
  ][random.choice(4, p=[0.35, 0.35, 0.2, 0.1])]()


def another_shape(random, shape: Shape) -> Shape:
  """A shape that is near a shape."""
  ways = ["more axes", "none"]
  if shape:
    ways += ["fewer axes", "size", "size", "size"]
  if len(shape) > 1:
    ways += ["transposed", "transposed"]
  way = random.choice(ways)
  if way == "more axes":
    return (*shape, 1) if random.random() < 0.5 else (1, *shape)
  if way == "none":
    return NONE
  if way == "fewer axes":
    return shape[1:] if random.random() < 0.5 else shape[:-1]
  if way == "transposed":
    return tuple(random.permutation(shape).tolist())
  at = random.integers(len(shape))
  size = shape[at]
  other = random.choice([0, 1, max(0, size - 1), size + 1, 2 * size + 1])
  return (*shape[:at], int(other), *shape[at + 1 :])


def spoilt(random, call: Call) -> Call:
  """A call with one thing changed."""
  buffers = call.arguments | call.results
  if random.random() < 0.1:
    attribute = random.choice([x for x in call.attributes if x != "reverse"])
    low, high = -(2**63), 2**63 - 1
    values = {
      "threads": [0, -1, low],
      "kind": [3, -1, low, high, *([1] if "rnn" not in call.name else [])],
    }[attribute]
    value = np.int64(values[random.integers(len(values))])
    attributes = call.attributes | {str(attribute): value}
    return call._replace(attributes=attributes, right=False)
  name = str(random.choice(list(buffers)))
  old = buffers[name]
  if random.random() < 0.1:
    others = [np.float32, np.float64, np.complex64, np.int32, bool]
    dtype = others[random.integers(len(others))]
    new = old._replace(dtype=dtype)
    right = jnp.dtype(dtype) == jnp.dtype(old.dtype)
  else:
    new = old._replace(shape=another_shape(random, old.shape))
    right = new.shape == old.shape or (old.absent and new.shape == NONE)
    if old.absent and old.shape == NONE and not right:
      right = None  # it may be what it would be if it were there
  where = "arguments" if name in call.arguments else "results"
  # `saved` and others are both, of different passes: never in one call.
  changed = getattr(call, where) | {name: new}
  return call._replace(**{where: changed}, right=right)


def mixed(random, call: Call) -> Call:
  """A call with buffers of two: it may be right or not."""
  other = a_call(random)
  while other.name != call.name:
    other = a_call(random)
  choose = lambda ours, theirs: {
    name: (ours if random.random() < 0.7 else theirs)[name] for name in ours
  }
  return call._replace(
    arguments=choose(call.arguments, other.arguments),
    results=choose(call.results, other.results),
    right=None,
  )


def calls(seed: int, count: int) -> Iterator[Call]:
  """Some calls; a quarter of them right."""
  random = np.random.default_rng(seed)
  for _ in range(count):
    call, way = a_call(random), random.random()
    if way < 0.6:
      call = spoilt(random, call)
    elif way < 0.75:
      call = mixed(random, call)
    yield call


class Caller:
  """Calls handlers without XLA, which would compile a program for each call."""

  # Numbers of XLA's C interface.
  DTYPES = {
    **{"bool": 1, "int8": 2, "int32": 4, "float32": 11, "float64": 12},
    **{"bfloat16": 16, "complex64": 15, "complex128": 18},
  }

  def __init__(self):
    self.handlers: dict[str, Any] = {}
    for library in (cpu, products):
      self.handlers |= found(library.SOURCE, library.HANDLERS)
    self._call = found(SOURCE, ["call_handler"])["call_handler"]
    self._call.restype = ctypes.c_char_p

  def __call__(self, call: Call) -> str:
    """What a handler has to say; empty if it worked."""
    ints = lambda values: (ctypes.c_int64 * len(values))(*map(int, values))
    buffers = [*call.arguments.values(), *call.results.values()]
    dtypes = [jnp.dtype(x.dtype) for x in buffers]
    attributes = dict(sorted(call.attributes.items()))
    names = [name.encode() for name in attributes]
    said = self._call(
      self.handlers[call.name],
      ctypes.c_int64(len(call.arguments)),
      ctypes.c_int64(len(call.results)),
      ints([self.DTYPES[x.name] for x in dtypes]),
      ints([len(x.shape) for x in buffers]),
      ints([size for x in buffers for size in x.shape]),
      ints(
        [
          math.prod(x.shape) * dtype.itemsize
          for x, dtype in zip(buffers, dtypes, strict=True)
        ]
      ),
      ctypes.c_int64(len(attributes)),
      (ctypes.c_char_p * len(names))(*names),
      ints(attributes.values()),
    )
    return said.decode()


def found(source, names):
  """Functions of a library; there must be a compiler."""
  functions = cpu.functions(source, names)
  assert functions is not None, "no C++ compiler on the path"
  return functions


def check(seed: int, count: int) -> collections.Counter:
  """Tries some calls; how many worked and how many were refused."""
  results: collections.Counter = collections.Counter()
  caller = Caller()
  for call in calls(seed, count):
    said = caller(call)
    assert call.right in (None, not said), (call, said)
    assert not said or "must" in said or "dtype" in said, (call, said)
    results["refused" if said else "worked"] += 1
  return results


def check_no_memory():
  """A loop that gets no memory says so: [D, 1] packs into 16 times as much."""
  h, depth = 1, 8 << 20
  some = lambda *shape: Buffer(shape, np.float32)
  none = [some(*NONE), Buffer(NONE, bool), Buffer(NONE, bool)]
  carry = [some(1, h), some(*NONE)]
  arguments = [some(1, 1, depth), some(depth, h), some(h), some(h, h)]
  arguments += [*none, *carry, *carry]
  results = [some(1, 1, h), *carry, *[some(*NONE)] * 3]
  attributes = {"reverse": False, "kind": 0, "threads": 1}
  numbered = lambda buffers: {str(i): x for i, x in enumerate(buffers)}
  said = Caller()(
    Call("rnn_forward_f32", numbered(arguments), numbered(results), attributes)
  )
  assert "no memory" in said, said


def main():
  """Runs itself again with the sanitizers, and then tries."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--tries", type=int, default=10000)
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args()
  if "LD_PRELOAD" not in os.environ:
    where = lambda name: subprocess.run(
      ["c++", f"-print-file-name={name}"],
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()
    libraries = ("libasan.so", "libubsan.so", "libstdc++.so")
    sanitized = {
      "LD_PRELOAD": ":".join(map(where, libraries)),
      # Python keeps memory to its end. The greatest is what `check_no_memory`
      # must not get.
      "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1"
      ":max_allocation_size_mb=400:detect_stack_use_after_return=0",
      "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
      "JAX_PLATFORMS": "cpu",
    }
    again = [sys.executable, "-m", "tests.kernels.cpu_fuzz", *sys.argv[1:]]
    sys.exit(subprocess.run(again, env=os.environ | sanitized).returncode)
  sanitizers = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
  cpu.FLAGS = (*cpu.FLAGS, "-O1", "-g", *sanitizers)
  check_no_memory()
  print(dict(check(options.seed, options.tries)), "no finding")


if __name__ == "__main__":
  main()
