"""Regression tests for bugs that other libraries have or had.

There are fifteen groups; the comment before a group names the bug reports. The
expected values come from formulas in NumPy and float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from recurrent import cells, converters, unroll
from recurrent.cells import GRU, LSTM, RNN, GRUResetBefore
from recurrent.nn import Bidirectional, Recurrent, Stack, dropout
from recurrent.optim import OptimizerConfig, make_optimizer
from tests.cells import reference
from tests.cells.cases import assert_close, assert_same_bits, jit, methods

B, T, D, H = 3, 6, 2, 4
LENGTHS = np.array([T, 3, 0])
ALL = np.ones((B, T), bool)
PADDED = np.arange(T) < LENGTHS[:, None]
HOLES = (
  np.array([[0, 1, 0, 0, 1, 1], [1, 1, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0]]) > 0
)


def drawn(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def filled(tree, seed=1):
  """The same tree, but no entry of it zero: zero biases hide much."""
  leaves, structure = jax.tree.flatten(tree)
  return structure.unflatten(
    [0.7 * drawn(*np.shape(x), seed=seed + k) for k, x in enumerate(leaves)]
  )


def params_of(cell, in_features=D):
  return filled(
    jax.eval_shape(lambda: cell.init(jax.random.key(0), in_features))
  )


@functools.cache
def compiled(cell, method="auto", reverse=False):
  """Outputs, last carry, and gradients of a sum with unequal weights."""

  def loss(params, carry, inputs, mask, resets, weights):
    last, outputs = unroll(
      cell,
      params,
      carry,
      inputs,
      mask=mask,
      resets=resets,
      method=method,
      reverse=reverse,
    )
    total = jnp.sum(outputs.astype(weights.dtype) * weights)
    total += sum(jnp.sum(leaf) for leaf in jax.tree.leaves(last))
    return total, (last, outputs)

  return jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))


def run(
  cell, inputs, *, params=None, carry=None, mask=None, resets=None, **how
):
  """((d_params, d_carry, d_inputs), (carry, outputs))."""
  params = params_of(cell, inputs.shape[-1]) if params is None else params
  if carry is None:
    carry = cell.initial_carry(params, (len(inputs),))
  # Flags that do nothing, so that all tests of a cell share what is compiled.
  mask = np.ones(inputs.shape[:2], bool) if mask is None else mask
  resets = np.zeros_like(mask) if resets is None else resets
  weights = 1 + drawn(1, inputs.shape[1], 1, seed=9)
  weights = np.broadcast_to(weights, (*inputs.shape[:2], cell.features))
  return compiled(cell, **how)(params, carry, inputs, mask, resets, weights)


@functools.partial(jit, static_argnums=0, static_argnames="method")
def forward(cell, params, carry, inputs, method="auto"):
  """The last carry and the outputs."""
  return unroll(cell, params, carry, inputs, method=method)


def all_finite(tree):
  return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def gru_outputs(params, inputs, mask=ALL, reset_before=False):
  """The formula's outputs from a zero state, and its last state."""
  zero, no = (np.zeros((B, H)),), np.zeros((B, T), bool)
  time_step = gru_formula(params, reset_before)
  outputs, (last,) = reference.unroll(
    time_step, zero, zero, inputs, mask, no, False
  )
  return outputs, last


def gru_formula(params, reset_before=False):
  kernel, recurrent, bias, inner = (np.float64(x) for x in params)
  return functools.partial(
    reference.gru,
    reference.split(kernel, recurrent, bias, names="rzn"),
    inner,
    reset_before=reset_before,
  )


# 1. google/flax#5594, PR #5595: nnx.GRUCell has no b_hn; zero init hides it.


