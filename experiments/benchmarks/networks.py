"""Makes the calls that are timed from the network of a library.

The work is the same for every library. Forward: the outputs of all time steps.
Forward and backward: the gradients of mean(outputs * weights) with respect to
all parameters and the inputs (of the sum in float16, whose numbers end at
6e-8). Train step: the same, and an update by the library's Adam (learning rate
1e-3, epsilon 1e-8). Every call waits for its results.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.benchmarks.problems import BACKWARD, FORWARD, STEP, Drawn

RATE, EPSILON = 1e-3, 1e-8


class Calls(NamedTuple):
  """The calls that a worker process runs.

  Attributes:
    works: the calls to time, by the name of the work.
    values: returns the computed arrays by name, which must agree between
      implementations.
    about: further facts to report, by name.
  """

  works: dict[str, Callable[[], Any]]
  values: Callable[[], dict[str, Any]]
  about: dict[str, Any] = {}


class Network(NamedTuple):
  """A network of a JAX library.

  Attributes:
    variables: pytree of the trained arrays.
    apply: `apply(variables, inputs)` returns the outputs of all time steps.
    name_gradients: converts gradients with respect to `variables` to arrays by
      name.
    optimizer: a pair (state, update), where `update(gradients, state,
      variables) -> (variables, state)`; None: optax's Adam.
    about: see `Calls`.
  """

  variables: Any
  apply: Callable[[Any, Any], Any]
  name_gradients: Callable[[Any], dict[str, Any]]
  optimizer: tuple[Any, Callable[..., Any]] | None = None
  about: dict[str, Any] = {}


def from_jax(network: Network, drawn: Drawn, dtype: str) -> Calls:
  """Makes the calls of a JAX library, each one compiled function.

  Args:
    network: network with float32 variables, which computes in the dtype of its
      inputs.
    drawn: the arrays of the problem.
    dtype: dtype of the computation.
  """
  # Copies, since the training step donates its variables.
  copy = lambda tree: jax.tree.map(jnp.array, tree)
  variables = copy(network.variables)
  inputs = jnp.asarray(drawn.inputs, dtype)
  weights = jnp.asarray(drawn.weights)

  def loss(variables, inputs):
    outputs = network.apply(variables, inputs).astype(jnp.float32)
    return jnp.mean(outputs * weights) * loss_scale(drawn, dtype)

  gradient = jax.grad(loss, (0, 1))
  opt_state, update = network.optimizer or _adam(variables)

  def step(state, inputs):
    variables, opt_state = state
    gradients, d_inputs = gradient(variables, inputs)
    return update(gradients, opt_state, variables), d_inputs

  forward, backward = jax.jit(network.apply), jax.jit(gradient)
  step = jax.jit(step, donate_argnums=0)
  learned = [(copy(variables), copy(opt_state))]

  def train():
    learned[0], d_inputs = step(learned[0], inputs)
    jax.block_until_ready((learned[0], d_inputs))

  def values():
    gradients, d_inputs = backward(variables, inputs)
    named = network.name_gradients(gradients)
    return as_values(forward(variables, inputs), d_inputs, named)

  works = {
    FORWARD: lambda: jax.block_until_ready(forward(variables, inputs)),
    BACKWARD: lambda: jax.block_until_ready(backward(variables, inputs)),
    STEP: train,
  }
  return Calls(works, values, network.about)


def loss_scale(drawn: Drawn, dtype: str) -> int:
  """A factor of the mean loss, so that no gradient underflows in float16."""
  return drawn.weights.size if dtype == "float16" else 1


def from_cells(
  drawn: Drawn,
  dtype: str,
  run: Callable[[Any, Any, bool], Any],
  fill: Callable[[Any], Any] = lambda params: params,
  back: Callable[[Any], Any] = lambda gradients: gradients,
) -> Calls:
  """Makes the calls of a JAX library that has cells but no stacks of layers.

  Args:
    drawn: the arrays of the problem.
    dtype: dtype of the computation; variables are float32.
    run: `run(variables, inputs, reverse)` returns the outputs of one direction
      of a layer.
    fill: converts parameters of a cell to the library's variables.
    back: converts gradients with respect to these variables to the form of
      parameters of a cell.
  """

  def apply(variables, inputs):
    for pair in jax.tree.map(lambda x: x.astype(dtype), variables):
      halves = [run(cell, inputs, bool(k)) for k, cell in enumerate(pair)]
      inputs = jnp.concatenate(halves, axis=-1)
    return inputs

  network = Network(
    [[fill(params) for params in pair] for pair in drawn.layers],
    apply,
    lambda found: name_layers([[back(x) for x in pair] for pair in found]),
  )
  return from_jax(network, drawn, dtype)


def from_modules(
  drawn: Drawn,
  dtype: str,
  layers: Sequence[nnx.Module],
  run: Callable[[Any, Any], Any],
  params_of: Callable[[Any], list[Any]],
  about: dict[str, Any] | None = None,
) -> Calls:
  """Makes the calls of a stack of Flax NNX modules.

  Args:
    drawn: the arrays of the problem.
    dtype: dtype of the computation; parameters are float32.
    layers: the modules, from the first layer to the last.
    run: `run(layer, inputs)` returns the outputs of a layer.
    params_of: returns the parameters of a layer's cells, one per direction.
    about: see `Calls`.
  """
  graphdef, *parts = nnx.split(nnx.List(layers), nnx.Param, ...)
  variables, rest = map(nnx.as_pure, parts)

  def apply(variables, inputs):
    for layer in nnx.merge(graphdef, variables, rest):
      inputs = run(layer, inputs)
    return inputs

  def name_gradients(gradients):
    modules = nnx.merge(graphdef, gradients, rest)
    return name_layers([params_of(layer) for layer in modules])

  network = Network(variables, apply, name_gradients, about=about or {})
  return from_jax(network, drawn, dtype)


def name_layers(gradients: list[list[Any]]) -> dict[str, Any]:
  """Names the gradients of the cells' parameters, [layer][direction]."""
  return {
    f"{leaf}, layer {layer}, direction {direction}": getattr(params, leaf)
    for layer, pair in enumerate(gradients)
    for direction, params in enumerate(pair)
    for leaf in ("kernel", "recurrent", "bias")
  }


def as_values(
  outputs: Any, d_inputs: Any, gradients: dict[str, Any]
) -> dict[str, Any]:
  """Names the values to compare, as float32: outputs and all gradients."""
  found = {"outputs": outputs}
  for name, array in {"inputs": d_inputs, **gradients}.items():
    found[f"gradient of {name}"] = array
  return {name: np.asarray(x, np.float32) for name, x in found.items()}


def _adam(variables):
  """The initial state and the update function of optax's Adam."""
  adam = optax.adam(RATE, eps=EPSILON)

  def update(gradients, opt_state, variables):
    updates, opt_state = adam.update(gradients, opt_state, variables)
    return optax.apply_updates(variables, updates), opt_state

  return adam.init(variables), update
