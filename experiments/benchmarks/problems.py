"""The problems of the benchmarks: shapes, parameters and inputs, in NumPy.

Every implementation gets the same float32 arrays, batch first, and its initial
carry is zero. The GRU's inner bias is zero, since Flax's GRU has none.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from recurrent import cells
from recurrent.converters.arrays import KINDS
from recurrent.errors import ConfigError

FORWARD, BACKWARD, STEP = "forward", "forward+backward", "train step"
WORKS = {
  "cells": (FORWARD, BACKWARD, STEP),
  "linear": (FORWARD, BACKWARD),
  "newton": (FORWARD, BACKWARD),
  "decode": ("tokens",),
  "train": (STEP,),
}
VOCABULARY = 103  # of the suites decode and train, that of `pydoc`
COMPARED = 64  # number of tokens to compare in the suite decode


@dataclasses.dataclass(frozen=True)
class Problem:
  """One shape of one suite.

  Args:
    suite: a key of `WORKS`.
    kind: "lstm", "gru" or "rnn"; "linear" for a bare linear recurrence.
    batch: rows B.
    time: time steps T; in the suite decode, tokens per call.
    in_features: width D of the inputs.
    features: width H of one direction of a layer.
    layers: number of layers.
    bidirectional: whether there are two directions.
    structure: structure of the recurrent matrix, "dense" or "diagonal".
    large: whether it runs only when --shapes asks for it.
  """

  suite: str
  kind: str
  batch: int
  time: int
  in_features: int
  features: int
  layers: int = 1
  bidirectional: bool = False
  structure: str = "dense"
  large: bool = False

  @property
  def name(self) -> str:
    """Its name in `--shapes`: lstm-64x100x128x128 is B x T x D x H."""
    sizes = [self.batch, self.time, self.in_features, self.features]
    parts = [self.kind, "x".join(map(str, sizes))]
    if self.suite not in ("cells", self.kind):
      parts.insert(0, self.suite)
    parts += [f"{self.layers}layers"] * (self.layers > 1)
    parts += ["bidirectional"] * self.bidirectional
    parts += [self.structure] * (self.structure != "dense")
    return "-".join(parts)

  def flops(self, work: str) -> int:
    """FLOPs of the necessary products; a backward pass has twice as many."""
    passes = 1 if work in (FORWARD, "tokens") else 3
    if self.suite == "linear":
      return passes * 2 * self.batch * self.time * self.features
    total, width = 0, self.in_features
    directions = 1 + self.bidirectional
    for _ in range(self.layers):
      seen = width + (self.features if self.structure == "dense" else 1)
      total += directions * KINDS[self.kind] * self.features * seen
      width = directions * self.features
    if self.suite in ("decode", "train"):
      total += self.features * VOCABULARY
    return passes * 2 * self.batch * self.time * total

  def bytes(self, work: str, dtype: str) -> int:
    """Bytes that must be moved if the weights of a layer stay on the chip.

    The projected inputs are written and read, and the reverse pass reads the
    gates and the carry, and writes and reads the gradients of the gates. A
    token of the suite decode reads all weights.

    Args:
      work: kind of work.
      dtype: dtype of all arrays.
    """
    rows, h = self.batch * self.time, self.features
    item, both = (
      (4 if dtype == "float32" else 2),
      work not in (FORWARD, "tokens"),
    )
    if self.suite == "linear":
      # Decay, drive, states; then decay, states and three gradients.
      return item * rows * h * (8 if both else 3)
    gates = KINDS[self.kind]
    moved, width = 0, self.in_features
    directions = 1 + self.bidirectional
    for _ in range(self.layers):
      dense = self.structure == "dense"
      weights = directions * gates * h * (width + (h if dense else 1))
      out = directions * h
      if work == "tokens":
        moved += weights * self.time
      else:
        moved += rows * (width + 2 * gates * out + out) + weights
      if both:
        moved += rows * (2 * (gates + 1) * out + 2 * gates * out + width)
        moved += weights
      width = out
    if work == "tokens":
      moved += h * VOCABULARY * self.time
    return item * moved


def _cells(kind, *sizes, **more):
  return Problem("cells", kind, *sizes, **more)


def _newton(kind, time, structure, **more):
  return Problem("newton", kind, 1, time, 16, 16, structure=structure, **more)


_LARGE = ((80, 70, 400, 1150), (128, 512, 512, 512), (16, 1024, 768, 768))
PROBLEMS = (
  _cells("lstm", 64, 100, 128, 128),
  _cells("lstm", 32, 10, 1, 64),
  _cells("lstm", 20, 35, 650, 650),
  _cells("lstm", 1, 256, 512, 512),
  _cells("lstm", 20, 35, 650, 650, layers=2),
  _cells("lstm", 32, 100, 256, 256, bidirectional=True),
  _cells("gru", 64, 100, 128, 128),
  _cells("gru", 20, 35, 650, 650),
  _cells("gru", 1, 256, 512, 512),
  _cells("rnn", 64, 100, 128, 128),
  _cells("rnn", 20, 35, 650, 650),
  *(
    _cells(kind, *sizes, large=True)
    for kind in ("lstm", "gru")
    for sizes in (*_LARGE, (1, 1000, 1024, 1024))
  ),
  Problem("linear", "linear", 8, 4096, 256, 256),
  Problem("linear", "linear", 1, 65536, 64, 64),
  Problem("linear", "linear", 8, 4096, 1536, 1536, large=True),
  *(_newton("gru", time, "diagonal") for time in (1_000, 10_000, 100_000)),
  *(_newton("lstm", time, "dense") for time in (1_000, 10_000)),
  _newton("lstm", 100_000, "dense", large=True),
  *(
    Problem("decode", "lstm", batch, 256, 128, features, layers)
    for layers in (1, 2)
    for features in (256, 1024)
    for batch in (1, 32)
  ),
  Problem("train", "lstm", 16, 64, 128, 448),
  Problem("train", "lstm", 64, 128, 512, 1024, 2, large=True),
)


def choose(shapes: str, suites: Sequence[str]) -> list[Problem]:
  """Returns the problems of some suites that `--shapes` selects.

  Args:
    shapes: "default", "all", or names and quadruples B,T,D,H, separated by
      semicolons. A quadruple is an LSTM of the suite cells, unless a kind
      precedes it, as in gru:64,100,128,128.
    suites: keys of `WORKS`.

  Raises:
    ConfigError: if a shape is unknown, or a suite is left without a problem.
  """
  if shapes in ("default", "all"):
    found = [p for p in PROBLEMS if shapes == "all" or not p.large]
  else:
    found = [_named(text.strip()) for text in shapes.split(";")]
  for suite in suites:
    if not any(problem.suite == suite for problem in found):
      raise ConfigError(
        f"--shapes={shapes} has none of the suite {suite}",
        "name some of its shapes, or leave it out of --suite",
      )
  return [problem for problem in found if problem.suite in suites]


def _named(text):
  numbers = re.fullmatch(r"(?:(\w+):)?(\d+),(\d+),(\d+),(\d+)", text)
  if numbers:
    kind, *sizes = numbers.groups()
    sizes = [int(size) for size in sizes]
    if (kind or "lstm") in KINDS and min(sizes) > 0:
      return _cells(kind or "lstm", *sizes)
  for problem in PROBLEMS:
    if problem.name == text:
      return problem
  names = ", ".join(problem.name for problem in PROBLEMS)
  raise ConfigError(
    f"--shapes: {text!r} is unknown",
    f'use "default", "all", B,T,D,H, gru:B,T,D,H or some of {names}',
  )


class Drawn(NamedTuple):
  """The arrays of a problem, in float32.

  Attributes:
    layers: parameters of the cells, [layer][direction].
    inputs: [batch, time, in_features]; in the suite linear the drive [time,
      batch, H]; in the suite decode the token ids [batch, 8] of a prompt; in
      the suite train those of a text, [batch, 4 time], with all of the
      vocabulary.
    weights: array of the shape of the outputs; the loss is the mean of outputs
      * weights.
    more: "decay" in the suite linear; "embedding", "kernel" and "bias" in the
      suite decode.
  """

  layers: list[list[Any]]
  inputs: np.ndarray
  weights: np.ndarray
  more: dict[str, np.ndarray]


def draw(problem: Problem) -> Drawn:
  """Draws the arrays of a problem, which are the same in every process."""
  rng = np.random.default_rng(0)

  def normal(*shape):
    return rng.standard_normal(shape, np.float32)

  def uniform(low, high, *shape):
    return rng.uniform(low, high, shape).astype(np.float32)

  b, t, h = problem.batch, problem.time, problem.features
  if problem.suite == "linear":
    decay = uniform(0.9, 1, t, b, h)
    return Drawn([], normal(t, b, h), normal(t, b, h), {"decay": decay})
  gates = KINDS[problem.kind]
  dense = problem.structure == "dense"
  directions = 1 + problem.bidirectional

  def params(width):
    bound = h**-0.5
    kernel = uniform(-bound, bound, width, gates * h)
    shape = (h, gates * h) if dense else (gates, h)
    recurrent = uniform(-bound, bound, *shape)
    bias = uniform(-bound, bound, gates * h)
    if problem.kind == "gru":
      return cells.GRUParams(kernel, recurrent, bias, np.zeros(h, np.float32))
    make = cells.LSTMParams if problem.kind == "lstm" else cells.RNNParams
    return make(kernel, recurrent, bias)

  if problem.suite == "train":
    text = np.resize(np.arange(VOCABULARY), (b, 4 * t))
    text = rng.permuted(text.ravel()).reshape(text.shape).astype(np.int32)
    return Drawn([], text, np.zeros(0, np.float32), {})
  layers, width = [], problem.in_features
  for _ in range(problem.layers):
    layers.append([params(width) for _ in range(directions)])
    width = directions * h
  if problem.suite == "decode":
    more = {
      "embedding": normal(VOCABULARY, problem.in_features),
      # So large that no two logits are nearly equal.
      "kernel": 8 * h**-0.5 * normal(h, VOCABULARY),
      "bias": normal(VOCABULARY),
    }
    prompt = rng.integers(0, VOCABULARY, (b, 8)).astype(np.int32)
    return Drawn(layers, prompt, np.zeros(0, np.float32), more)
  inputs = normal(b, t, problem.in_features)
  return Drawn(layers, inputs, normal(b, t, width), {})