def test_a_gru_is_not_without_the_bias_inside_the_reset_product():
  cell, inputs = GRU(H), drawn(B, T, D)
  params = params_of(cell)
  (d_params, _, _), (_, outputs) = run(cell, inputs, params=params)
  want, _ = gru_outputs(params, inputs)
  assert_close(outputs, want, 1e-5)
  assert np.abs(d_params.recurrent_bias).min() > 1e-3
  none = params._replace(recurrent_bias=0 * params.recurrent_bias)
  assert np.abs(run(cell, inputs, params=none)[1][1] - want).max() > 0.01
  with pytest.raises(ValueError, match="recurrent_bias must be zero"):
    converters.to_nnx(params)


# 2. ml-explore/mlx#3249: the GRU skips b_hn at the first time step without a
# carry.


@pytest.mark.parametrize("cell", [GRU(H), GRUResetBefore(H), LSTM(H)], ids=str)
def test_no_bias_is_skipped_at_the_first_time_step_without_a_carry(cell):
  params, inputs = params_of(cell), drawn(B, 1, D)
  outputs = forward(cell, params, None, inputs)[1]
  if isinstance(cell, LSTM):
    gates = reference.split(*map(np.float64, params), names="ifgo")
    time_step = functools.partial(reference.lstm, gates)
    zero = (np.zeros(H), np.zeros(H))
  else:
    time_step = gru_formula(params, isinstance(cell, GRUResetBefore))
    zero = (np.zeros(H),)
  want = [[time_step(zero, row[0])[1]] for row in inputs]
  assert_close(outputs, want, 1e-5)


# 3. pytorch/pytorch#8153, keras-team/keras#8307, #9112, #8720, #15915,
# patrick-kidger/equinox#1003, google/flax#3746: which GRU, which biases, which
# order of gates.


def test_reset_before_and_reset_after_the_product_are_not_taken_for_another():
  inputs = drawn(B, T, D)
  params = params_of(GRU(H))
  for cell, before in ((GRU(H), False), (GRUResetBefore(H), True)):
    outputs = run(cell, inputs, params=params)[1][1]
    right, wrong = (
      gru_outputs(params, inputs, reset_before=this)[0]
      for this in (before, not before)
    )
    assert_close(outputs, right, 1e-5)
    assert np.abs(outputs - wrong).max() > 0.01


def test_torchs_second_bias_is_not_dropped_and_its_gates_stay_in_order():
  inputs = drawn(1, T, D)
  for kind, gates in (("lstm", "ifgo"), ("gru", "rzn")):
    rows = len(gates) * H
    state = {
      "weight_ih_l0": drawn(rows, D, seed=1),
      "weight_hh_l0": drawn(rows, H, seed=2),
      "bias_ih_l0": drawn(rows, seed=3),
      "bias_hh_l0": drawn(rows, seed=4),
    }
    blocks = {
      name: dict(zip(gates, np.split(np.float64(x), len(gates)), strict=True))
      for name, x in state.items()
    }
    of = lambda side, g, v, blocks=blocks: (
      blocks[f"weight_{side}_l0"][g] @ v + blocks[f"bias_{side}_l0"][g]
    )
    h = c = np.zeros(H)
    want = []
    for x in np.float64(inputs[0]):  # torch.nn.LSTM's and GRU's documentation
      total = {g: of("ih", g, x) + of("hh", g, h) for g in gates}
      gate = {g: reference.sigmoid(v) for g, v in total.items()}
      if kind == "lstm":
        c = gate["f"] * c + gate["i"] * np.tanh(total["g"])
        h = gate["o"] * np.tanh(c)
      else:
        n = np.tanh(of("ih", "n", x) + gate["r"] * of("hh", "n", h))
        h = (1 - gate["z"]) * n + gate["z"] * h
      want.append(h)
    ((params,),) = converters.from_torch(state, kind)
    cell = LSTM(H) if kind == "lstm" else GRU(H)
    assert_close(forward(cell, params, None, inputs)[1][0], want, 1e-5)


