"""Dynamic evaluation: scores a stream and trains on each window after it.

Each window is scored before the gradient step on it, so every token is
predicted from the tokens before it only.

Reference:
  Krause, Kahembwe, Murray & Renals, "Dynamic evaluation of neural sequence
  models", 2018. They divide a gradient by its root mean square over the
  training data. Here it is divided by the geometric mean of that and of its
  average over all parameters, which scored better: see docs/results.md.
"""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import nnx

from recurrent.metrics import Mean
from recurrent.training.step import Loss
from recurrent.types import Carry, PyTree

# Added to the root mean square, as a fraction of its average over all
# parameters: it limits the steps of rarely used parameters.
_EPSILON = 0.1


def evaluate(
  graphdef: nnx.GraphDef,
  loss: Loss,
  params: PyTree,
  carry: Carry,
  statistics: Iterable[PyTree],
  windows: Iterable[PyTree],
  learning_rate: float,
  decay: float,
) -> dict[str, Mean]:
  """Scores windows by dynamic evaluation: `score` after `gradient_rms`.

  Args:
    graphdef: graph definition of the model.
    loss: `loss(model, carry, batch, key) -> (loss, (carry, metrics))`.
    params: parameters of the model.
    carry: the initial carry of both streams.
    statistics: windows of training data, for the statistics of the gradient.
    windows: the windows to score.
    learning_rate: see `score`.
    decay: see `score`.

  Returns:
    The metrics of the loss, merged over all windows.
  """
  stack = lambda stream: jax.tree.map(lambda *x: jnp.stack(x), *stream)
  rms = gradient_rms(graphdef, loss, params, carry, stack(statistics))
  return score(
    graphdef, loss, params, carry, stack(windows), rms, learning_rate, decay
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def gradient_rms(
  graphdef: nnx.GraphDef,
  loss: Loss,
  params: PyTree,
  carry: Carry,
  windows: PyTree,
) -> PyTree:
  """Root mean square of the gradient of each parameter over a stream.

  Args:
    graphdef: graph definition of the model.
    loss: `loss(model, carry, batch, key) -> (loss, (carry, metrics))`.
    params: parameters of the model.
    carry: the initial carry.
    windows: batches stacked along a new first axis.

  Returns:
    A tree like `params`.
  """

  def time_step(state, window):
    carry, squares = state
    grads, carry, _ = _gradient(graphdef, loss, params, carry, window)
    return (carry, jax.tree.map(lambda s, g: s + g * g, squares, grads)), None

  zeros = jax.tree.map(jnp.zeros_like, params)
  (_, squares), _ = jax.lax.scan(time_step, (carry, zeros), windows)
  count = len(jax.tree.leaves(windows)[0])
  return jax.tree.map(lambda s: jnp.sqrt(s / count), squares)


@functools.partial(jax.jit, static_argnums=(0, 1))
def score(
  graphdef: nnx.GraphDef,
  loss: Loss,
  params: PyTree,
  carry: Carry,
  windows: PyTree,
  rms: PyTree,
  learning_rate: float,
  decay: float,
) -> dict[str, Mean]:
  """Scores a stream, with a gradient step on each window after its score.

  Args:
    graphdef: graph definition of the model.
    loss: `loss(model, carry, batch, key) -> (loss, (carry, metrics))`.
    params: initial parameters of the model. After each window the current
      parameters decay towards them.
    carry: the initial carry.
    windows: batches stacked along a new first axis.
    rms: from `gradient_rms`.
    learning_rate: multiplies the scaled gradient.
    decay: fraction of the way back to `params` after each window, for a
      parameter of average `rms`. For the others it is proportional to their
      `rms`, and at most 1/3.

  Returns:
    The metrics of the loss, merged over all windows.
  """
  leaves = jax.tree.leaves(rms)
  mean = sum(r.sum() for r in leaves) / sum(r.size for r in leaves)
  scale = jax.tree.map(
    lambda r: jax.lax.rsqrt(mean * (r + _EPSILON * mean)), rms
  )
  back = jax.tree.map(lambda r: jnp.minimum(decay * r / mean, 1 / 3), rms)

  def learn(now, grad, first, scale, back):
    return now - learning_rate * scale * grad + back * (first - now)

  def time_step(state, window):
    now, carry = state
    grads, carry, metrics = _gradient(graphdef, loss, now, carry, window)
    now = jax.tree.map(learn, now, grads, params, scale, back)
    return (now, carry), metrics

  _, metrics = jax.lax.scan(time_step, (params, carry), windows)
  return jax.tree.map(lambda x: x.sum(), metrics)


def _gradient(graphdef, loss, params, carry, window):
  """Gradient of one window, the carry after it, and its metrics."""

  def objective(params):
    return loss(nnx.merge(graphdef, params), carry, window, None)

  grads, (carry, metrics) = jax.grad(objective, has_aux=True)(params)
  return grads, jax.lax.stop_gradient(carry), metrics
