"""The transcriber: padding, streaming, and what its layers must be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from recurrent import audio, cells, models, nn

FEATURES = audio.LogMel(rate=1000, window=50, hop=20, bands=6)
STACKING = 2


def make(kind, delay=0):
  rngs = nnx.Rngs(0)
  width = STACKING * FEATURES.bands
  layers = {
    "gru": lambda: [nn.Recurrent(cells.GRU(8), width, rngs=rngs)],
    "lstm, lru": lambda: [
      nn.Recurrent(cells.LSTM(8), width, rngs=rngs),
      nn.Recurrent(cells.LRU(8), 8, rngs=rngs),
    ],
    "transformer": lambda: [
      nn.TransformerBlock(width, heads=2, context=4, rngs=rngs)
    ],
    "bidirectional": lambda: [nn.Bidirectional(cells.GRU(8), width, rngs=rngs)],
  }[kind]()
  model = models.Transcriber(
    FEATURES, nn.Stack(layers), 5, stacking=STACKING, delay=delay, rngs=rngs
  )
  model.mean[...] = jnp.full(FEATURES.bands, -2.0)
  model.scale[...] = jnp.full(FEATURES.bands, 0.5)
  return model


def sounds(batch, length):
  random = np.random.default_rng(0)
  return random.normal(size=(batch, length)).astype(np.float32)


@pytest.mark.parametrize("kind", ["gru", "lstm, lru", "transformer"])
@pytest.mark.parametrize(("chunk", "delay"), [(1, 0), (3, 0), (1, 2), (4, 3)])
def test_chunks_give_what_the_whole_sound_gives(kind, chunk, delay):
  model = make(kind, delay)
  size = chunk * model.period
  samples = sounds(2, 12 * model.period)
  want = jax.nn.log_softmax(model(samples)[0], axis=-1)
  carry, found = model.initial_carry(2), []
  stream = nnx.jit(lambda model, carry, part: model.stream(carry, part))
  silence = np.zeros((2, -(-delay // chunk) * size), np.float32)
  samples = np.concatenate([samples, silence], axis=1)
  for start in range(0, samples.shape[1], size):
    carry, part = stream(model, carry, samples[:, start : start + size])
    assert part.shape == (2, chunk, 5)
    found.append(part)
  found = np.concatenate(found, axis=1)
  np.testing.assert_allclose(
    found[:, delay : delay + 12], want, rtol=0, atol=2e-6
  )
  # Before the first time step nothing is said.
  assert (found[:, :delay, 0] == 0).all()
  assert np.isneginf(found[:, :delay, 1:]).all()
  assert model.latency == pytest.approx((1 + delay) * 0.04)


@pytest.mark.parametrize(("kind", "delay"), [("bidirectional", 0), ("gru", 2)])
def test_padding_does_not_change_the_real_time_steps(kind, delay):
  model = make(kind, delay)
  samples = sounds(2, 95)
  mask = np.arange(95)[None] < np.array([[95], [61]])
  logits, real = model(samples * mask, mask=mask)
  assert real.sum(axis=1).tolist() == [3, 2]
  alone, _ = model(samples[1:, :61])
  np.testing.assert_allclose(logits[1, :2], alone[0], atol=1e-5)


@pytest.mark.parametrize("delay", [0, 1])
def test_a_time_step_depends_on_no_sample_after_its_delay(delay):
  model = make("gru", delay)
  samples = sounds(1, 6 * model.period)
  changed = samples.copy()
  changed[:, 3 * model.period :] += 1
  before, after = model(samples)[0], model(changed)[0]
  same = 3 - delay
  np.testing.assert_array_equal(before[:, :same], after[:, :same])
  assert (np.abs(before[:, same] - after[:, same]) > 1e-4).any()


def test_what_cannot_stream_says_so():
  model = make("bidirectional")
  with pytest.raises(ValueError, match="causal layers, got a Bidirectional"):
    model.stream(model.initial_carry(1), sounds(1, model.period))
  model = make("gru")
  for length in (0, 1, model.period + 1):
    with pytest.raises(ValueError, match="multiple of 40 samples"):
      model.stream(model.initial_carry(1), sounds(1, length))
  with pytest.raises(ValueError, match="stacking=3 times 6 bands, got 12"):
    models.Transcriber(FEATURES, model.stack, 5, stacking=3, rngs=nnx.Rngs(0))