@pytest.mark.parametrize("after", [True, False])
def test_kerass_gates_are_not_read_in_torchs_order(after):
  inputs = drawn(1, T, D)
  kernel, recurrent = drawn(D, 3 * H, seed=1), drawn(H, 3 * H, seed=2)
  bias = drawn(2, 3 * H, seed=3) if after else drawn(3 * H, seed=3)
  outer, inner = np.float64(bias) if after else (bias, np.zeros(3 * H))
  h, want = np.zeros(H), []
  for x in np.float64(inputs[0]):  # keras.layers.GRU: z, r, candidate
    xz, xr, xn = np.split(x @ kernel + outer, 3)
    hz, hr, hn = np.split(h @ recurrent + inner, 3)
    z, r = reference.sigmoid(xz + hz), reference.sigmoid(xr + hr)
    n = np.tanh(xn + (r * hn if after else (r * h) @ recurrent[:, 2 * H :]))
    h = z * h + (1 - z) * n
    want.append(h)
  params = converters.from_keras(
    [kernel, recurrent, bias], "gru", reset_after=after
  )
  cell = GRU(H) if after else GRUResetBefore(H)
  assert_close(forward(cell, params, None, inputs)[1][0], want, 1e-5)


# 4. google-deepmind/dm-haiku, recurrent.py: the forget gate's 1 is added inside
# the cell there, and elsewhere by the initialiser.


def test_the_forget_bias_is_not_added_twice():
  cell = LSTM(1)
  drawn_bias = cell.init(jax.random.key(0), 1).bias
  np.testing.assert_array_equal(drawn_bias, [0, 1, 0, 0])
  zero = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 1))
  start = cells.LSTMCarry(jnp.zeros((1, 1)), jnp.ones((1, 1)))
  inputs = jnp.zeros((1, 1, 1))
  kept = lambda params: float(
    forward(cell, params, start, inputs)[0].cell[0, 0]
  )
  assert kept(zero) == 0.5  # sigmoid(0): the step adds nothing
  theirs = {"w": np.zeros((2, 4), np.float32), "b": np.zeros(4, np.float32)}
  ported = converters.from_haiku(theirs, "lstm")
  assert kept(ported) == pytest.approx(reference.sigmoid(1), rel=1e-6)
  np.testing.assert_array_equal(converters.to_haiku(ported)["b"], np.zeros(4))


# 5. google/flax and jax/experimental/rnn.py: the carry at index length - 1;
# jax-ml/jax#17966, tensorflow/tensorflow#36139, #33148: cuDNN fails at 0.

CELLS = (LSTM(H), GRUResetBefore(H), cells.RGLRU(H))
WAYS = [(cell, method) for cell in CELLS for method in methods(cell)]


@pytest.mark.parametrize(("cell", "method"), WAYS, ids=str)
def test_a_zero_length_row_does_not_get_the_last_padded_time_steps_carry(
  cell, method
):
  inputs = drawn(B, T, D)
  inputs[~PADDED] = np.nan
  carry = filled(cell.initial_carry(params_of(cell), (B,)), seed=5)
  gradients, (last, outputs) = run(
    cell, inputs, carry=carry, mask=PADDED, method=method
  )
  row = functools.partial(jax.tree.map, lambda x: np.asarray(x)[2])
  assert LENGTHS[2] == 0
  assert_same_bits(row(last), row(carry))
  assert not np.asarray(outputs)[2].any()
  assert all_finite(gradients)
  # The carry only passes through: its cotangent, which is 1, comes back.
  assert all((x == 1).all() for x in jax.tree.leaves(row(gradients[1])))


# 6. google/flax#3208, #3507: lengths failed; no mask in mid-sequence.


def test_time_steps_masked_in_mid_sequence_are_not_run():
  cell, inputs = GRU(H), drawn(B, T, D)
  _, (last, outputs) = run(cell, inputs, mask=HOLES)
  want = gru_outputs(params_of(cell), inputs, HOLES)
  assert_close((outputs, last.hidden), want, 1e-5)
  assert not np.asarray(outputs)[~HOLES].any()


# 7. jax-ml/jax#15183, #15169: NaN gradients and wrong outputs of bidirectional
# layers with lengths.


