"""A plain `jax.lax.scan` of the equations, with two products a time step."""

import jax
import jax.numpy as jnp

from experiments.benchmarks import networks


def make(problem, drawn, dtype, option):
  """Makes one scan per layer and direction."""
  del option
  step = STEPS[problem.kind]
  zeros = jnp.zeros((problem.batch, problem.features), dtype)
  start = (zeros, zeros) if problem.kind == "lstm" else zeros

  def run(params, inputs, reverse):
    _, outputs = jax.lax.scan(
      lambda carry, x: step(params, carry, x),
      start,
      jnp.swapaxes(inputs, 0, 1),
      reverse=reverse,
    )
    return jnp.swapaxes(outputs, 0, 1)

  return networks.from_cells(drawn, dtype, run)


def _lstm(params, carry, x):
  hidden, cell = carry
  gates = x @ params.kernel + hidden @ params.recurrent + params.bias
  i, f, g, o = jnp.split(gates, 4, axis=-1)
  cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
  hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
  return (hidden, cell), hidden


def _gru(params, hidden, x):
  xr, xz, xn = jnp.split(x @ params.kernel + params.bias, 3, axis=-1)
  hr, hz, hn = jnp.split(hidden @ params.recurrent, 3, axis=-1)
  r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
  n = jnp.tanh(xn + r * (hn + params.recurrent_bias))
  hidden = (1 - z) * n + z * hidden
  return hidden, hidden


def _rnn(params, hidden, x):
  total = x @ params.kernel + hidden @ params.recurrent + params.bias
  hidden = jnp.tanh(total)
  return hidden, hidden


STEPS = {"lstm": _lstm, "gru": _gru, "rnn": _rnn}
