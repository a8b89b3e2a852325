"""Checks the loops of "fused" in the program that XLA compiles."""

import re

import jax
import jax.numpy as jnp
import pytest

from recurrent import unroll
from recurrent.cells import GRU, LSTM, RNN

BATCH, TIME, IN_FEATURES, FEATURES = 8, 16, 40, 96


def split(program):
  """The lines of each computation of a program."""
  computations = {}
  for line in program.splitlines():
    head = re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line)
    if head:
      computations[head[1]] = body = []
    elif line.startswith("  "):
      body.append(line)
  return computations


def loop_bodies(program):
  """For each `while`, (operation, shape) of all that its body runs."""
  computations = split(program)

  def operations(name):
    for line in computations[name]:
      found = re.search(r"= (\w+\[[\d,]*\])\S* ([\w\-]+)\(", line)
      if found:
        yield found[2], found[1]
      for called in re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", line):
        yield from operations(called)

  names = re.findall(r"body=%?([\w.\-]+)", program)
  return [list(operations(name)) for name in names]


@pytest.mark.parametrize("cell", [RNN, LSTM, GRU])
def test_a_time_step_is_one_product_and_moves_no_weights(cell):
  cell = cell(FEATURES)
  params = cell.init(jax.random.key(0), IN_FEATURES)
  inputs = jnp.ones((BATCH, TIME, IN_FEATURES))

  def total(params, inputs):
    return jnp.sum(unroll(cell, params, None, inputs, method="fused")[1] ** 2)

  weights = {
    f"f32[{','.join(map(str, shape))}]"
    for x in jax.tree.leaves(params)
    if x.ndim > 1
    for shape in (x.shape, x.shape[::-1])
  }
  carry = f"f32[{BATCH},{FEATURES}]"
  for function, loops in ((total, 1), (jax.grad(total, argnums=(0, 1)), 2)):
    program = jax.jit(function).lower(params, inputs).compile().as_text()
    bodies = loop_bodies(program)
    assert len(bodies) == loops
    for body in bodies:
      names = [name for name, _ in body]
      assert names.count("dot") == 1
      assert not {"transpose", "convert"} & set(names)
      # XLA moves the counter, and a carry that its writer would overwrite.
      copied = {shape for name, shape in body if name == "copy"}
      assert copied <= {"s32[]", carry}
      # A sum of weight gradients would be made anew, or updated, at each time
      # step.
      made = {"add", "fusion", "dot", "dynamic-update-slice", "copy"}
      assert not {shape for name, shape in body if name in made} & weights


@pytest.mark.parametrize(("method", "together"), [("fused", 0), ("scan", 1)])
def test_on_a_cpu_no_gate_is_computed_while_a_time_step_is_cut(
  method, together
):
  # Which XLA would not vectorise. The plain scan shows that this sees it.
  cell = LSTM(FEATURES)
  params = cell.init(jax.random.key(0), IN_FEATURES)
  inputs = jnp.ones((BATCH, TIME, IN_FEATURES))

  def total(params, inputs):
    return jnp.sum(unroll(cell, params, None, inputs, method=method)[1] ** 2)

  for function in (total, jax.grad(total, argnums=(0, 1))):
    program = jax.jit(function).lower(params, inputs).compile().as_text()
    bodies = ["\n".join(lines) for lines in split(program).values()]
    fused = [
      body
      for body in bodies
      if " while(" not in body
      and " dynamic-slice(" in body
      and re.search(r" (tanh|exponential)\(", body)
    ]
    assert bool(fused) == together


def test_a_cotangent_of_one_value_is_not_written_at_each_time_step():
  cell = LSTM(FEATURES)
  params = cell.init(jax.random.key(0), IN_FEATURES)
  inputs = jnp.ones((BATCH, TIME, IN_FEATURES))

  def last(params):  # The cotangent of the outputs is zero.
    return unroll(cell, params, None, inputs, method="fused")[0].hidden.sum()

  program = jax.jit(jax.grad(last)).lower(params).compile().as_text()
  entry = re.search(r"^ENTRY %?([\w.\-]+)", program, re.M)[1]
  outputs = re.escape(f"f32[{TIME},{BATCH},{FEATURES}]")
  for name, lines in split(program).items():
    if name != entry:
      assert not re.search(rf"= {outputs}\S* broadcast\(", "\n".join(lines))
