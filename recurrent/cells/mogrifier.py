"""Mogrifier LSTM: inputs and hidden state gate each other first."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from recurrent import numerics
from recurrent.cells import base
from recurrent.cells.lstm import LSTM, LSTMParams
from recurrent.checks import check_width
from recurrent.types import Array, Float


class MogrifierParams(NamedTuple):
  """Parameters of `Mogrifier`."""

  lstm: LSTMParams
  by_hidden: Float[Array, "odd H D"]  # rounds 1, 3, ...
  by_inputs: Float[Array, "even D H"]  # rounds 2, 4, ...


@dataclasses.dataclass(frozen=True)
class Mogrifier(base.Cell):
  """An LSTM whose x and h have first scaled each other, by turns.

  x = 2 sigmoid(h Q) x in odd rounds, h = 2 sigmoid(x P) h in even ones.

  Args:
    features: width H.
    rounds: number of rounds; 0 gives the LSTM.
    forget_bias: initial value of the forget gate's bias.

  Raises:
    ValueError: if `rounds` is negative.

  Reference:
    Melis, Kocisky & Blunsom, "Mogrifier LSTM", 2020.
  """

  rounds: int = 5
  forget_bias: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    if self.rounds < 0:
      raise ValueError(f"rounds must be 0 or more, got {self.rounds}")

  @property
  def _lstm(self):
    return LSTM(self.features, forget_bias=self.forget_bias)

  def init(self, key, in_features):
    """Draws `MogrifierParams`: the LSTM's, and small gates."""
    keys = jax.random.split(key, 3)
    h, d = self.features, in_features
    small = jax.nn.initializers.normal(0.1, jnp.float32)
    return MogrifierParams(
      self._lstm.init(keys[0], in_features),
      small(keys[1], ((self.rounds + 1) // 2, h, d)),
      small(keys[2], (self.rounds // 2, d, h)),
    )

  def initial_carry(self, params, batch_shape):
    """The LSTM's."""
    return self._lstm.initial_carry(params.lstm, batch_shape)

  def project(self, params, inputs):
    """Returns the inputs, whose scaling depends on the carry."""
    check_width("inputs", inputs, len(params.lstm.kernel))
    return inputs

  def step(self, params, carry, projected):
    """The rounds, then a time step of the LSTM."""
    inputs, hidden = projected, carry.hidden
    gate = lambda array, kernel: (
      2 * jax.nn.sigmoid(numerics.hidden_product(array, kernel))
    )
    for index in range(self.rounds):
      if index % 2:
        by = gate(inputs, params.by_inputs[index // 2])
        hidden = by.astype(hidden.dtype) * hidden
      else:
        inputs = gate(hidden, params.by_hidden[index // 2]) * inputs
    lstm = self._lstm
    return lstm.step(
      params.lstm,
      carry._replace(hidden=hidden),
      lstm.project(params.lstm, inputs),
    )
