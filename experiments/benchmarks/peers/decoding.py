"""Decodes from a language model of this library, in several ways.

All ways sample from the whole softmax and copy every token to the host. If the
option is a dtype, `decoding.Stream` decodes blocks of tokens on the device with
weight matrices of that dtype. With "call" and "step" there is one compiled call
per token, with the choice of the token inside or outside of it. The values that
are compared are the most likely tokens and their log-probabilities.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.benchmarks import networks, problems
from experiments.benchmarks.peers import ours
from recurrent import cells, decoding, nn
from recurrent.models import LanguageModel


def make(problem, drawn, dtype, option):
  """Decodes by `decoding.Stream`, or by one compiled call per token."""
  graphdef, params = _model(problem, drawn, dtype)
  key = jax.random.key(0)

  def run(temperature):
    sampler = decoding.Sampler(temperature=temperature)
    if option in decoding.DTYPES:
      stream = decoding.Stream(graphdef, params, sampler, weights=option)
      return lambda tokens: [
        (block.tokens, block.scores)
        for block in stream(drawn.inputs, key, tokens)
      ]
    return _loop(graphdef, params, sampler, drawn.inputs, key, option == "call")

  sampled, likeliest = run(1.0), run(0.0)

  def values():
    parts = zip(*likeliest(problems.COMPARED), strict=True)
    tokens, scores = map(np.column_stack, parts)
    return {"tokens": np.asarray(tokens, np.int32), "scores": scores}

  return networks.Calls({"tokens": lambda: sampled(problem.time)}, values)


def _model(problem, drawn, dtype):
  rngs = nnx.Rngs(0)
  widths = [problem.in_features, *[problem.features] * problem.layers]
  layers = [
    nn.Recurrent(cells.get(problem.kind)(after), before, rngs=rngs)
    for before, after in itertools.pairwise(widths)
  ]
  stack = nn.Stack(layers)
  model = LanguageModel(problems.VOCABULARY, stack, dtype=dtype, rngs=rngs)
  model.embedding[...] = jnp.asarray(drawn.more["embedding"])
  model.output[...] = jnp.asarray(drawn.more["kernel"])
  model.output_bias[...] = jnp.asarray(drawn.more["bias"])
  for layer, (params,) in zip(model.stack.layers, drawn.layers, strict=True):
    ours.fill(layer, params)
  graphdef, variables = nnx.split(model)
  return graphdef, nnx.as_pure(variables)


def _loop(graphdef, params, sampler, prompt, key, inside):
  """Decodes by one call per token, which chooses the token if `inside`."""

  def step(params, carry, tokens):
    carry, logits = nnx.merge(graphdef, params)(carry, tokens)
    return carry, logits[:, -1]

  @jax.jit
  def call(params, carry, logits, key, number):
    noise = sampler.noise(jax.random.fold_in(key, number), logits.shape)
    token, score = sampler(noise, logits)
    return *step(params, carry, token[:, None]), token, score

  compiled_step = jax.jit(step)

  def choose_inside(carry, logits, number):
    carry, logits, *drawn = call(params, carry, logits, key, number)
    return carry, logits, jax.device_get(drawn)

  def choose_outside(carry, logits, number):
    if sampler.temperature:
      now = jax.random.fold_in(key, number)
      token, score = jax.random.categorical(now, logits), None
    else:
      token, score = sampler(None, logits)
    drawn = jax.device_get((token, score))
    return *compiled_step(params, carry, token[:, None]), drawn

  one = choose_inside if inside else choose_outside

  def draw(tokens):
    carry, logits = compiled_step(params, None, prompt)
    text = []
    for number in range(tokens):
      carry, logits, drawn = one(carry, logits, number)
      text.append(drawn)
    return text

  return draw
