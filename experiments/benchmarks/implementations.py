"""The table of implementations of each suite.

To add one, add a module to peers/ and an entry to `IMPLEMENTATIONS`.
"""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.benchmarks.problems import Problem
from recurrent.errors import ConfigError


class Implementation(NamedTuple):
  """One way to compute the problems of a suite.

  Attributes:
    module: name of the module with its function `make`.
    side: "ours"; "jax" for another implementation in JAX; "torch"; or "other"
      for one that has no part in the ratios.
    option: argument of `make`.
    needs: names of packages that must be installed.
    environment: environment variables of its process.
    cannot: maps kinds, structures and dtypes ("rnn", "diagonal", "bfloat16", or
      a kind and a dtype, "rnn bfloat16") that it does not support to the
      reason, which completes a sentence that begins with "it".
    agreement: least share of the tokens that must equal those of the first
      implementation, counted in each row up to the first that differs. It is 1
      except for narrow weights, which compute another function; then the share
      is reported.
    if_named: whether it runs only if `--peers` names it.
  """

  module: str
  side: str
  option: str = ""
  needs: tuple[str, ...] = ()
  environment: Mapping[str, str] = {}
  cannot: Mapping[str, str] = {}
  agreement: float = 1.0
  if_named: bool = False

  def why_not(self, problem: Problem, dtype: str) -> str:
    """Why it does not support a problem; empty if it does."""
    kind = problem.kind
    words = (kind, problem.structure, dtype, f"{kind} {dtype}")
    return next((self.cannot[w] for w in words if w in self.cannot), "")

  def missing(self) -> str:
    """Which packages to install for it; empty if none is missing."""
    absent = [n for n in self.needs if importlib.util.find_spec(n) is None]
    if not absent:
      return ""
    return f"{', '.join(absent)} not installed: pip install -e '.[peers]'"


def _peer(name: str, side: str, option: str = "", **more: Any):
  module = f"experiments.benchmarks.peers.{name}"
  return Implementation(module, side, option, **more)


def _ours(*methods: str, **more: Any):
  return {f"ours:{m}": _peer("ours", "ours", m, **more) for m in methods}


def _loops() -> dict[str, Implementation]:
  """`ours:fused` with each of the options that XLA has for loops, on GPUs."""
  before = os.environ.get("XLA_FLAGS", "")
  found = {
    f"ours:fused{name}": _peer(
      *("ours", "ours", "fused"),
      environment={"XLA_FLAGS": f"{before} {flags}".strip()},
      if_named=True,
    )
    for name, flags in LOOP_FLAGS.items()
  }
  for steps in (2, 4, 8):
    found[f"ours:fused+unroll{steps}"] = _peer(
      "unrolled", "ours", f"fused,{steps}", if_named=True
    )
  return found


def _linear(option: str, side: str, **more: Any):
  reason = "is float32, as in all linear cells"
  cannot = {"bfloat16": reason, "float16": reason}
  return _peer("linear", side, option, cannot=cannot, **more)


def _keras(backend: str, side: str, *needs: str):
  environment = {"KERAS_BACKEND": backend}
  needs = ("keras", *needs)
  return _peer("keras", side, backend, needs=needs, environment=environment)


# XLA reads them when a process starts. By default it captures some operations
# as CUDA graphs ("command buffers"), but no loops.
LOOP_FLAGS = {
  "+graphs-off": "--xla_gpu_enable_command_buffer=",
  "+graph-loops": "--xla_gpu_enable_command_buffer=+WHILE"
  " --xla_gpu_graph_min_graph_size=1",
  "+graph-loops-unrolled": "--xla_gpu_enable_command_buffer=+WHILE"
  " --xla_gpu_graph_min_graph_size=1"
  " --xla_gpu_command_buffer_unroll_loops=true",
}
OURS = _peer("ours", "ours", "auto")
DENSE = {"diagonal": "has dense cells only"}
LAX = _peer("lax", "jax", cannot=DENSE)
TORCH = _peer("torch", "torch", needs=("torch",), cannot=DENSE)

# The values of a suite's first implementation are those that the others must
# agree with.
IMPLEMENTATIONS: dict[str, dict[str, Implementation]] = {
  "cells": {
    "ours": OURS,
    **_ours("fused", "scan"),
    # Each of these runs on one kind of device only.
    **_ours("tpu_kernel", "gpu_kernel", "cudnn", if_named=True),
    **_loops(),
    "scan": LAX,
    "flax": _peer(
      "flax",
      "jax",
      cannot={
        f"rnn {dtype}": "has a SimpleCell whose carry keeps no other dtype than"
        " float32"
        for dtype in ("bfloat16", "float16")
      },
    ),
    "haiku": _peer(
      "haiku",
      "jax",
      needs=("haiku",),
      cannot={
        "gru": "resets before the product: another function",
        "rnn": "has relu only: another function",
      },
    ),
    "equinox": _peer(
      "equinox",
      "jax",
      needs=("equinox",),
      cannot={"rnn": "has no such cell"},
    ),
    "keras_jax": _keras("jax", "jax"),
    "keras_torch": _keras("torch", "other", "torch"),
    "torch": TORCH,
  },
  "linear": {
    "ours": _linear("linear_scan", "ours"),
    "ours:gpu_kernel": _linear("gpu_kernel", "ours", if_named=True),
    "ours:tpu_kernel": _linear("tpu_kernel", "ours", if_named=True),
    "associative": _linear("associative", "jax"),
    "scan": _linear("scan", "jax"),
  },
  "newton": {
    "ours": OURS,
    **_ours("newton"),
    "scan": LAX,
    "torch": TORCH,
  },
  "decode": {
    "ours": _peer("decoding", "ours", "float32"),
    "ours:bfloat16": _peer("decoding", "ours", "bfloat16", agreement=0.5),
    "ours:int8": _peer("decoding", "ours", "int8", agreement=0.5),
    "step": _peer("decoding", "jax", "step"),
    "call": _peer("decoding", "jax", "call"),
    "torch": _peer("torch_decoding", "torch", needs=("torch",)),
  },
  "train": {
    method: _peer("language_model", "ours", method.partition(":")[2] or "auto")
    for method in ("ours", "ours:fused", "ours:scan")
  },
}


def choose(peers: str, suites: Sequence[str]) -> dict[str, list[str]]:
  """Names of the implementations of each suite, as `--peers` asks for them.

  Args:
    peers: names separated by commas; empty: all that need not be named.
    suites: keys of `IMPLEMENTATIONS`.

  Raises:
    ConfigError: if a name is unknown, or a suite is left without any.
  """
  known = list(dict.fromkeys(n for s in IMPLEMENTATIONS.values() for n in s))
  wanted = peers.split(",") if peers else known
  for name in wanted:
    if name not in known:
      raise ConfigError(
        f"--peers: {name!r} is unknown", f"use some of {', '.join(known)}"
      )
  chosen = {
    suite: [
      name
      for name, implementation in IMPLEMENTATIONS[suite].items()
      if name in wanted and (peers or not implementation.if_named)
    ]
    for suite in suites
  }
  for suite, names in chosen.items():
    if not names:
      raise ConfigError(
        f"--peers={peers} has none of the suite {suite}",
        f"use some of {', '.join(IMPLEMENTATIONS[suite])}",
      )
  return chosen
