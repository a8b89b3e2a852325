"""Scores by the decoding step, against the model over whole windows."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from recurrent import data, decoding, losses
from tests.models.build import language_model

TOKENS = np.random.default_rng(0).integers(0, 7, 50)


def test_tokens_have_the_scores_of_the_model_over_the_whole_text():
  model = language_model(7, features=5, rngs=nnx.Rngs(0))
  _, logits = model(None, jnp.asarray(TOKENS[None, :-1]))
  want = losses.cross_entropy(logits, jnp.asarray(TOKENS[None, 1:]))[0]
  step, carry = decoding.pack_model(*nnx.split(model), 1)
  windows = data.EvalStreams(TOKENS, rows=1, seq_len=8)
  found = np.concatenate(
    [*decoding.score_tokens(step, carry, windows)], axis=1
  )[0, : len(want)]
  np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def test_the_score_of_segments_is_that_of_the_model():
  model = language_model(7, features=5, rngs=nnx.Rngs(0))
  windows = data.EvalStreams(TOKENS, rows=3, seq_len=8, warm_up=4)
  carry, total, weight = None, 0.0, 0.0
  for window in windows:
    window = jax.tree.map(jnp.asarray, window)
    carry, logits = model(carry, window["inputs"], mask=window["mask"])
    nats = losses.cross_entropy(logits, window["targets"])
    total += float((nats * window["weights"]).sum())
    weight += float(window["weights"].sum())
  step, carry = decoding.pack_model(*nnx.split(model), 3)
  found = decoding.score(step, carry, windows)
  assert float(found.weight) == weight == len(TOKENS) - 1
  np.testing.assert_allclose(found.compute(), total / weight, rtol=1e-5)
