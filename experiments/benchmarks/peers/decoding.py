"""Decoding of a language model of this library; the option is how.

All draw from the whole softmax and hand every token to the host; on the device
that is once a block, elsewhere once a token. What is compared are the
likeliest tokens instead, and their log-probabilities. An option that is a dtype
is `generate.Stream` with its matrices in that.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import generate
from experiments.benchmarks import networks as entries
from experiments.benchmarks import problems
from recurrent import decoding
from recurrent.models import LanguageModel

COMPARED = 64  # tokens


def make(problem, drawn, dtype, option):
  """`generate.Stream`, or a compiled call or step a token."""
  graphdef, params = _model(problem, drawn, dtype)
  prompt = drawn.inputs
  key = jax.random.key(0)

  def run(temperature):
    sampler = decoding.Sampler(temperature=temperature)
    if option in decoding.DTYPES:
      stream = generate.Stream(graphdef, params, sampler, weights=option)

      def draw(tokens):
        blocks = list(stream(prompt, key, tokens))
        parts = [b.tokens for b in blocks], [b.scores for b in blocks]
        return [np.concatenate(part, axis=1) for part in parts]

      return draw
    one = _inside if option == "call" else _outside
    return one(graphdef, params, sampler, prompt, key)

  sampled, likeliest = run(1.0), run(0.0)

  def values():
    tokens, scores = likeliest(COMPARED)
    return {"tokens": np.asarray(tokens, np.int32), "scores": scores}

  return entries.Entry({"tokens": lambda: sampled(problem.time)}, values)


def _model(problem, drawn, dtype):
  model = LanguageModel(
    problems.VOCABULARY,
    cell=problem.kind,
    layers=problem.layers,
    features=problem.features,
    embedding_features=problem.in_features,
    dtype=dtype,
    rngs=nnx.Rngs(0),
  )
  model.embedding[...] = jnp.asarray(drawn.more["embedding"])
  model.output[...] = jnp.asarray(drawn.more["kernel"])
  model.output_bias[...] = jnp.asarray(drawn.more["bias"])
  for layer, (params,) in zip(model.stack.layers, drawn.layers, strict=True):
    layer.params = nnx.data(
      jax.tree.map(lambda x: nnx.Param(jnp.asarray(x)), params)
    )
  graphdef, variables = nnx.split(model)
  return graphdef, nnx.as_pure(variables)


def _step(graphdef):
  """The model over some tokens, and the logits after the last."""

  def step(params, carry, tokens):
    carry, logits = nnx.merge(graphdef, params)(carry, tokens)
    return carry, logits[:, -1]

  return step


def _inside(graphdef, params, sampler, prompt, key):
  """A compiled call a token, with the choice of the token in it."""
  step = _step(graphdef)
  prefill = jax.jit(step)

  @jax.jit
  def call(params, carry, logits, key, number):
    noise = sampler.noise(jax.random.fold_in(key, number), logits.shape)
    token, score = sampler(noise, logits)
    return *step(params, carry, token[:, None]), token, score

  def draw(tokens):
    carry, logits = prefill(params, None, prompt)
    text = []
    for number in range(tokens):
      carry, logits, *drawn = call(params, carry, logits, key, number)
      text.append(jax.device_get(drawn))
    return [np.stack(part, axis=1) for part in zip(*text, strict=True)]

  return draw


def _outside(graphdef, params, sampler, prompt, key):
  """A compiled step a token, and a choice of the token outside it."""
  step = jax.jit(_step(graphdef))

  def draw(tokens):
    carry, logits = step(params, None, prompt)
    text = []
    for number in range(tokens):
      scores = None
      if sampler.temperature:
        now = jax.random.fold_in(key, number)
        token = jax.random.categorical(now, logits)
      else:
        token, scores = sampler(None, logits)
      text.append(jax.device_get((token, scores)))
      carry, logits = step(params, carry, token[:, None])
    return [
      None if part[0] is None else np.stack(part, axis=1)
      for part in zip(*text, strict=True)
    ]

  return draw