def bidirectional(cell):
  module = Bidirectional(cell, D, rngs=nnx.Rngs(0))
  graph, state = nnx.split(module)
  return nnx.merge(graph, filled(state))


def test_bidirectional_with_lengths_equals_each_row_by_itself():
  graph, state = nnx.split(bidirectional(LSTM(H)))
  weights = drawn(B, T, 2 * H, seed=3)

  @jit
  @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
  def both(state, inputs, mask, weights):
    carries, outputs = nnx.merge(graph, state)(None, inputs, mask=mask)
    return jnp.sum(outputs * weights), (carries, outputs)

  inputs = drawn(B, T, D)
  padded = np.where(PADDED[..., None], inputs, np.nan)
  (d_state, d_inputs), (carries, outputs) = both(state, padded, PADDED, weights)
  total = jax.tree.map(np.zeros_like, d_state)
  for row, length in enumerate(LENGTHS[:2]):
    cut = (slice(row, row + 1), slice(length))
    (d_alone, d_alone_inputs), (ends, alone) = both(
      state, inputs[cut], np.ones((1, length), bool), weights[cut]
    )
    assert_close(outputs[cut], alone, 1e-5)
    assert_close(d_inputs[cut], d_alone_inputs, 1e-4)
    at_row = jax.tree.map(lambda x, row=row: x[row : row + 1], carries)
    assert_close(at_row, ends, 1e-5)
    total = jax.tree.map(np.add, total, d_alone)
  assert_close(jax.tree.leaves(d_state), jax.tree.leaves(total), 1e-4)
  assert not np.asarray(outputs)[~PADDED].any()


# 8. keras-team/keras#4192, #3662, #11499, allenai/allennlp#1713: the carry of a
# masked bidirectional layer; the shape of the mask backwards; zero carries.


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", [LSTM(H), cells.RGLRU(H)], ids=str)
def test_the_final_carry_of_a_short_row_is_not_that_of_the_padding(
  cell, reverse
):
  inputs = drawn(B, T, D)
  last = run(cell, inputs, mask=PADDED, reverse=reverse)[1][0]
  for row, length in enumerate(LENGTHS[:2]):
    alone = run(cell, inputs[:, :length], reverse=reverse)[1][0]
    at_row = functools.partial(jax.tree.map, lambda x, row=row: x[row])
    assert_close(at_row(last), at_row(alone), 1e-5)
    assert all(leaf.all() for leaf in jax.tree.leaves(at_row(last)))


def test_a_bidirectional_layer_does_not_turn_the_padding_to_the_front():
  module = bidirectional(GRU(H))
  inputs = drawn(B, T, D)
  (past, future), outputs = jit(module)(None, inputs, mask=PADDED)
  for row, length in enumerate(LENGTHS[:2]):
    one = inputs[row : row + 1, :length]
    # Forwards over the flipped row is backwards over the row.
    params = module.backward.cell_params()
    end, flipped = forward(GRU(H), params, None, one[:, ::-1])
    assert_close(outputs[row, :length, H:], flipped[0, ::-1], 1e-5)
    assert_close(future.hidden[row], end.hidden[0], 1e-5)
    # Its carry is that after the first time step, where its outputs end.
    assert_close(future.hidden[row], outputs[row, 0, H:], 1e-6)
    assert_close(past.hidden[row], outputs[row, length - 1, :H], 1e-6)


# 9. apache/mxnet#15278, #21143: gradients depend on how far a row is padded.


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_gradients_do_not_depend_on_the_padded_length(cell):
  inputs = drawn(B, T, D)
  want = run(cell, inputs)[0]
  far = np.pad(inputs, ((0, 0), (0, 5), (0, 0)), constant_values=7.0)
  mask = np.arange(T + 5)[None] < np.full((B, 1), T)
  weights = np.zeros((B, T + 5, H), np.float32)
  weights[:, :T] = 1 + drawn(1, T, 1, seed=9)
  weights[:, T:] = 3.0
  params = params_of(cell)
  start = cell.initial_carry(params, (B,))
  no = np.zeros_like(mask)
  got = compiled(cell)(params, start, far, mask, no, weights)[0]
  assert_close(got[:2], want[:2], 1e-5)
  assert_close(got[2][:, :T], want[2], 1e-5)
  assert not np.asarray(got[2])[:, T:].any()


