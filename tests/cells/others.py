"""Cells for the tests only, each with a feature that no other cell has."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from recurrent import numerics
from recurrent.cells import (
  GRU,
  LSTM,
  RNN,
  GatedCell,
  GRUCarry,
  LSTMCarry,
  RNNCarry,
)


class PeepholeParams(NamedTuple):
  kernel: Any
  recurrent: Any
  bias: Any
  peephole: Any


@dataclasses.dataclass(frozen=True)
class PeepholeLSTM(LSTM):
  """An LSTM with peepholes, which `gate` reads (Gers & Schmidhuber, 2000)."""

  def init(self, key, in_features):
    peephole = jnp.full((3, self.features), 0.1, jnp.float32)
    return PeepholeParams(*super().init(key, in_features), peephole)

  def gate(self, params, carry, projected, mixed):
    i, f, g, o = numerics.split_gates(
      numerics.as_carry(projected + mixed, carry), 4
    )
    see = lambda k, cell: (
      cell
      * jnp.broadcast_to(
        numerics.as_carry(params.peephole[k], carry), cell.shape
      )
    )
    i = jax.nn.sigmoid(i + see(0, carry.cell))
    f = jax.nn.sigmoid(f + see(1, carry.cell))
    cell = f * carry.cell + i * jnp.tanh(g)
    o = jax.nn.sigmoid(o + see(2, cell))
    hidden = o * jnp.tanh(cell)
    return LSTMCarry(hidden, cell), hidden.astype(projected.dtype)


class StartParams(NamedTuple):
  core: Any
  start: Any


@dataclasses.dataclass(frozen=True)
class LearnedStart(GatedCell):
  """A GRU whose initial carry is a parameter."""

  def init(self, key, in_features):
    start = jnp.full((self.features,), 0.2, jnp.float32)
    return StartParams(GRU(self.features).init(key, in_features), start)

  def initial_carry(self, params, batch_shape):
    shape = (*batch_shape, self.features)
    return GRUCarry(jnp.broadcast_to(params.start, shape))

  def project(self, params, inputs):
    return GRU(self.features).project(params.core, inputs)

  def recur(self, params, carry):
    return GRU(self.features).recur(params.core, carry)

  def gate(self, params, carry, projected, mixed):
    return GRU(self.features).gate(params.core, carry, projected, mixed)


class HeadsParams(NamedTuple):
  kernel: Any
  recurrent: Any
  scale: Any


@dataclasses.dataclass(frozen=True)
class Heads(GatedCell):
  """Has heads of two units and dict inputs; `recur`, `gate` read `scale`."""

  def init(self, key, in_features):
    kernel, recurrent = (
      jax.random.normal(k, (n // 2, 2, n), jnp.float32)[..., :m] / 2
      for k, n, m in zip(
        jax.random.split(key),
        (2 * in_features, self.features),
        (self.features, 2),
        strict=True,
      )
    )
    return HeadsParams(kernel[:, 0], recurrent, jnp.ones((), jnp.float32))

  def initial_carry(self, params, batch_shape):
    return RNNCarry(numerics.zeros(params, batch_shape, self.features))

  def project(self, params, inputs):
    return {"x": inputs["x"] @ params.kernel, "gap": inputs["gap"]}

  def recur(self, params, carry):
    hidden = carry.hidden.astype(params.recurrent.dtype)
    heads = hidden.reshape(*hidden.shape[:-1], -1, 2)
    mixed = jnp.einsum("...hi,hij->...hj", heads, params.recurrent)
    return (mixed.reshape(hidden.shape) * params.scale,)

  def gate(self, params, carry, projected, mixed):
    decay = jnp.exp(-jax.nn.softplus(params.scale) * projected["gap"])
    x = projected["x"] + mixed[0] * jnp.broadcast_to(decay, mixed[0].shape)
    hidden = jnp.tanh(numerics.as_carry(x, carry))
    return RNNCarry(hidden), hidden.astype(projected["x"].dtype)


class CountedCarry(NamedTuple):
  hidden: Any
  time_steps: Any


@dataclasses.dataclass(frozen=True)
class Counted(RNN):
  """A clockwork RNN: every other unit changes at even time steps only."""

  def initial_carry(self, params, batch_shape):
    hidden = numerics.zeros(params, batch_shape, self.features)
    return CountedCarry(hidden, jnp.zeros(batch_shape, jnp.int32))

  def gate(self, params, carry, projected, mixed):
    moved, _ = super().gate(params, carry, projected, mixed)
    slow = jnp.arange(self.features) % 2 == 1
    stay = (carry.time_steps % 2 == 1)[..., None] & jnp.broadcast_to(
      slow, carry.hidden.shape
    )
    hidden = jnp.where(stay, carry.hidden, moved.hidden)
    carry = CountedCarry(hidden, carry.time_steps + 1)
    return carry, hidden.astype(projected.dtype)


@dataclasses.dataclass(frozen=True)
class InnerJit(RNN):
  """An RNN whose `gate` is under `jit`, with weights that it does not read."""

  def gate(self, params, carry, projected, mixed):
    return jax.jit(super().gate)(params, carry, projected, mixed)


@dataclasses.dataclass(frozen=True)
class Switched(RNN):
  """An RNN whose inputs contain a flag `on`, as a number, per time step."""

  def project(self, params, inputs):
    x = super().project(params, inputs["x"])
    on = inputs["on"].reshape(*x.shape[:-1], 1) > 0
    return jnp.where(jnp.broadcast_to(on, x.shape), x, jnp.zeros_like(x))
