"""The suite seq2seq: beam search on the device, and training against torch.

The search is compared with a loop in Python that calls one compiled step for
each token, and chooses the beams in NumPy. Training is compared with an
encoder-decoder of `torch.nn.LSTM` of the same shapes, in a process of its own.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.benchmarks import processes, report, timing
from recurrent import cells, decoding, losses, models, nn

BATCHES = 1, 32  # sources that are searched at once
BEAMS = 5


class Shape(NamedTuple):
  """The shapes of a translator and of its batches."""

  batch: int
  source: int
  target: int
  vocab: int
  embedding: int
  features: int

  def draw(self) -> dict[str, np.ndarray]:
    """Draws a batch of `source`, `inputs` and `targets`, int32."""
    rng = np.random.default_rng(0)
    draw = lambda time: rng.integers(
      0, self.vocab, (self.batch, time), dtype=np.int32
    )
    return {
      "source": draw(self.source),
      "inputs": draw(self.target),
      "targets": draw(self.target),
    }


def make_model(shape: Shape) -> models.EncoderDecoder:
  """Makes a bidirectional LSTM encoder, and a decoder with attention."""
  rngs = nnx.Rngs(0)
  cell = cells.LSTM(shape.features)
  encoder = nn.Stack([nn.Bidirectional(cell, shape.embedding, rngs=rngs)])
  decoder = nn.Stack([nn.Recurrent(cell, shape.embedding, rngs=rngs)])
  attention = nn.MultiplicativeAttention(
    shape.features, encoder.features, rngs=rngs
  )
  return models.EncoderDecoder(
    shape.vocab,
    shape.vocab,
    encoder,
    decoder,
    attention=attention,
    rngs=rngs,
  )


def measure(config: Any, machine: Any) -> dict[str, Any]:
  """Measures sentences/s of the search, and target tokens/s of training."""
  del machine
  small = config.smoke
  shape = Shape(
    batch=4 if small else 32,
    source=8 if small else 40,
    target=6 if small else 30,
    vocab=30 if small else 4000,
    embedding=8 if small else 128,
    features=8 if small else config.features,
  )
  found: dict[str, Any] = {"shape": shape._asdict()}
  for batch in BATCHES:
    here = shape._replace(batch=batch)
    found[f"search_batch_{batch}"] = _searches(here, config.repeats)
  found["training"] = _training(shape, config.steps, config.repeats)
  for name, rows in found.items():
    print(report.table((name, "value"), rows.items()))
  return found


def _searches(shape: Shape, repeats: int) -> dict[str, float]:
  model = make_model(shape)
  source = jnp.asarray(shape.draw()["source"])
  options: Any = {
    "beams": BEAMS,
    "num_tokens": shape.target,
    "stop_token": shape.vocab - 1,
  }
  # Both searches begin with the same logits, those after the first token.
  graphdef, params = nnx.split(model)

  @jax.jit
  def begin(params, source):
    model = nnx.merge(graphdef, params)
    carry = model.begin(model.encode(source))
    return model.decoder()(carry, jnp.zeros(len(source), jnp.int32))

  @jax.jit
  def search(params, source):
    step = nnx.merge(graphdef, params).decoder()
    return decoding.beam_search(step, *begin(params, source), **options)

  @jax.jit
  def advance(params, carry, rows, tokens):
    carry = jax.tree.map(lambda x: x[rows], carry)
    return nnx.merge(graphdef, params).decoder()(carry, tokens)

  on_device = lambda: np.asarray(search(params, source).scores)
  on_host = lambda: search_on_host(
    functools.partial(advance, params), *begin(params, source), **options
  )
  np.testing.assert_allclose(on_device()[:, 0], on_host(), rtol=1e-3)
  works = {"on_device": on_device, "a_step_a_token": on_host}
  times = timing.in_turn(
    {k: functools.partial(timing.timed, v) for k, v in works.items()}, repeats
  )
  first, other = times.values()
  return {
    **{f"{k}_per_second": shape.batch / np.median(v) for k, v in times.items()},
    "on_device_over_a_step_a_token": timing.ratio(other, first),
  }


def search_on_host(
  advance: Callable[..., tuple[Any, jax.Array]],
  carry: Any,
  logits: jax.Array,
  *,
  beams: int,
  num_tokens: int,
  stop_token: int,
) -> np.ndarray:
  """Beam search whose choices are made in NumPy.

  Args:
    advance: `(carry, rows, tokens) -> (carry, logits)`, which first takes these
      rows of the carry.
    carry: the carry before the first token, [batch, ...].
    logits: the logits of the first token, [batch, V].
    beams: number of beams.
    num_tokens: largest number of tokens.
    stop_token: id that ends a sequence.

  Returns:
    The log-probability of the best sequence of each row, [batch].
  """
  batch, vocab = logits.shape
  first = np.arange(batch)[:, None] * beams
  rows = np.repeat(np.arange(batch), beams)
  live = np.full((batch, beams), decoding.NEVER)
  live[:, 0] = 0
  ended = np.full((batch, beams), decoding.NEVER)
  tokens = np.zeros((batch, beams, 0), np.int32)
  nats = np.asarray(jax.nn.log_softmax(logits))[rows]
  for _ in range(num_tokens):
    total = live[..., None] + nats.reshape(batch, beams, vocab)
    both = np.concatenate([ended, total[..., stop_token]], axis=1)
    ended = -np.sort(-both, axis=1)[:, :beams]
    total[..., stop_token] = decoding.NEVER
    flat = total.reshape(batch, -1)
    place = np.argpartition(-flat, beams, axis=1)[:, :beams]
    live = np.take_along_axis(flat, place, axis=1)
    parent, token = np.divmod(place, vocab)
    tokens = np.take_along_axis(tokens, parent[..., None], axis=1)
    tokens = np.append(tokens, token[..., None].astype(np.int32), axis=2)
    if (live.max(axis=1) <= ended[:, -1]).all():
      return ended[:, 0]
    carry, logits = advance(carry, rows, token.astype(np.int32).ravel())
    nats = np.asarray(jax.nn.log_softmax(logits))
    rows = (first + parent).ravel()
  return np.maximum(ended[:, 0], live.max(axis=1))


def _training(shape: Shape, steps: int, repeats: int) -> dict[str, float]:
  graphdef, params = nnx.split(make_model(shape))
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
  batch = jax.tree.map(jnp.asarray, shape.draw())

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, batch):
    def loss(params):
      model = nnx.merge(graphdef, params)
      logits, _ = model(batch["source"], None, batch["inputs"])
      return losses.cross_entropy(logits, batch["targets"]).mean()

    params, moments = state
    updates, moments = optimizer.update(jax.grad(loss)(params), moments, params)
    return optax.apply_updates(params, updates), moments

  state = [(params, optimizer.init(params))]

  def train():
    for _ in range(steps):
      state[0] = step(state[0], batch)
    jax.block_until_ready(state[0])

  works: dict[str, Callable[[], float]] = {
    "ours": functools.partial(timing.timed, train)
  }
  count = sum(x.size for x in jax.tree.leaves(params))
  found = {"ours_params": count}
  torch = None
  if importlib.util.find_spec("torch"):
    from experiments.benchmarks.peers import torch_seq2seq

    torch = processes.Worker({}, torch_seq2seq.prepare, shape)
    works["torch"] = lambda: torch.ask(torch_seq2seq.train, steps)
    found["torch_params"] = torch.ask(torch_seq2seq.count)
  times = timing.in_turn(works, repeats)
  if torch is not None:
    torch.close()
    found["ours_over_torch"] = timing.ratio(times["torch"], times["ours"])
  tokens = steps * shape.batch * shape.target
  for name, taken in times.items():
    found[f"{name}_tokens_per_second"] = tokens / np.median(taken)
  return found