# 10. jax-ml/jax#20601, pytorch/pytorch#52248, tensorflow/tensorflow#6209: a NaN
# that `where` hides comes back in the gradient.


@pytest.mark.parametrize(("cell", "method"), WAYS, ids=str)
def test_a_nan_behind_the_mask_is_in_no_gradient(cell, method):
  inputs = drawn(B, T, D)
  clean = run(cell, inputs, mask=HOLES, method=method)
  for garbage in (np.nan, np.inf, -np.inf, 3e38):
    dirty = np.where(HOLES[..., None], inputs, np.float32(garbage))
    assert_same_bits(run(cell, dirty, mask=HOLES, method=method), clean)
  assert all_finite(clean)


# 11. AI-Hypercomputer/maxtext#5295, google/tunix#2310: left padding leaks
# through a causal convolution into the state; the gradient of a norm at zero.

SOME = ("lstm", "qrnn", "rg_lru", "mlstm")


@pytest.mark.parametrize("name", SOME)
def test_left_padding_does_not_leak_into_the_state(name):
  cell, pad = cells.CELLS[name](H), 3
  inputs = drawn(B, T, D)
  params = params_of(cell)
  want = run(cell, inputs, params=params)
  left = np.pad(
    inputs, ((0, 0), (pad, 0), (0, 0)), constant_values=np.float32(np.nan)
  )
  mask = np.arange(T + pad)[None] >= np.full((B, 1), pad)
  weights = np.ones((B, T + pad, H), np.float32)
  weights[:, pad:] = 1 + drawn(1, T, 1, seed=9)
  start = cell.initial_carry(params, (B,))
  no = np.zeros_like(mask)
  got = compiled(cell)(params, start, left, mask, no, weights)
  assert_close(got[1][1][:, pad:], want[1][1], 1e-5)
  assert_close(got[1][0], want[1][0], 1e-5)
  assert_close(got[0][0], want[0][0], 1e-4)
  assert all_finite(got)


NORMS = ("lstm_layer_norm", "gru_layer_norm", "slstm", "rg_lru", "mlstm")


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_of_zeros_has_no_nan_for_a_gradient(name):
  cell = cells.CELLS[name](H)
  params = jax.tree.map(np.zeros_like, params_of(cell))
  found = run(cell, np.zeros((B, T, D), np.float32), params=params)
  assert all_finite(found)


# 12. google/flax#4950, tensorflow/tensorflow#38922: one dropout mask for all
# time steps, or a new one where it should have been kept.


def test_dropout_masks_differ_over_time_and_are_equal_when_locked():
  ones = jnp.ones((2, 50, 40))
  key = jax.random.key(0)
  fresh, locked = (
    np.asarray(dropout(key, ones, 0.5, locked=lock)) != 0
    for lock in (False, True)
  )
  # 3,920 pairs that agree by chance: 5 standard deviations.
  agree = (fresh[:, 1:] == fresh[:, :-1]).mean()
  assert abs(agree - 0.5) < 0.04
  assert (locked == locked[:, :1]).all()
  assert (locked[0] != locked[1]).any()


def test_a_stacks_dropout_is_not_frozen_over_time_nor_over_calls():
  # The same input at each time step, into layers without memory: the outputs of
  # the second differ over time by the mask alone.
  rngs = nnx.Rngs(0)
  layers = [Recurrent(RNN(32), n, rngs=rngs) for n in (D, 32)]
  for layer in layers:
    zero = jax.tree.map(jnp.zeros_like, layer.cell_params())
    params = zero._replace(kernel=0.02 + zero.kernel)
    layer.params = nnx.data(jax.tree.map(nnx.Param, params))
  run = jit(Stack(layers, dropout=0.5))
  inputs = jnp.ones((1, 20, D))
  first, again = (
    np.asarray(run(None, inputs, key=jax.random.key(k))[1][0, :, 0])
    for k in range(2)
  )
  assert len(set(first.tolist())) > 3
  assert (first != again).any()


