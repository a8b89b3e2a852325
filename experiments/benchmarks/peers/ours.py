"""Modules of `recurrent.nn`; the option is the method of `unroll`."""

import jax
import jax.numpy as jnp
from flax import nnx

import recurrent
from experiments.benchmarks import networks
from recurrent import cells, nn
from recurrent.executors import Setting
from recurrent.unroll import resolve_method

STRUCTURES = {"dense": cells.Dense(), "diagonal": cells.Diagonal()}


def make(problem, drawn, dtype, option):
  """Makes layers of `Recurrent` or `Bidirectional`."""
  cell = cells.get(problem.kind)(
    problem.features, structure=STRUCTURES[problem.structure]
  )
  module = nn.Bidirectional if problem.bidirectional else nn.Recurrent

  def build(pair):
    layer = module(cell, len(pair[0].kernel), method=option, rngs=nnx.Rngs(0))
    for part, params in zip(_directions(layer), pair, strict=True):
      fill(part, params)
    return layer

  setting = Setting.here(jnp.dtype(dtype))
  about = {"method": resolve_method(cell, option, setting)}
  if option == "newton":
    report = recurrent.newton(
      cell, drawn.layers[0][0], None, jnp.asarray(drawn.inputs, dtype)
    )[2]
    about["iterations of Newton's method"] = int(report.iterations)
    about["converged"] = bool(report.converged)
  return networks.from_modules(
    drawn,
    dtype,
    [build(pair) for pair in drawn.layers],
    lambda layer, inputs: layer(None, inputs)[1],
    lambda layer: [part.cell_params() for part in _directions(layer)],
    about,
  )


def fill(layer, params):
  """Sets the parameters of a `Recurrent` layer."""
  params = jax.tree.map(lambda x: nnx.Param(jnp.asarray(x)), params)
  layer.params = nnx.data(params)


def _directions(layer):
  if isinstance(layer, nn.Bidirectional):
    return [layer.forward, layer.backward]
  return [layer]
