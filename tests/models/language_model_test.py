import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from recurrent import cells, losses
from tests.models.build import language_model

V, H, E = 7, 4, 3
# Of the generators of keys, "rbg" is the one that compiles fastest.
KEY, OTHER_KEY = (jax.random.key(seed, impl="rbg") for seed in (0, 1))
RNG = np.random.default_rng(0)
# The cell knows nothing of the embedding: one is enough for the tied model.
CELL_AND_TIED = [
  *((cell, False) for cell in cells.vector_cells()),
  ("lstm", True),
]
TOKENS = RNG.integers(0, V, (2, 6)).astype(np.int32)


def make(seed=0, vocab_size=V, **kwargs):
  """Two small layers."""
  chosen = {"layers": 2, "features": H, "embedding_features": E, **kwargs}
  rngs = nnx.Rngs(jax.random.key(seed, impl="rbg"))
  return language_model(vocab_size, rngs=rngs, **chosen)


@jax.jit(static_argnums=0)
def apply(graphdef, params, carry, tokens, kwargs):
  return nnx.merge(graphdef, params)(carry, tokens, **kwargs)


def run(model, tokens=TOKENS, carry=None, **kwargs):
  """`model(carry, tokens)`, compiled as training does it."""
  return apply(*nnx.split(model), carry, jnp.asarray(tokens), kwargs)


def leaves(model):
  return jax.tree.leaves(nnx.split(model)[1])


def assert_close(got, expected):
  # float32, the same sums in another order, over a few time steps.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6),
    got,
    expected,
  )


# What it computes.


@pytest.mark.parametrize("tied", [False, True])
def test_it_is_embedding_layers_and_softmax(tied):
  model = make(cell="rnn", tied=tied, residual=True)
  weights = jax.tree.map(lambda x: np.asarray(x, np.float64), model)
  embedding = weights.embedding[...]
  output = embedding.T if tied else weights.output[...]
  layers = [layer.cell_params() for layer in weights.stack.layers]
  expected = np.zeros((*TOKENS.shape, V))
  for row, tokens in enumerate(TOKENS):
    carry = np.zeros((2, H))
    for time, token in enumerate(tokens):
      x = embedding[token]
      for index, (kernel, recurrent, bias) in enumerate(layers):
        h = np.tanh(x @ kernel + carry[index] @ recurrent + bias)
        carry[index] = h
        x = h + x if x.shape == h.shape else h
      expected[row, time] = x @ output + weights.output_bias[...]
  assert_close(run(model)[1], expected)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("cell", cells.vector_cells())
def test_decoding_token_by_token_is_running_over_all(cell, tied, residual):
  # A tied model has its residual from the first layer on.
  options = {"tied": tied, "residual": residual, "layers": 1 if tied else 2}
  graphdef, params = nnx.split(make(cell=cell, **options))

  @jax.jit
  def both_ways(params, tokens):
    model = nnx.merge(graphdef, params)
    carry, logits = jax.lax.scan(
      model.decoder(), model.initial_carry(2), tokens.T
    )
    return (carry, jnp.swapaxes(logits, 0, 1)), model(None, tokens)

  assert_close(*both_ways(params, TOKENS))


def test_decoding_drops_nothing():
  rates = {"dropout": 0.9, "embedding_dropout": 0.9, "output_dropout": 0.9}
  model = make(**rates)
  decode = model.decoder()
  _, logits = decode(model.initial_carry(2), jnp.asarray(TOKENS[:, 0]))
  assert_close(logits[:, None], run(make(), TOKENS[:, :1])[1])


@pytest.mark.parametrize("tied", [False, True])
def test_a_text_window_by_window_is_the_whole_text(tied):
  model = make(tied=tied)
  carry, first = run(model, TOKENS[:, :4])
  carry, second = run(model, TOKENS[:, 4:], carry)
  whole = run(model)
  assert_close((carry, np.concatenate([first, second], axis=1)), whole)


def test_to_begin_without_a_carry_is_to_begin_with_the_initial_one():
  model = make()
  expected = run(model)
  jax.tree.map(
    np.testing.assert_array_equal,
    run(model, carry=model.initial_carry(2)),
    expected,
  )


@pytest.mark.parametrize(
  "options", [{"method": "scan"}, {"remat": 4}, {"remat": "gates"}]
)
def test_executors_agree(options):
  assert_close(run(make(**options)), run(make()))


@pytest.mark.parametrize(
  "wrong", [{"method": "fused"}, {"remat": 0}, {"remat": "gates"}]
)
def test_the_layers_refuse_what_they_cannot_run(wrong):
  [name] = wrong
  with pytest.raises(ValueError, match=name):
    run(make(cell="gru_reset_before", **wrong))


# Masks and resets.