# 13. pytorch/pytorch#18110, #35661, #90168: an LSTM with dropout gives other
# numbers with the same seed.


def test_an_lstm_with_dropout_and_a_key_does_not_differ_from_run_to_run():
  rngs = nnx.Rngs(0)
  layers = [Recurrent(LSTM(H), n, rngs=rngs) for n in (D, H)]
  graph, state = nnx.split(Stack(layers, dropout=0.4))
  inputs = drawn(B, T, D)

  def loss(state, key):
    outputs = nnx.merge(graph, state)(None, inputs, key=key)[1]
    return jnp.sum(outputs**2)

  gradient = jit(jax.grad(loss))
  one, two, other = (
    jax.tree.leaves(gradient(state, jax.random.key(k))) for k in (3, 3, 4)
  )
  assert_same_bits(one, two)
  assert any((a != b).any() for a, b in zip(one, other, strict=True))


# 14. triton-lang/triton#2359, fla-org/flash-linear-attention#104: scans wrong
# where the combination does not commute, unstable, or wrong at a gate of one.

SCANS = ("scan", "associative", "linear_scan")


@pytest.mark.parametrize("method", SCANS)
@pytest.mark.parametrize("time", [1, 2, 7, 33])
def test_a_scan_does_not_take_its_combination_for_commutative(method, time):
  cell, inputs = cells.MinGRU(H), 3 * drawn(2, time, D)
  params = params_of(cell)
  gates, candidates = np.split(
    inputs.astype(np.float64) @ params.kernel + params.bias, 2, axis=-1
  )
  hidden, want = np.zeros((2, H)), []
  for t in range(time):
    z = reference.sigmoid(gates[:, t])
    hidden = (1 - z) * hidden + z * candidates[:, t]
    want.append(hidden)
  outputs = forward(cell, params, None, inputs, method=method)[1]
  assert_close(outputs, np.stack(want, axis=1), 1e-5)


@pytest.mark.parametrize("method", SCANS)
def test_a_decay_of_exactly_one_keeps_the_state_and_its_gradient(method):
  # A forget gate of sigmoid(200): 1 in float32, and nothing is let in.
  cell = cells.QRNN(H)
  params = jax.tree.map(np.zeros_like, params_of(cell))
  params.bias[H : 2 * H] = 200
  carry = filled(cell.initial_carry(params, (B,)))
  inputs = drawn(B, 20, D)
  (_, d_carry, _), (last, outputs) = run(
    cell, inputs, params=params, carry=carry, method=method
  )
  assert_same_bits(last, carry)
  assert_close(outputs[:, -1], carry.hidden / 2, 1e-6)
  weights = (1 + drawn(1, 20, 1, seed=9)).sum(dtype=np.float64)
  # Every output passes half of its weight on, and the last carry 1.
  want = np.full((B, H), 1 + weights / 2)
  assert_close(d_carry.hidden, want, 1e-5)


@pytest.mark.parametrize("method", SCANS)
@pytest.mark.parametrize("reverse", [False, True])
def test_resets_are_exact_in_the_scans_whatever_came_before(method, reverse):
  cell, inputs = cells.RGLRU(H), drawn(B, T, D)
  resets = np.zeros((B, T), bool)
  resets[:, 3] = True
  after = np.broadcast_to(
    np.arange(T) <= 3 if reverse else np.arange(T) >= 3, (B, T)
  )
  dirty = np.where(after[..., None], inputs, np.nan)
  carry = jax.tree.map(
    lambda x: np.full_like(x, np.nan), cell.initial_carry(params_of(cell), (B,))
  )
  how = {"method": method, "reverse": reverse}
  _, (last, outputs) = run(cell, dirty, carry=carry, resets=resets, **how)
  _, (end, fresh) = run(cell, inputs, mask=after, **how)
  assert np.isnan(outputs[~after]).all()
  assert_close(np.asarray(outputs)[after], np.asarray(fresh)[after], 1e-6)
  assert_close(last, end, 1e-6)


