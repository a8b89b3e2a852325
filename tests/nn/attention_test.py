import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params
from jax.test_util import check_grads

from recurrent.nn import (
  AdditiveAttention,
  LocalAttention,
  MultiHeadAttention,
  MultiplicativeAttention,
  Past,
  SelfAttention,
)
from recurrent.nn.attention import masked_softmax, rotate
from tests.cells.cases import jit
from tests.precision import assert_rounds_as_bfloat16_does, narrow_sums

B, T, S, Q, E, HEADS = 3, 4, 5, 6, 6, 2
MASK = np.array([[1, 1, 0, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
ATTENTIONS = {
  "additive": lambda rngs: AdditiveAttention(Q, E, 7, rngs=rngs),
  "general": lambda rngs: MultiplicativeAttention(Q, E, rngs=rngs),
  "dot": lambda rngs: MultiplicativeAttention(Q, E, score="dot", rngs=rngs),
  "heads": lambda rngs: MultiHeadAttention(Q, E, 8, heads=HEADS, rngs=rngs),
  "coverage": lambda rngs: AdditiveAttention(Q, E, 7, coverage=True, rngs=rngs),
  "local_m": lambda rngs: LocalAttention(Q, E, window=1, rngs=rngs),
  "local_p": lambda rngs: LocalAttention(
    Q, E, window=2, predicted=True, rngs=rngs
  ),
}
each_attention = pytest.mark.parametrize("name", ATTENTIONS)


def make(name, dtype=np.float64):
  module = cast(ATTENTIONS[name](nnx.Rngs(0)), dtype)
  if name == "coverage":  # It begins as zeros.
    module.coverage[...] = jnp.asarray(drawn(7, seed=9), dtype)
  return module


def cast(module, dtype):
  graphdef, params = nnx.split(module)
  return nnx.merge(graphdef, jax.tree.map(lambda x: x.astype(dtype), params))


def drawn(*shape, seed=0, dtype=np.float64):
  return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def drawn32(*shape, seed=0):
  return drawn(*shape, seed=seed, dtype=np.float32)


def garbage(array, mask):
  """NaN and infinities where the mask is False."""
  bad = np.resize([np.nan, np.inf, -np.inf], array.shape)
  return np.where(mask[..., None], array, bad).astype(array.dtype)


def assert_same(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


def softmax(scores):
  exps = np.exp(scores - np.max(scores))
  return exps / exps.sum()


# Attention to another sequence, from the papers' formulas.


def additive(module, query, encoded, *past):
  """Bahdanau et al.: e_j = v^T tanh(W s + U h_j)."""
  del past
  w, u = np.asarray(module.query[...]), np.asarray(module.key[...])
  v = np.asarray(module.score[...])
  scores = [v @ np.tanh(w.T @ query + u.T @ h) for h in encoded]
  weights = softmax(np.array(scores))
  return sum(a * h for a, h in zip(weights, encoded, strict=True)), weights


def coverage(module, query, encoded, t, attended):
  """See et al.: e_i = v^T tanh(W_h h_i + W_s s_t + w_c c_i + b)."""
  del t
  w, u = np.asarray(module.query[...]), np.asarray(module.key[...])
  v, w_c = np.asarray(module.score[...]), np.asarray(module.coverage[...])
  scores = [
    v @ np.tanh(w.T @ query + u.T @ h + w_c * c)
    for h, c in zip(encoded, attended, strict=True)
  ]
  weights = softmax(np.array(scores))
  return sum(a * h for a, h in zip(weights, encoded, strict=True)), weights


def dot(module, query, encoded, *past):
  """Luong et al.: h_t^T h_s."""
  del past
  weights = softmax(np.array([query @ h for h in encoded]))
  return sum(a * h for a, h in zip(weights, encoded, strict=True)), weights


def general(module, query, encoded, *past):
  """Luong et al.: h_t^T W h_s."""
  del past
  w = np.asarray(module.key[...]).T
  weights = softmax(np.array([query @ w @ h for h in encoded]))
  return sum(a * h for a, h in zip(weights, encoded, strict=True)), weights


def near(module, query, encoded, centre):
  """`general` over the positions near a centre; the others have no weight."""
  weights = np.zeros(len(encoded))
  chosen = np.abs(np.arange(len(encoded)) - centre) <= module.window
  _, weights[chosen] = general(module, query, encoded[chosen])
  return weights


def local_m(module, query, encoded, t, attended):
  """Luong et al.: p_t = t."""
  del attended
  weights = near(module, query, encoded, min(t, len(encoded) - 1))
  return weights @ encoded, weights


def local_p(module, query, encoded, *past):
  """Luong et al.: p_t = S sigmoid(v^T tanh(W h_t)), and a Gaussian around it.

  The standard deviation is half the window.
  """
  del past
  inside = np.tanh(query @ np.asarray(module.position[...]))
  [share] = 1 / (1 + np.exp(-inside @ np.asarray(module.centre[...])))
  centre, deviation = len(encoded) * share, module.window / 2
  weights = near(module, query, encoded, centre)
  away = np.arange(len(encoded)) - centre
  weights *= np.exp(-(away**2) / (2 * deviation**2))
  return weights @ encoded, weights


def many_heads(query, encoded, kernels, heads):
  """Vaswani et al.: Concat(head_1, ..) W^O, each softmax(q K^T / sqrt(d)) V."""
  wq, wk, wv, wo = kernels
  found, all_weights = [], []
  width = wq.shape[1] // heads
  for n in range(heads):
    part = slice(n * width, (n + 1) * width)
    q = query @ wq[:, part]
    scores = [q @ (h @ wk[:, part]) / math.sqrt(width) for h in encoded]
    weights = softmax(np.array(scores))
    found.append(
      sum(a * (h @ wv[:, part]) for a, h in zip(weights, encoded, strict=True))
    )
    all_weights.append(weights)
  return np.concatenate(found) @ wo, np.stack(all_weights)


def heads(module, query, encoded, *past):
  del past
  wk, wv = np.split(np.asarray(module.key_value[...]), 2, axis=1)
  wq, wo = np.asarray(module.query[...]), np.asarray(module.output[...])
  kernels = wq, wk, wv, wo
  return many_heads(query, encoded, kernels, HEADS)


PAPERS = {
  "additive": additive,
  "general": general,
  "dot": dot,
  "heads": heads,
  "coverage": coverage,
  "local_m": local_m,
  "local_p": local_p,
}


@each_attention
def test_context_and_weights_are_the_papers(x64, name):
  module = make(name)
  encoded, query = drawn(B, S, E), drawn(B, T, Q, seed=1)
  read = jit(lambda e, q: module(module.precompute(e, jnp.asarray(MASK)), q))
  context, weights = map(np.asarray, read(encoded, query))
  for row in range(B):
    real = MASK[row]
    attended = np.zeros(real.sum())
    for t in range(T):
      if not real.any():
        assert not context[row, t].any() and not weights[row, t].any()
        continue
      want = PAPERS[name](
        module, query[row, t], encoded[row][real], t, attended
      )
      attended = attended + want[1].reshape(-1, len(attended)).mean(axis=0)
      np.testing.assert_allclose(context[row, t], want[0], rtol=0, atol=1e-12)
      got = weights[row, t][..., real]
      np.testing.assert_allclose(got, want[1], rtol=0, atol=1e-12)
      assert not weights[row, t][..., ~real].any()


@each_attention
def test_a_decoder_that_queries_step_by_step_reads_the_same(x64, name):
  module = make(name)
  encoded, query = drawn(B, S, E), drawn(B, T, Q, seed=1)
  keys = module.precompute(jnp.asarray(encoded), jnp.asarray(MASK))
  together = module(keys, jnp.asarray(query))

  def step(past, now):
    context, weights = module(keys, now, past)
    one = weights.reshape(B, -1, S).mean(axis=1)  # Of several heads.
    return past.after(one), (context, weights)

  past = Past.none(keys.mask, np.float64)
  _, steps = jax.lax.scan(step, past, jnp.swapaxes(jnp.asarray(query), 0, 1))
  for got, want in zip(steps, together, strict=True):
    np.testing.assert_allclose(jnp.swapaxes(got, 0, 1), want, atol=1e-13)


@each_attention
def test_any_batch_axes_will_do(x64, name):
  module = make(name)
  args = drawn(B, S, E), MASK, drawn(B, Q, seed=1)
  lift = functools.partial(jax.tree.map, lambda x: jnp.stack([x, x]))

  @jit
  def read(encoded, mask, query):
    return module(module.precompute(encoded, mask), query)

  want = read(*args)
  close = functools.partial(np.testing.assert_allclose, atol=1e-13)
  jax.tree.map(close, read(*lift(args)), lift(want))
  alone, first = (jax.tree.map(lambda x: x[0], x) for x in (args, want))
  jax.tree.map(close, read(*alone), first)


@each_attention
def test_weights_sum_to_one_over_the_real_keys(name):
  module = make(name, np.float32)
  encoded, query = (
    drawn32(B, S, E),
    drawn32(B, Q),
  )
  keys = module.precompute(jnp.asarray(encoded), jnp.asarray(MASK))
  _, weights = module(keys, 30 * jnp.asarray(query))
  total = np.asarray(weights).sum(-1)
  if module.normalised:
    np.testing.assert_allclose(total[:2], 1, atol=1e-6)
  else:
    assert ((total[:2] > 0) & (total[:2] < 1)).all()
  assert not total[2].any()


def gradients(module, encoded, query, mask):
  """Context and weights, and the gradients of everything."""
  graphdef, params = nnx.split(module)

  def loss(params, encoded, query):
    module = nnx.merge(graphdef, params)
    found = module(module.precompute(encoded, mask), query)
    return sum(jnp.sum(jnp.cos(x)) for x in found), found

  return jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(
    params, encoded, query
  )


@each_attention
def test_garbage_behind_the_mask_changes_no_bit(name):
  module = make(name, np.float32)
  encoded = drawn32(B, S, E)
  query = drawn32(B, T, Q, seed=1)
  run = functools.partial(gradients, module, query=query, mask=MASK)
  clean, dirty = run(encoded), run(garbage(encoded, MASK))
  assert_same(dirty, clean)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(dirty))
  assert not np.asarray(dirty[1][1])[~MASK].any()


@each_attention
def test_where_all_is_masked_all_gradients_are_zero(name):
  module = make(name, np.float32)
  encoded = garbage(drawn32(B, S, E), np.zeros((B, S), bool))
  query = drawn32(B, T, Q)
  (_, found), grads = gradients(module, encoded, query, np.zeros((B, S), bool))
  for x in jax.tree.leaves((found, grads)):
    assert not np.asarray(x).any()


@each_attention
def test_gradients_are_those_of_finite_differences(x64, name):
  graphdef, params = nnx.split(make(name))

  def run(params, encoded, query):
    module = nnx.merge(graphdef, params)
    return module(module.precompute(encoded, jnp.asarray(MASK)), query)

  args = params, jnp.asarray(drawn(B, S, E)), jnp.asarray(drawn(B, Q, seed=1))
  check_grads(jax.jit(run), args, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


@each_attention
def test_bfloat16_stays_and_its_weights_are_float32(name):
  module = make(name, np.float32)
  encoded = jnp.asarray(drawn(B, S, E), jnp.bfloat16)
  query = jnp.asarray(drawn(B, Q), jnp.bfloat16)
  context, weights = module(module.precompute(encoded), query)
  assert context.dtype == jnp.bfloat16 and weights.dtype == jnp.float32


@pytest.mark.parametrize("name", ["general", "dot", "heads"])
def test_the_softmax_of_bfloat16_inputs_is_not_rounded_to_it(name):
  # Whole numbers, and eighths of them: all products with a parameter are exact
  # in bfloat16, and those of queries and keys in float32, but not in bfloat16.
  random = np.random.default_rng(0)
  whole = lambda x: jnp.asarray(random.integers(-1, 2, x.shape), jnp.float32)
  graphdef, params = nnx.split(make(name, np.float32))
  module = nnx.merge(graphdef, jax.tree.map(whole, params))
  encoded, query = (
    jnp.asarray(random.integers(-12, 13, shape) / 8, jnp.bfloat16)
    for shape in ((B, S, E), (B, Q))
  )
  _, weights = module(module.precompute(encoded), query)
  for row in range(B):
    exact = [np.asarray(x[row], np.float64) for x in (query, encoded)]
    want = PAPERS[name](module, *exact)
    # With scores that are rounded to bfloat16 this would be off by 1e-2.
    np.testing.assert_allclose(weights[row], want[1], atol=1e-6)


def test_large_scores_do_not_overflow():
  weights = masked_softmax(
    jnp.array([[1e30, -1e30, 1e30], [-1e30, -1e30, 0]]),
    jnp.array([[True, True, True], [True, True, False]]),
  )
  assert weights.tolist() == [[0.5, 0, 0.5], [0.5, 0.5, 0]]


@pytest.mark.parametrize(
  "build,match",
  [
    (lambda r: AdditiveAttention(0, E, 7, rngs=r), "query_features.*0"),
    (lambda r: AdditiveAttention(Q, 2.5, 7, rngs=r), "encoded_features.*2.5"),
    (lambda r: AdditiveAttention(Q, E, -1, rngs=r), "features.*-1"),
    (lambda r: MultiplicativeAttention(Q, E, score="cos", rngs=r), "'cos'"),
    (lambda r: MultiplicativeAttention(3, 4, score="dot", rngs=r), "3 and 4"),
    (lambda r: MultiHeadAttention(Q, E, 8, heads=3, rngs=r), "heads.*8.*3"),
    (lambda r: MultiHeadAttention(Q, E, 8, heads=0, rngs=r), "heads.*0"),
    (lambda r: LocalAttention(Q, E, window=0, rngs=r), "window.*0"),
    (lambda r: SelfAttention(8, heads=3, rngs=r), "heads.*8.*3"),
    (lambda r: SelfAttention(8, heads=2, window=3, rngs=r), "causal"),
    (
      lambda r: SelfAttention(8, heads=2, causal=True, window=0, rngs=r),
      "window.*0",
    ),
  ],
)
def test_bad_choices_are_refused(build, match):
  with pytest.raises(ValueError, match=match):
    build(nnx.Rngs(0))


@pytest.mark.parametrize(
  "encoded,mask,match",
  [
    (jnp.ones((B, S, E + 1)), None, "encoded"),
    (jnp.ones((E,)), None, "encoded"),
    (jnp.ones((B, S, E), int), None, "encoded.*int"),
    (jnp.ones((B, S, E)), jnp.ones((S, B), bool), "mask"),
    (jnp.ones((B, S, E)), jnp.ones((B, S)), "mask.*float32"),
  ],
)
def test_what_is_no_encoded_sequence_is_refused(encoded, mask, match):
  with pytest.raises(ValueError, match=match):
    make("additive", np.float32).precompute(encoded, mask)


@pytest.mark.parametrize(
  "query",
  [
    jnp.ones((B, Q + 1)),
    jnp.ones((B + 1, Q)),
    jnp.ones((Q,)),
    jnp.ones((B, 1, 1, Q)),
    jnp.ones((B, Q), jnp.bfloat16),
  ],
)
def test_what_is_no_query_is_refused(query):
  module = make("general", np.float32)
  with pytest.raises(ValueError, match="query"):
    module(module.precompute(jnp.ones((B, S, E))), query)


# Attention of a sequence to itself.

D, TIME = 6, 11
KINDS = {
  "both ways": {},
  "causal": {"causal": True},
  # 11 time steps are no multiple of these, but of the last: one block, and
  # less.
  "window 1": {"causal": True, "window": 1},
  "window 3": {"causal": True, "window": 3},
  "window 4": {"causal": True, "window": 4},
  "window 11": {"causal": True, "window": 11},
  "window 20": {"causal": True, "window": 20},
}
each_kind = pytest.mark.parametrize("kind", KINDS)
# Holes, padding, nothing at all; resets at time steps that are not real, too.
HOLES = np.array(
  [
    [1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1],
    [0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    [0] * TIME,
    [1] * TIME,
  ],
  bool,
)
RESETS = np.array(
  [
    [0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0],
    [0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0],
    [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0],
  ],
  bool,
)
FLAGS = {
  "none": {},
  "mask": {"mask": HOLES},
  "resets": {"resets": RESETS},
  "both": {"mask": HOLES, "resets": RESETS},
}


def of_kind(kind, dtype=np.float64, features=D):
  module = SelfAttention(features, heads=HEADS, rngs=nnx.Rngs(0), **KINDS[kind])
  return cast(module, dtype)


def seen(t, mask, resets, causal=False, window=None):
  """The time steps that time step t of one row sees, in words."""
  if not mask[t]:
    return []
  sequence, number = [], 0
  for s in range(len(mask)):
    if mask[s]:
      number += bool(resets[s])
      sequence.append((s, number))
  mine = dict(sequence)[t]
  time_steps = [s for s, n in sequence if n == mine and (s <= t or not causal)]
  return time_steps if window is None else time_steps[-window:]


def flags_of(row, options):
  mask = options.get("mask", np.ones((4, TIME), bool))[row]
  return mask, options.get("resets", np.zeros((4, TIME), bool))[row]


@each_kind
@pytest.mark.parametrize("flags", FLAGS)
def test_self_attention_is_a_loop_over_what_each_time_step_sees(
  x64, kind, flags
):
  module, inputs = of_kind(kind), drawn(4, TIME, D)
  outputs = np.asarray(jit(lambda x: module(x, **FLAGS[flags]))(inputs))
  kernels = np.split(np.asarray(module.query_key_value[...]), 3, axis=1)
  kernels.append(np.asarray(module.output[...]))
  for row in range(4):
    mask, resets = flags_of(row, FLAGS[flags])
    for t in range(TIME):
      time_steps = seen(t, mask, resets, **KINDS[kind])
      if not time_steps:
        assert not outputs[row, t].any()
        continue
      want, _ = many_heads(
        inputs[row, t], inputs[row, time_steps], kernels, HEADS
      )
      np.testing.assert_allclose(outputs[row, t], want, rtol=0, atol=1e-12)


@each_kind
@pytest.mark.parametrize("flags", FLAGS)
def test_rotary_scores_depend_on_how_many_real_time_steps_lie_between(
  x64, kind, flags
):
  features, width = 8, 4
  module = SelfAttention(
    features, heads=HEADS, rotary=True, rngs=nnx.Rngs(0), **KINDS[kind]
  )
  module, inputs = cast(module, np.float64), drawn(4, TIME, features)
  outputs = np.asarray(jit(lambda x: module(x, **FLAGS[flags]))(inputs))
  rates = np.tile(10000.0 ** -(np.arange(width // 2) / (width // 2)), HEADS)
  cut = lambda x: x.reshape(HEADS, 2, -1)

  def turned(x, position):
    pairs = cut(x)[:, 0] + 1j * cut(x)[:, 1]
    pairs = pairs * np.exp(1j * position * rates.reshape(HEADS, -1))
    return np.stack([pairs.real, pairs.imag], axis=1)

  for row in range(4):
    mask, resets = flags_of(row, FLAGS[flags])
    queries, keys, values = np.split(
      inputs[row] @ np.asarray(module.query_key_value[...]), 3, axis=-1
    )
    for t in range(TIME):
      time_steps = seen(t, mask, resets, **KINDS[kind])
      found = np.zeros((HEADS, width))
      for n in range(HEADS):
        # Positions count from the query: only distances matter.
        places = mask.cumsum() - mask[: t + 1].sum()
        scores = [
          np.sum(cut(queries[t])[n] * turned(keys[s], places[s])[n])
          for s in time_steps
        ]
        if time_steps:
          weights = softmax(np.array(scores) / math.sqrt(width))
          found[n] = (
            weights @ values[time_steps].reshape(-1, HEADS, width)[:, n]
          )
      want = found.ravel() @ np.asarray(module.output[...])
      np.testing.assert_allclose(outputs[row, t], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
  "causal,cross", [(False, False), (True, False), (False, True)]
)
def test_forward_and_gradients_are_those_of_flax(
  standard_promotion, causal, cross
):
  inputs, encoded = (drawn32(B, TIME, D, seed=s) for s in (0, 1))
  # No row without a real time step: Flax means over all keys there.
  mask = HOLES[[0, 1, 3]]
  if causal:  # nor a time step that sees none
    mask = mask | (np.arange(TIME) == 0)[None]
  visible = np.broadcast_to(mask[:, None, None, :], (B, 1, TIME, TIME))
  if causal:
    visible = visible & np.tri(TIME, dtype=bool)[None, None]

  def theirs(kernels, inputs, encoded):
    module = nnx.MultiHeadAttention(
      HEADS, D, use_bias=False, decode=False, rngs=nnx.Rngs(1)
    )
    layers = module.query, module.key, module.value, module.out
    for layer, kernel in zip(layers, kernels, strict=True):
      layer.kernel[...] = kernel.reshape(layer.kernel.shape)
    return module(inputs, encoded if cross else inputs, mask=visible)

  def ours(kernels, inputs, encoded):
    q, k, v, o = kernels
    rngs = nnx.Rngs(0)
    if cross:
      module = MultiHeadAttention(D, D, D, heads=HEADS, rngs=rngs)
      module.query[...] = q
      module.key_value[...] = jnp.concatenate([k, v], axis=1)
      module.output[...] = o
      return module(module.precompute(encoded, jnp.asarray(mask)), inputs)[0]
    module = SelfAttention(D, heads=HEADS, causal=causal, rngs=rngs)
    module.query_key_value[...] = jnp.concatenate([q, k, v], axis=1)
    module.output[...] = o
    return module(inputs, mask=jnp.asarray(mask))

  # What we zero at masked queries, Flax computes: not compared.
  weight = drawn32(B, TIME, D, seed=2)
  weight = weight if cross else weight * mask[..., None]

  def results(run):
    def loss(*args):
      outputs = weight * run(*args)
      return jnp.sum(jnp.sin(outputs)), outputs

    return jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(
      [jnp.asarray(drawn32(D, D, seed=s)) for s in range(3, 7)],
      jnp.asarray(inputs),
      jnp.asarray(encoded),
    )

  ((_, got), grads), ((_, want), wanted) = results(ours), results(theirs)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    grads,
    wanted,
  )


@pytest.mark.parametrize("window", [1, 3, 4, 10])
def test_a_window_is_dense_attention_with_a_band(x64, window):
  options = {"causal": True, "window": window}
  module = SelfAttention(D, heads=HEADS, rngs=nnx.Rngs(0), **options)
  module = cast(module, np.float64)

  @jit
  def both(inputs):
    # JAX's own takes one dtype in and another out: no strict promotion.
    with jax.numpy_dtype_promotion("standard"):
      dense = jax.nn.dot_product_attention(
        *module.project(inputs),
        is_causal=True,
        local_window_size=(window - 1, 0),
      )
    return module(inputs), module.merge(dense.astype(inputs.dtype))

  got, want = both(drawn(B, TIME, D))
  # JAX's softmax is float32 whatever comes in.
  np.testing.assert_allclose(got, want, atol=1e-6)


def sizes(jaxpr):
  """Of all arrays in a jaxpr and those within."""
  for equation in jaxpr.eqns:
    yield from (math.prod(v.aval.shape) for v in equation.outvars)
    for inner in jaxprs_in_params(equation.params):
      yield from sizes(inner)


@pytest.mark.parametrize("window,dense", [(4, False), (None, True)])
def test_with_a_window_no_array_is_time_by_time(window, dense):
  time = 512
  module = SelfAttention(
    2, heads=1, causal=True, window=window, rngs=nnx.Rngs(0)
  )
  flag = jnp.ones((1, time), bool)
  loss = lambda x: module(x, mask=flag, resets=flag).sum()
  jaxpr = jax.make_jaxpr(jax.grad(loss))(jnp.ones((1, time, 2)))
  assert (max(sizes(jaxpr.jaxpr)) >= time * time) == dense


@each_kind
@pytest.mark.parametrize("flags", FLAGS)
def test_the_jacobian_is_zero_just_where_a_time_step_is_not_seen(kind, flags):
  module, inputs = (
    of_kind(kind, np.float32),
    drawn32(4, TIME, D),
  )
  # Rows are alone: the sum over rows keeps the Jacobian of each.
  run = lambda x: module(x, **FLAGS[flags]).sum(0)
  jacobian = np.asarray(jit(jax.jacrev(run))(inputs))  # [T, D, B, T, D]
  depends = (jacobian != 0).any((1, 4))
  for row in range(4):
    mask, resets = flags_of(row, FLAGS[flags])
    for t in range(TIME):
      time_steps = seen(t, mask, resets, **KINDS[kind])
      assert np.flatnonzero(depends[t, row]).tolist() == time_steps


def run_and_grads(module, inputs, mask, resets):
  graphdef, params = nnx.split(module)

  def loss(params, inputs):
    outputs = nnx.merge(graphdef, params)(inputs, mask=mask, resets=resets)
    return jnp.sum(jnp.cos(outputs)), outputs

  return jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, inputs)


@each_kind
def test_garbage_at_masked_time_steps_changes_no_bit(kind):
  module, inputs = (
    of_kind(kind, np.float32),
    drawn32(4, TIME, D),
  )
  clean = run_and_grads(module, inputs, HOLES, RESETS)
  dirty = run_and_grads(module, garbage(inputs, HOLES), HOLES, RESETS)
  assert_same(dirty, clean)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(dirty))
  (_, outputs), (_, d_inputs) = dirty
  assert not np.asarray(outputs)[~HOLES].any()
  assert not np.asarray(d_inputs)[~HOLES].any()


@each_kind
def test_resets_at_masked_time_steps_do_nothing(kind):
  module, inputs = (
    of_kind(kind, np.float32),
    drawn32(4, TIME, D),
  )
  run = functools.partial(run_and_grads, module, inputs, HOLES)
  assert_same(run(RESETS | ~HOLES), run(RESETS & HOLES))


@pytest.mark.parametrize("kind", ["both ways", "window 3"])
def test_gradients_of_self_attention_are_finite_differences(x64, kind):
  graphdef, params = nnx.split(of_kind(kind))
  run = lambda params, inputs: nnx.merge(graphdef, params)(
    inputs, mask=jnp.asarray(HOLES), resets=jnp.asarray(RESETS)
  )
  args = params, jnp.asarray(drawn(4, TIME, D))
  check_grads(jax.jit(run), args, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


@each_kind
def test_self_attention_rounds_as_bfloat16_does(kind):
  assert_rounds_as_bfloat16_does(
    of_kind(kind, np.float32),
    lambda module, inputs: module(inputs, mask=jnp.asarray(HOLES)),
    drawn32(4, TIME, D),
  )


def test_bfloat16_rotates_by_positions_that_it_cannot_hold():
  array = jnp.ones((1, 2, 1, 8))
  # In bfloat16 both would be 1000.
  wide = rotate(array, jnp.array([1000, 1001]))
  narrow = rotate(array.astype(jnp.bfloat16), jnp.array([1000, 1001]))
  # Numbers up to 1.5, each rounded once.
  np.testing.assert_allclose(narrow.astype(np.float32), wide, atol=2**-8)


@pytest.mark.parametrize(
  "inputs,options,match",
  [
    (jnp.ones((TIME, D)), {}, "inputs"),
    (jnp.ones((4, TIME, D + 1)), {}, "inputs"),
    (jnp.ones((4, 0, D)), {}, "at least one time step"),
    (jnp.ones((4, TIME, D), int), {}, "inputs.*int"),
    (jnp.ones((4, TIME, D)), {"mask": HOLES.T}, "mask"),
    (jnp.ones((4, TIME, D)), {"resets": RESETS[0]}, "resets"),
    (jnp.ones((4, TIME, D)), {"resets": RESETS.astype(int)}, "resets.*int"),
  ],
)
def test_what_is_no_sequence_is_refused(inputs, options, match):
  with pytest.raises(ValueError, match=match):
    of_kind("causal", np.float32)(inputs, **options)


def test_the_gradient_of_additive_attention_has_no_sum_in_bfloat16():
  attention = AdditiveAttention(3, 4, 5, rngs=nnx.Rngs(0))
  graphdef, params = nnx.split(attention)
  query, encoded = (
    jnp.ones(shape, jnp.bfloat16) for shape in ((2, 6, 3), (2, 7, 4))
  )

  def loss(params, query, encoded):
    attention = nnx.merge(graphdef, params)
    context, _ = attention(attention.precompute(encoded), query)
    return context.astype(jnp.float32).mean()

  slopes = jax.grad(loss, argnums=(0, 1, 2))
  assert narrow_sums(slopes, params, query, encoded) == []