def test_masked_tokens_hold_the_carry_and_change_nothing_else():
  model = make()
  mask = np.ones(TOKENS.shape, bool)
  mask[0, 2:4] = mask[1, 5] = False
  others = np.where(mask, TOKENS, (TOKENS + 1) % V)
  got = run(model, others, mask=mask)
  jax.tree.map(
    np.testing.assert_array_equal, got, run(model, TOKENS, mask=mask)
  )
  # The first row is the text without the two tokens.
  carry, logits = run(model, np.delete(TOKENS[:1], [2, 3], axis=1))
  assert_close(jax.tree.map(lambda x: x[:1], got[0]), carry)
  assert_close(got[1][:1, mask[0]], logits)


def test_a_reset_begins_a_text_anew():
  model = make()
  resets = np.zeros(TOKENS.shape, bool)
  resets[0, 4] = True
  carry, logits = run(model, resets=resets)
  fresh_carry, fresh = run(model, TOKENS[:1, 4:])
  assert_close(jax.tree.map(lambda x: x[:1], carry), fresh_carry)
  assert_close(logits[:1, 4:], fresh)
  # The other row is as it was.
  assert_close(logits[1:], run(model)[1][1:])


# Parameters.


@pytest.mark.parametrize(
  "options,count",
  [
    # V E + (E + H + 1) 4 H + (H + H + 1) 4 H + (H + 1) V
    ({}, 7 * 3 + 8 * 16 + 9 * 16 + 5 * 7),
    # V H + 2 (H + H + 1) 4 H + V
    ({"tied": True}, 7 * 4 + 2 * 9 * 16 + 7),
    ({"layers": 1}, 7 * 3 + 8 * 16 + 5 * 7),
  ],
)
def test_an_lstm_has_as_many_parameters_as_the_formula(options, count):
  assert sum(x.size for x in leaves(make(**options))) == count


def test_another_seed_draws_another_model():
  assert (make(0).embedding[...] != make(1).embedding[...]).all()


@pytest.mark.parametrize("tied", [False, True])
def test_models_that_are_made_alike_have_equal_graphdefs(tied):
  one, other = (nnx.split(make(seed, tied=tied))[0] for seed in (0, 1))
  assert one == other and hash(one) == hash(other)


@pytest.mark.parametrize("cell,tied", CELL_AND_TIED)
def test_before_training_all_tokens_are_about_as_likely(cell, tied):
  tokens = jnp.asarray(RNG.integers(0, 50, (4, 21)).astype(np.int32))
  widths = {"layers": 1, "features": 64, "embedding_features": 64}
  model = make(cell=cell, tied=tied, vocab_size=50, **widths)
  _, logits = run(model, tokens[:, :-1])
  loss = losses.cross_entropy(logits, tokens[:, 1:]).mean()
  # Logits of unit variance, the most any cell has, cost half a nat more.
  np.testing.assert_allclose(loss, np.log(50), atol=0.75)


RATES = {"dropout": 0.3, "embedding_dropout": 0.3, "output_dropout": 0.3}


@pytest.mark.parametrize(
  "cell,layers,key",
  [*((cell, 1, None) for cell in cells.vector_cells()), ("gru", 2, KEY)],
)
def test_the_gradient_reaches_every_parameter(cell, layers, key):
  graphdef, params = nnx.split(make(cell=cell, layers=layers, **RATES))

  @jax.jit
  @jax.grad
  def slope(params):
    tokens = jnp.asarray(TOKENS)
    _, logits = nnx.merge(graphdef, params)(None, tokens, key=key)
    return losses.cross_entropy(logits, (tokens + 1) % V).mean()

  for grads in jax.tree.leaves(slope(params)):
    assert np.isfinite(grads).all() and (grads != 0).any()


def test_a_tied_embedding_learns_from_both_of_its_ends():
  graphdef, params = nnx.split(make(tied=True))

  @jax.jit
  @jax.grad
  def slope(params):
    _, logits = nnx.merge(graphdef, params)(None, jnp.zeros((1, 3), jnp.int32))
    return losses.cross_entropy(logits, jnp.ones((1, 3), jnp.int32)).mean()

  # Row 0 is read, row 1 is the target, the others are neither.
  assert (slope(params).embedding[...] != 0).any(axis=1).all()


# Dropout.


@pytest.mark.parametrize("where", RATES)
def test_another_key_drops_other_units(where):
  model = make(**{where: 0.5})
  one, other = (run(model, key=key)[1] for key in (KEY, OTHER_KEY))
  assert (one != other).any()


@pytest.mark.parametrize("where", RATES)
def test_without_a_key_nothing_is_dropped(where):
  model = make(**{where: 0.5})
  np.testing.assert_array_equal(run(model)[1], run(make())[1])


@pytest.mark.parametrize("where", ["embedding_dropout", "output_dropout"])
def test_embedding_and_output_masks_are_one_for_all_time_steps(where):
  # One token again and again, and a network that forgets: where the mask is
  # one for all time steps, so are the logits.
  widths = {"features": 64, "embedding_features": 64}
  model = make(cell="rnn", layers=1, **widths, **{where: 0.5})
  recurrent = model.stack.layers[0].params.recurrent
  recurrent[...] = jnp.zeros_like(recurrent[...])
  _, logits = run(model, np.zeros((3, 5), np.int32), key=KEY)
  assert_close(logits, np.repeat(logits[:, :1], 5, axis=1))
  assert (logits[0] != logits[1]).any()