@pytest.mark.parametrize(("cell", "method"), WAYS, ids=str)
def test_a_reset_first_thing_lets_no_nan_into_the_gradients(cell, method):
  carry = jax.tree.map(
    lambda x: np.full_like(x, np.nan), cell.initial_carry(params_of(cell), (B,))
  )
  resets = np.zeros((B, T), bool)
  resets[:, 0] = True
  gradients, out = run(
    cell, drawn(B, T, D), carry=carry, resets=resets, method=method
  )
  assert all_finite((gradients, out))
  assert not any(
    np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients[1])
  )


# 15. pytorch/pytorch#36428, #45048, google-deepmind/optax#1038: mixed
# precision breaks the cell's bias, its sums, and the optimiser's state.

ONES = [
  (cell, method)
  for cell in (RNN(1), cells.MinGRU(1), GRUResetBefore(1))
  for method in methods(cell)
  if method != "cpu_kernel"  # which refuses bfloat16
]


@pytest.mark.parametrize(("cell", "method"), ONES, ids=str)
def test_a_bfloat16_gradient_does_not_stop_at_256_sums(cell, method):
  # With zero parameters every time step adds the same to a bias's gradient, so
  # that a sum kept in bfloat16 stops growing at some 256 time steps.
  params = jax.tree.map(np.zeros_like, params_of(cell, 1))
  count = {}
  for dtype in (jnp.bfloat16, jnp.float32):
    inputs = jnp.ones((1, 600, 1), dtype)
    start = cell.initial_carry(params, (1,))
    weights = np.ones((1, 600, 1), np.float32)
    (d_params, _, d_inputs), _ = compiled(cell, method)(
      params, start, inputs, None, None, weights
    )
    assert d_inputs.dtype == dtype
    assert {x.dtype for x in jax.tree.leaves(d_params)} == {np.dtype("float32")}
    count[dtype] = d_params
  # Half a time step's cotangent is the least that a bias has here.
  assert np.abs(count[jnp.float32].bias).max() > 299
  assert_close(count[jnp.bfloat16], count[jnp.float32], 1e-2)


@pytest.mark.parametrize("method", SCANS)
def test_a_bfloat16_state_does_not_stop_at_256(method):
  # The sum of ones, by a decay of one.
  cell = cells.LRU(1)
  params = jax.tree.map(np.zeros_like, params_of(cell, 1))
  params = params._replace(
    log_rate=params.log_rate - 50, log_phase=params.log_phase - 50
  )
  params.kernel[0] = 1
  inputs = jnp.ones((1, 300, 1), jnp.bfloat16)
  last, _ = forward(cell, params, None, inputs, method=method)
  assert last.real.dtype == jnp.float32
  np.testing.assert_array_equal(last.real, [[300]])


@pytest.mark.usefixtures("standard_promotion")  # optax needs it
def test_bfloat16_training_does_not_change_the_dtypes_of_params_and_optimiser():
  cell = LSTM(H)
  params = jax.tree.map(jnp.asarray, params_of(cell))
  optimizer = make_optimizer(OptimizerConfig(), steps=2)

  @jit
  def step(params, state):
    outputs = lambda p: unroll(cell, p, None, jnp.ones((B, T, D), jnp.bfloat16))
    loss = lambda p: jnp.sum(outputs(p)[1].astype(jnp.float32))
    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradient, state, params, value=value)
    return optax.apply_updates(params, updates), state

  avals = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
  before = params, optimizer.init(params)
  after = step(*before)
  assert avals(after) == avals(before)
  assert (after[0].bias != params.bias).all()
