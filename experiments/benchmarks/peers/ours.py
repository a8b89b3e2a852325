"""This library: modules of `recurrent.nn`; the option is the method."""

import jax
import jax.numpy as jnp
from flax import nnx

import recurrent
from experiments.benchmarks import networks as entries
from recurrent import cells, nn
from recurrent.unroll import resolve_method

STRUCTURES = {"dense": cells.Dense(), "diagonal": cells.Diagonal()}


def make(problem, drawn, dtype, option):
  """Layers of `Recurrent` or `Bidirectional`."""
  cell = cells.get(problem.kind)(
    problem.features, structure=STRUCTURES[problem.structure]
  )
  build = nn.Bidirectional if problem.bidirectional else nn.Recurrent
  layers = []
  for pair in drawn.layers:
    width = pair[0].kernel.shape[0]
    layer = build(cell, width, method=option, rngs=nnx.Rngs(0))
    for part, params in zip(_directions(layer), pair, strict=True):
      part.params = nnx.data(
        jax.tree.map(lambda x: nnx.Param(jnp.asarray(x)), params)
      )
    layers.append(layer)
  graphdef, state = nnx.split(nnx.List(layers))

  def apply(variables, inputs):
    for layer in nnx.merge(graphdef, variables):
      _, inputs = layer(None, inputs)
    return inputs

  def to_params(gradients):
    return [
      [part.cell_params() for part in _directions(layer)]
      for layer in nnx.merge(graphdef, gradients)
    ]

  about = {"method": resolve_method(cell, option)}
  if option == "newton":
    report = recurrent.newton(
      cell, drawn.layers[0][0], None, jnp.asarray(drawn.inputs, dtype)
    )[2]
    about["rounds of Newton's method"] = int(report.iterations)
    about["converged"] = bool(report.converged)
  network = entries.Network(nnx.as_pure(state), apply, to_params, about=about)
  return entries.from_jax(network, drawn, dtype)


def _directions(layer):
  if isinstance(layer, nn.Bidirectional):
    return [layer.forward, layer.backward]
  return [layer]
