"""Each cell against its paper's formula, in NumPy, row by row.

`FORMULAS` maps a name of `CELLS` to `time_step(params, carry, x) -> (carry,
out)`, written from the papers, which shares no code with the cells. The RNN,
LSTM and GRU have such tests in files of their own.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurrent.cells import CELLS
from tests.cells import reference
from tests.cells.cases import assert_close, cases, forward, law, output_shape
from tests.cells.reference import relu, sigmoid

OWN_FILES = {"rnn", "rnn_relu", "rnn_sigmoid", "lstm", "gru"} | {
  "gru_reset_before"
}


def softplus(x):
  return np.log1p(np.exp(x))


def normed(x, scale):
  return scale * (x - x.mean()) / np.sqrt(x.var() + 1e-5)


def each_normed(x, scales, gates):
  parts = zip(np.split(x, gates), np.split(scales, gates), strict=True)
  return [normed(*part) for part in parts]


def matrix(pair):
  return pair[0] + 1j * pair[1]


def indrnn(p, carry, x):
  h = relu(x @ p.kernel + p.recurrent[0] * carry[0] + p.bias)
  return (h,), h


def lstm_peephole(p, carry, x):
  h, c = carry
  i, f, g, o = np.split(x @ p.kernel + h @ p.recurrent + p.bias, 4)
  i = sigmoid(i + p.peepholes[0] * c)
  f = sigmoid(f + p.peepholes[1] * c)
  c = f * c + i * np.tanh(g)
  h = sigmoid(o + p.peepholes[2] * c) * np.tanh(c)
  return (h, c), h


def lstm_coupled(p, carry, x):
  h, c = carry
  i, g, o = np.split(x @ p.kernel + h @ p.recurrent + p.bias, 3)
  c = (1 - sigmoid(i)) * c + sigmoid(i) * np.tanh(g)
  h = sigmoid(o) * np.tanh(c)
  return (h, c), h


def lstm_projected(p, carry, x):
  r, c = carry
  i, f, g, o = np.split(x @ p.kernel + r @ p.recurrent + p.bias, 4)
  c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
  r = (sigmoid(o) * np.tanh(c)) @ p.projection
  return (r, c), r


def lstm_layer_norm(p, carry, x):
  h, c = carry
  by_x = each_normed(x @ p.kernel, p.norm.kernel, 4)
  by_h = each_normed(h @ p.recurrent, p.norm.recurrent, 4)
  sums = np.concatenate(by_x) + np.concatenate(by_h) + p.bias
  i, f, g, o = np.split(sums, 4)
  c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
  h = sigmoid(o) * np.tanh(normed(c, p.norm.cell) + p.norm.cell_bias)
  return (h, c), h


def slstm(p, carry, x):
  # As printed before it is stabilised: exponentials, and their sum.
  h, mean, log_n = carry
  i, f, g, o = np.split(x @ p.kernel + h @ p.recurrent + p.bias, 4)
  n = np.exp(log_n)
  c = sigmoid(f) * mean * n + np.exp(i) * np.tanh(g)
  n = sigmoid(f) * n + np.exp(i)
  h = sigmoid(o) * c / n
  return (h, c / n, np.log(n)), h


def gru_layer_norm(p, carry, x):
  (h,) = carry
  by_x = each_normed(x @ p.kernel, p.kernel_scale, 3)
  by_h = each_normed(h @ p.recurrent, p.recurrent_scale, 3)
  b = np.split(p.bias, 3)
  r = sigmoid(by_x[0] + by_h[0] + b[0])
  z = sigmoid(by_x[1] + by_h[1] + b[1])
  n = np.tanh(by_x[2] + b[2] + r * (by_h[2] + p.recurrent_bias))
  h = (1 - z) * n + z * h
  return (h,), h


def one_gate(seen):
  def time_step(p, carry, x):
    (h,) = carry
    wf, wn = np.split(p.kernel, 2, axis=1)
    uf, un = np.split(p.recurrent, 2, axis=1)
    bf, bn = np.split(p.bias, 2)
    f = sigmoid(x @ wf + h @ uf + bf)
    n = np.tanh(x @ wn + (seen(f) * h) @ un + bn)
    h = (1 - f) * h + f * n
    return (h,), h

  return time_step


def mogrifier(p, carry, x):
  h, c = carry
  x = 2 * sigmoid(h @ p.by_hidden[0]) * x
  h = 2 * sigmoid(x @ p.by_inputs[0]) * h
  x = 2 * sigmoid(h @ p.by_hidden[1]) * x
  h = 2 * sigmoid(x @ p.by_inputs[1]) * h
  x = 2 * sigmoid(h @ p.by_hidden[2]) * x
  gates = reference.split(*p.lstm, names="ifgo")
  return reference.lstm(gates, (h, c), x)


def rhn(p, carry, x):
  (s,) = carry
  for layer in range(3):
    n, t = np.split(
      (x @ p.kernel if layer == 0 else 0)
      + s @ p.recurrent[layer]
      + p.bias[layer],
      2,
    )
    s = np.tanh(n) * sigmoid(t) + s * (1 - sigmoid(t))
  return (s,), s


def lru(p, carry, x):
  h = carry[0] + 1j * carry[1]
  decay = np.exp(-np.exp(p.log_rate) + 1j * np.exp(p.log_phase))
  h = decay * h + np.exp(p.log_scale) * (x @ matrix(p.kernel))
  return (h.real, h.imag), (h @ matrix(p.output)).real + x @ p.skip


def s5(p, carry, x):
  h = carry[0] + 1j * carry[1]
  pole = -np.exp(p.log_rate) + 1j * p.frequency
  # dh/dt = pole h + u for one step with u held, by the integral.
  step = np.exp(p.log_step)
  u = x @ matrix(p.kernel)
  h = np.exp(pole * step) * h + u * (np.exp(pole * step) - 1) / pole
  return (h.real, h.imag), 2 * (h @ matrix(p.output)).real + x @ p.skip


def rg_lru(p, carry, x):
  (h,) = carry
  v = x @ p.kernel + p.bias
  r, i = np.split(sigmoid(v @ p.gates + p.gate_bias), 2)
  a = np.exp(-softplus(p.rate)) ** (8 * r)
  h = a * h + np.sqrt(1 - a**2) * i * v
  return (h,), h


def min_gru(p, carry, x):
  z, n = np.split(x @ p.kernel + p.bias, 2)
  h = (1 - sigmoid(z)) * carry[0] + sigmoid(z) * n
  return (h,), h


def min_lstm(p, carry, x):
  i, f, g = np.split(x @ p.kernel + p.bias, 3)
  i, f = sigmoid(i), sigmoid(f)
  h = f / (f + i) * carry[0] + i / (f + i) * g
  return (h,), h


def qrnn(p, carry, x):
  z, f, o = np.split(x @ p.kernel + p.bias, 3)
  c = sigmoid(f) * carry[0] + (1 - sigmoid(f)) * np.tanh(z)
  return (c,), sigmoid(o) * c


def sru(p, carry, x):
  v, f, r, s = np.split(x @ p.kernel + p.bias, 4)
  c = sigmoid(f) * carry[0] + (1 - sigmoid(f)) * v
  return (c,), sigmoid(r) * np.tanh(c) + (1 - sigmoid(r)) * s


def mlstm(p, carry, x):
  memory, n = carry[0][0, :, :-1], carry[0][0, :, -1]
  q, k, v, o = np.split(x @ p.kernel + p.bias, 4)
  i, f = x @ p.gates + p.gate_bias
  i, k = np.exp(15 * np.tanh(i / 15)), k / np.sqrt(len(k))
  memory = sigmoid(f) * memory + i * np.outer(k, v)
  n = sigmoid(f) * n + i * k
  h = sigmoid(o) * (q @ memory) / max(abs(q @ n), 1)
  return (np.concatenate([memory, n[:, None]], axis=1)[None],), h


def convolved(image, kernel):
  """A sum over the window at every place; nothing is outside."""
  rows, columns = image.shape[:2]
  out = np.zeros((rows, columns, kernel.shape[-1]))
  for (row, column), (down, right) in itertools.product(
    np.ndindex(rows, columns), np.ndindex(kernel.shape[:2])
  ):
    y, x = row + down - 1, column + right - 1
    if 0 <= y < rows and 0 <= x < columns:
      out[row, column] += image[y, x] @ kernel[down, right]
  return out


def conv_lstm(p, carry, x):
  # As printed, but for the peepholes.
  h, c = carry
  sums = convolved(x, p.kernel) + convolved(h, p.recurrent) + p.bias
  i, f, g, o = np.split(sums, 4, axis=-1)
  c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
  h = sigmoid(o) * np.tanh(c)
  return (h, c), h


def gru_d(p, carry, x):
  # As printed; theirs is one minus our z.
  h, last = carry
  m = x.observed.astype(float)
  gamma_x = np.exp(
    -np.maximum(0, p.input_decay * x.elapsed + p.input_decay_bias)
  )
  gamma_h = np.exp(
    -np.maximum(0, x.elapsed @ p.hidden_decay + p.hidden_decay_bias)
  )
  value = m * x.value + (1 - m) * (gamma_x * last + (1 - gamma_x) * p.mean)
  h = gamma_h * h
  w, v, u, b = (
    np.split(array, 3, axis=-1)
    for array in (p.kernel, p.observed_kernel, p.recurrent, p.bias)
  )
  r = sigmoid(value @ w[0] + h @ u[0] + m @ v[0] + b[0])
  z = sigmoid(-(value @ w[1] + h @ u[1] + m @ v[1] + b[1]))
  n = np.tanh(value @ w[2] + (r * h) @ u[2] + m @ v[2] + b[2])
  h = (1 - z) * h + z * n
  return (h, m * x.value + (1 - m) * last), h


FORMULAS = {
  "indrnn": indrnn,
  "lstm_peephole": lstm_peephole,
  "lstm_coupled": lstm_coupled,
  "lstm_projected": lstm_projected,
  "lstm_layer_norm": lstm_layer_norm,
  "slstm": slstm,
  "gru_layer_norm": gru_layer_norm,
  "gru_complement": one_gate(lambda z: 1 - z),
  "mgu": one_gate(lambda f: f),
  "mogrifier": mogrifier,
  "rhn": rhn,
  "lru": lru,
  "s5": s5,
  "rg_lru": rg_lru,
  "min_gru": min_gru,
  "min_lstm": min_lstm,
  "qrnn": qrnn,
  "sru": sru,
  "mlstm": mlstm,
  "conv_lstm": conv_lstm,
  "gru_d": gru_d,
}


def test_every_cell_has_a_formula():
  assert set(FORMULAS) | OWN_FILES == set(CELLS)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.usefixtures("x64")
@law
@given(data=st.data())
def test_the_cell_is_the_formula(name, data):
  cell = CELLS[name](4)
  case = data.draw(cases(cell, ((3, 7, 2),)))
  want = reference.unroll(
    lambda carry, x: FORMULAS[name](case.params, carry, x),
    tuple(case.carry),
    tuple(map(np.asarray, cell.initial_carry(case.params, (3,)))),
    case.inputs,
    case.mask,
    case.resets,
    False,
    shape=output_shape(cell),
  )
  outputs, carry = forward(cell)(case)
  assert_close((outputs, tuple(carry)), want, 1e-12)


@pytest.mark.usefixtures("x64")
@law
@given(data=st.data())
def test_an_slstm_begins_with_a_sum_of_nothing(data):
  # However small, the first input gate is then all of the sum: c / n = tanh(g).
  cell = CELLS["slstm"](4)
  case = data.draw(cases(cell, ((3, 1, 2),)))
  p = case.params._replace(bias=case.params.bias - np.repeat([200, 0], [4, 12]))
  case = case._replace(params=p, carry=None, mask=None, resets=None)
  _, _, g, o = np.split(case.inputs[:, 0] @ p.kernel + p.bias, 4, axis=-1)
  outputs, _ = forward(cell)(case)
  assert_close(outputs[:, 0], sigmoid(o) * np.tanh(g), 1e-12)
