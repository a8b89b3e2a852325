"""One contestant with one problem: the calls that are timed.

The same work on every side. Forward: the outputs of all ticks. Forward and
backward: the gradients of mean(outputs * weights) by all parameters and by the
inputs. Train step: that, and Adam (rate 1e-3, epsilon 1e-8) by the library's
own optimiser. Every call waits for its results.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks import problems
from experiments.benchmarks.problems import Drawn

RATE, EPSILON = 1e-3, 1e-8


class Entry(NamedTuple):
  """What a worker runs.

  Attributes:
    works: the calls, by name.
    values: what the calls compute, by name, to be equal on every side.
    about: what else is worth knowing.
  """

  works: dict[str, Callable[[], Any]]
  values: Callable[[], dict[str, Any]]
  about: dict[str, Any] = {}


class Network(NamedTuple):
  """A network of a JAX library.

  Attributes:
    variables: all that is learned.
    apply: from (variables, inputs) to the outputs of all ticks.
    to_params: from gradients by the variables to [layer][direction] of cell
      parameters.
    optimizer: (state, update), update(gradients, state, variables) ->
      (variables, state); None: optax's Adam.
    about: see `Entry`.
  """

  variables: Any
  apply: Callable[[Any, Any], Any]
  to_params: Callable[[Any], list[list[Any]]]
  optimizer: tuple[Any, Callable[..., Any]] | None = None
  about: dict[str, Any] = {}


def from_jax(network: Network, drawn: Drawn, dtype: str) -> Entry:
  """The entry of a JAX library: whole functions, compiled.

  Args:
    network: in float32; it computes in `dtype` for inputs of it.
    drawn: the arrays.
    dtype: what to compute in.
  """
  # A copy, since the training step gives its variables away.
  variables = jax.tree.map(jnp.array, network.variables)
  inputs = jnp.asarray(drawn.inputs, dtype)
  weights = jnp.asarray(drawn.weights)

  def loss(variables, inputs):
    outputs = network.apply(variables, inputs).astype(jnp.float32)
    return jnp.mean(outputs * weights)

  if network.optimizer is None:
    adam = optax.adam(RATE, eps=EPSILON)
    opt_state = adam.init(variables)

    def update(gradients, opt_state, variables):
      updates, opt_state = adam.update(gradients, opt_state, variables)
      return optax.apply_updates(variables, updates), opt_state
  else:
    opt_state, update = network.optimizer
    opt_state = jax.tree.map(jnp.array, opt_state)

  def step(state, inputs):
    variables, opt_state = state
    gradients, d_inputs = jax.grad(loss, (0, 1))(variables, inputs)
    return update(gradients, opt_state, variables), d_inputs

  forward = jax.jit(network.apply)
  backward = jax.jit(jax.grad(loss, (0, 1)))
  step = jax.jit(step, donate_argnums=0)
  learned = [(jax.tree.map(jnp.array, variables), opt_state)]

  def train():
    learned[0], d_inputs = step(learned[0], inputs)
    jax.block_until_ready((learned[0], d_inputs))

  def values():
    gradients, d_inputs = backward(variables, inputs)
    outputs = forward(variables, inputs)
    return named_values(outputs, d_inputs, network.to_params(gradients))

  works = {
    problems.FORWARD: lambda: jax.block_until_ready(forward(variables, inputs)),
    problems.BACKWARD: lambda: jax.block_until_ready(
      backward(variables, inputs)
    ),
    problems.STEP: train,
  }
  return Entry(works, values, network.about)


def named_values(
  outputs: Any, d_inputs: Any, d_params: list[list[Any]]
) -> dict[str, Any]:
  """What all contestants are to agree on.

  Args:
    outputs: of all ticks.
    d_inputs: gradient by the inputs.
    d_params: gradients by the parameters, [layer][direction].
  """
  found = {"outputs": outputs, "gradient of inputs": d_inputs}
  for layer, pair in enumerate(d_params):
    for direction, params in enumerate(pair):
      for leaf in ("kernel", "recurrent", "bias"):
        name = f"gradient of {leaf}, layer {layer}, direction {direction}"
        found[name] = getattr(params, leaf)
  return {name: np.asarray(x, np.float32) for name, x in found.items()}