def test_embedding_and_output_have_masks_of_their_own():
  # Each logit is what is left of one unit after both masks.
  rates = {"embedding_dropout": 0.5, "output_dropout": 0.5}
  widths = {"vocab_size": 50, "features": 50, "embedding_features": 50}
  model = make(cell="rnn", layers=1, **widths, **rates)
  unit = model.stack.layers[0].params
  model.embedding[...] = jnp.ones((50, 50))
  unit.kernel[...] = model.output[...] = jnp.eye(50)
  unit.recurrent[...] = jnp.zeros((50, 50))
  _, logits = run(model, np.zeros((40, 1), np.int32), key=KEY)
  # 2000 units, of which a quarter is left: 5 standard deviations.
  np.testing.assert_allclose((logits != 0).mean(), 0.25, atol=0.05)


def test_dropout_between_layers_is_fresh_at_each_time_step():
  model = make(cell="rnn", features=64, dropout=0.5)
  for layer in model.stack.layers:
    recurrent = layer.params.recurrent
    recurrent[...] = jnp.zeros_like(recurrent[...])
  _, logits = run(model, np.zeros((3, 5), np.int32), key=KEY)
  assert (logits[:, 1:] != logits[:, :-1]).any(axis=-1).all()


def test_one_layer_has_no_dropout_between_layers():
  model = make(layers=1, dropout=0.9)
  np.testing.assert_array_equal(run(model, key=KEY)[1], run(model)[1])


# Types and shapes.


@pytest.mark.parametrize("cell,tied", CELL_AND_TIED)
def test_bfloat16_is_for_computing_only(cell, tied):
  model = make(cell=cell, tied=tied, dtype=jnp.bfloat16)
  carry, logits = jax.eval_shape(lambda: model(None, jnp.asarray(TOKENS)))
  kept = [*leaves(model), *jax.tree.leaves(carry), logits]
  assert {x.dtype for x in kept} == {jnp.dtype("float32")}


@pytest.mark.parametrize("cell,tied", CELL_AND_TIED)
def test_with_bfloat16_every_product_is_in_bfloat16(cell, tied):
  model = make(cell=cell, tied=tied, dtype=jnp.bfloat16)
  jaxpr = jax.make_jaxpr(lambda: model(None, jnp.asarray(TOKENS)))().jaxpr
  # Their factors, that is: the sums may be wider.
  factors = [v.aval.dtype for eqn in products(jaxpr) for v in eqn.invars]
  # The state of an mLSTM is a matrix, which is a part of the float32 carry.
  state = {jnp.dtype(jnp.float32)} if cell == "mlstm" else set()
  assert factors and set(factors) == {jnp.dtype(jnp.bfloat16), *state}


def products(jaxpr):
  """The matrix products of a jaxpr, those inside its loops too."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      yield eqn
    for inner in eqn.params.values():
      if hasattr(inner, "jaxpr"):
        yield from products(inner.jaxpr)


def test_bfloat16_is_near_float32():
  exact = run(make())[1]
  rounded = run(make(dtype=jnp.bfloat16))[1]
  # 8 bits: logits near 1, a dozen roundings of 1 / 256.
  np.testing.assert_allclose(rounded, exact, atol=0.05)
  assert (rounded != exact).any()


def test_bfloat16_decodes_what_it_runs():
  model = make(cell="gru", dtype=jnp.bfloat16, residual=True)
  carry, logits = jax.lax.scan(
    model.decoder(), model.initial_carry(2), jnp.asarray(TOKENS.T)
  )
  # Products of other shapes round their sums differently.
  np.testing.assert_allclose(
    jnp.swapaxes(logits, 0, 1), run(model)[1], atol=0.05
  )


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (3, 1)])
def test_batch_and_time_may_be_one(shape):
  tokens = TOKENS.ravel()[: np.prod(shape)].reshape(shape)
  assert run(make(), tokens)[1].shape == (*shape, V)


def test_a_vocabulary_of_one_costs_nothing():
  tokens = jnp.zeros((2, 3), jnp.int32)
  _, logits = run(make(vocab_size=1), tokens)
  assert (losses.cross_entropy(logits, tokens) == 0).all()


def test_tokens_may_be_smaller_integers():
  model = make()
  np.testing.assert_array_equal(
    run(model, TOKENS.astype(np.int16))[1], run(model)[1]
  )


def test_a_row_that_is_dropped_is_dropped_wherever_its_token_stands():
  model = make(embedding_row_dropout=0.5)
  seen = []

  def stack(carry, inputs, **_):
    seen.append(np.asarray(inputs))
    return carry, inputs

  model.stack = stack
  model.activations(None, jnp.asarray([[1, 2, 3, 1, 2, 3]]), key=KEY)
  first, second = np.split(seen[0][0], 2)
  np.testing.assert_array_equal(first, second)
  for row, whole in zip(
    first, np.asarray(model.embedding[...])[1:4], strict=True
  ):
    assert (row == 0).all() or (row == 2 * whole).all()
