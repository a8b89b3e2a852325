"""Who takes part. To add one: a file in peers/, a row in CONTESTANTS."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from experiments.benchmarks.problems import Problem
from recurrent.errors import ConfigError

PEERS = "experiments.benchmarks.peers"


class Contestant(NamedTuple):
  """One way to compute the problems of a suite.

  Attributes:
    module: that has `make`.
    side: "ours"; "jax", another way to do it in JAX; "torch"; or "other", which
      no ratio is about.
    option: handed to `make`.
    needs: packages that have to be installed.
    environment: variables of its process.
    why_not: why it leaves a problem out, as "it ..."; empty if it does not.
    agreement: the least part of the tokens that must be those of the first
      contestant, each row up to where it departs; 1 but for narrow weights,
      which compute another function. The part is reported.
    if_named: whether it takes part only if `--peers` names it.
  """

  module: str
  side: str
  option: str = ""
  needs: tuple[str, ...] = ()
  environment: Mapping[str, str] = {}
  why_not: Callable[[Problem, str], str] = lambda problem, dtype: ""
  agreement: float = 1.0
  if_named: bool = False


def _only(why_not: Mapping[str, str]):
  return lambda problem, dtype: why_not.get(problem.kind, "")


def _dense(problem, dtype):
  del dtype
  return "" if problem.structure == "dense" else "has dense cells only"


def _flax(problem, dtype):
  if problem.kind == "rnn" and dtype != "float32":
    return "has a SimpleCell whose carry keeps no other dtype than float32"
  return ""


def _ours(method):
  return Contestant(f"{PEERS}.ours", "ours", method)


OURS = {
  "ours": _ours("auto"),
  "ours:fused": _ours("fused"),
  "ours:scan": _ours("scan"),
}
# For one kind of device each.
ELSEWHERE = {
  f"ours:{method}": _ours(method)._replace(if_named=True)
  for method in ("pallas", "mosaic_gpu", "cudnn")
}
TORCH = Contestant(f"{PEERS}.torch", "torch", needs=("torch",), why_not=_dense)
LAX = Contestant(f"{PEERS}.lax", "jax", why_not=_dense)


def _keras(backend, side, *needs):
  environment = {"KERAS_BACKEND": backend}
  return Contestant(
    f"{PEERS}.keras", side, backend, ("keras", *needs), environment
  )


def _decoding(option, side, agreement=1.0):
  return Contestant(f"{PEERS}.decoding", side, option, agreement=agreement)


def _linear(option, side):
  wide = lambda problem, dtype: (
    "" if dtype == "float32" else "is float32, as in all linear cells"
  )
  return Contestant(f"{PEERS}.linear", side, option, why_not=wide)


# The first of a suite is the one whose values the others must have.
CONTESTANTS: dict[str, dict[str, Contestant]] = {
  "cells": {
    **OURS,
    **ELSEWHERE,
    "scan": LAX,
    "flax": Contestant(f"{PEERS}.flax", "jax", why_not=_flax),
    "haiku": Contestant(
      f"{PEERS}.haiku",
      "jax",
      needs=("haiku",),
      why_not=_only(
        {
          "gru": "resets before the product: another function",
          "rnn": "has relu only: another function",
        }
      ),
    ),
    "equinox": Contestant(
      f"{PEERS}.equinox",
      "jax",
      needs=("equinox",),
      why_not=_only({"rnn": "has no such cell"}),
    ),
    "keras_jax": _keras("jax", "jax"),
    "keras_torch": _keras("torch", "other", "torch"),
    "torch": TORCH,
  },
  "linear": {
    "ours": _linear("kernel", "ours"),
    "ours:mosaic_gpu": _linear("mosaic_gpu", "ours")._replace(if_named=True),
    "associative": _linear("associative", "jax"),
    "scan": _linear("scan", "jax"),
  },
  "newton": {
    "ours": _ours("auto"),
    "ours:newton": _ours("newton"),
    "scan": LAX,
    "torch": TORCH,
  },
  "decode": {
    "ours": _decoding("float32", "ours"),
    "ours:bfloat16": _decoding("bfloat16", "ours", agreement=0.5),
    "ours:int8": _decoding("int8", "ours", agreement=0.5),
    "step": _decoding("step", "jax"),
    "call": _decoding("call", "jax"),
    "torch": Contestant(f"{PEERS}.torch_decoding", "torch", needs=("torch",)),
  },
}


def choose(peers: str, suites: Sequence[str]) -> dict[str, list[str]]:
  """Names of the contestants of each suite, as `--peers` asks for them.

  Args:
    peers: names separated by commas; empty: all that need not be named.
    suites: keys of `CONTESTANTS`.

  Raises:
    ConfigError: if a name is unknown, or a suite is left without any.
  """
  known = list(
    dict.fromkeys(n for suite in CONTESTANTS.values() for n in suite)
  )
  wanted = peers.split(",") if peers else known
  for name in wanted:
    if name not in known:
      raise ConfigError(
        f"--peers: {name!r} is unknown", f"use some of {', '.join(known)}"
      )
  chosen = {
    suite: [
      name
      for name, contestant in CONTESTANTS[suite].items()
      if name in wanted and (peers or not contestant.if_named)
    ]
    for suite in suites
  }
  for suite, names in chosen.items():
    if not names:
      raise ConfigError(
        f"--peers={peers} has none of the suite {suite}",
        f"use some of {', '.join(CONTESTANTS[suite])}",
      )
  return chosen


def missing(contestant: Contestant) -> str:
  """What to install for a contestant; empty if it is all there."""
  absent = [n for n in contestant.needs if importlib.util.find_spec(n) is None]
  if not absent:
    return ""
  return f"{', '.join(absent)} not installed: pip install -e '.[peers]'"
