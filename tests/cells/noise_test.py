"""Tests dropout and zoneout: executors use equal masks, as in the papers.

The papers' formulas are written in NumPy, with the masks that were drawn.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recurrent import METHODS, cells, explain, newton, unroll
from recurrent.cells import (
  GRU,
  LRU,
  LSTM,
  RNN,
  SLSTM,
  Diagonal,
  LowRank,
  LSTMVariant,
  RecurrentDropout,
  UpdateDropout,
  WeightDrop,
  WeightNorm,
  Zoneout,
  weight_drop,
)
from recurrent.kernels import cpu
from tests.cells import reference
from tests.cells.cases import assert_close, assert_same_bits, jit

B, T, D, H = 3, 9, 2, 4
X = jnp.ones((B, T, D))
KEY = jax.random.key(3, impl="rbg")

NOISY = {
  "zoneout": Zoneout(LSTM(H), 0.3, 0.4),
  "zoneout of a GRU": Zoneout(GRU(H), 0.5),
  "update dropout": UpdateDropout(LSTM(H), 0.4),
  "locked update dropout": UpdateDropout(GRU(H), 0.4, locked=True),
  "update dropout, peepholes": UpdateDropout(LSTMVariant(H, peepholes=True)),
  "recurrent dropout": RecurrentDropout(LSTM(H), 0.5),
  "recurrent dropout, diagonal": RecurrentDropout(
    GRU(H, structure=Diagonal()), 0.5
  ),
  "weight drop": WeightDrop(LSTM(H), 0.5),
  "weight drop, low rank": WeightDrop(RNN(H, structure=LowRank(2)), 0.5),
  "weight norm": WeightNorm(GRU(H)),
  "all": Zoneout(
    RecurrentDropout(WeightDrop(UpdateDropout(LSTM(H), 0.3), 0.3), 0.3),
    0.2,
    0.2,
  ),
  "more": RecurrentDropout(Zoneout(WeightNorm(LSTM(H)), 0.3, 0.1), 0.3),
}


def draw(cell, dtype=np.float64):
  """Parameters with no bias of zero, a carry, inputs, a mask, resets."""
  random = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: x + 0.3 * random.normal(size=x.shape).astype(dtype),
    jax.tree.map(np.asarray, cell.init(KEY, D)),
  )
  carry = jax.tree.map(
    lambda x: random.normal(size=(B, *x.shape)).astype(dtype),
    cell.initial_carry(params, ()),
  )
  inputs = random.normal(size=(B, T, D)).astype(dtype)
  mask, resets = random.random((2, B, T)) < np.array([0.8, 0.2])[:, None, None]
  return params, carry, inputs, mask, resets


def both_passes(cell, method, key, reverse=False):
  """The function to outputs, carry, and the gradients of their squares."""

  def loss(params, carry, inputs, mask, resets):
    params, inputs = cell.perturb(params, inputs, key)
    out = unroll(
      cell,
      params,
      carry,
      inputs,
      mask=mask,
      resets=resets,
      method=method,
      reverse=reverse,
    )
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(out)), out

  return jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


# In evaluation most are the cell that they wrap, which has tests of its own.
EVALUATED = ("zoneout", "zoneout of a GRU", "update dropout", "all", "more")


@pytest.mark.parametrize(
  ("name", "phase"),
  [
    *((name, "training") for name in NOISY),
    *((name, "evaluation") for name in EVALUATED),
  ],
)
@pytest.mark.usefixtures("x64")
def test_every_executor_gives_what_the_scan_gives(name, phase):
  cell, key = NOISY[name], KEY if phase == "training" else None
  case = draw(cell)
  want = both_passes(cell, "scan", key, reverse=True)(*case)
  for method in ("auto", "fused", "newton"):
    got = both_passes(cell, method, key, reverse=True)(*case)
    assert_close(got, want, 1e-11)


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.usefixtures("x64")
def test_without_a_key_nothing_is_drawn(name):
  cell = NOISY[name]
  params, _, inputs, *_ = draw(cell)
  again = cell.perturb(params, inputs, None)
  assert_same_bits(again, (params, inputs))


def by_loop_in_cpp(cell, key):
  """Whether "auto" runs a cell by a loop in C++, with noise drawn by `key`."""
  plain = cell.init(KEY, D)

  def run(inputs):
    params, inputs = cell.perturb(plain, inputs, key)
    return unroll(cell, params, None, inputs)

  return "recurrent_kernel" in str(jax.make_jaxpr(run)(X))


@pytest.mark.parametrize(
  ("cell", "training", "evaluation"),
  [
    (WeightDrop(LSTM(H)), True, True),
    (WeightNorm(GRU(H)), True, True),
    (WeightNorm(WeightDrop(RNN(H))), True, True),
    (RecurrentDropout(LSTM(H)), False, True),
    (UpdateDropout(GRU(H)), False, True),
    (WeightDrop(UpdateDropout(LSTM(H))), False, True),
    (Zoneout(LSTM(H)), False, False),
    (WeightDrop(LSTM(H, structure=LowRank(2))), False, False),
  ],
  ids=repr,
)
def test_noise_outside_the_time_step_leaves_the_loop_in_cpp(
  cell, training, evaluation, monkeypatch
):
  monkeypatch.setattr(cpu, "unavailable", lambda: "")
  assert by_loop_in_cpp(cell, KEY) == training
  assert by_loop_in_cpp(cell, None) == evaluation
  said = explain(cell)
  assert ("cpu_kernel: possible" in said) == training
  without = said.splitlines()[1]
  assert without.startswith("without noise, as ") == (training != evaluation)
  assert ("by 'cpu_kernel'" in without) == (training != evaluation)


def test_explain_and_errors_say_what_noise_does_in_a_time_step():
  for cell, why in (
    (Zoneout(LSTM(H)), "chooses between old and new values of each unit"),
    (UpdateDropout(LSTM(H)), "drops units of the candidate"),
    (RecurrentDropout(LSTM(H)), "drops units of each row's hidden state"),
  ):
    why += ", and no loop in C++ does"
    assert f"cpu_kernel: no, it {why}" in explain(cell)
    with pytest.raises(ValueError, match=re.escape(why)):
      unroll(cell, cell.init(KEY, D), None, X, method="cpu_kernel")


@pytest.mark.parametrize("name", NOISY)
def test_explain_describes_every_wrapper(name):
  assert f"{NOISY[name]} runs by " in explain(NOISY[name])


@pytest.mark.parametrize("name", ["weight norm", "recurrent dropout", "all"])
@pytest.mark.usefixtures("x64")
def test_forward_and_second_derivatives_are_those_of_the_scan(name):
  cell = NOISY[name]
  params, carry, inputs, *_ = draw(cell)
  along = jnp.ones_like(inputs)

  def derivatives(method):
    def total(x):
      noisy, x = cell.perturb(params, x, KEY)
      return (unroll(cell, noisy, carry, x, method=method)[1] ** 2).sum()

    product = lambda x: jnp.vdot(jax.grad(total)(x), along)
    return lambda x: (
      jax.jvp(total, (x,), (along,))[1],
      jax.jvp(jax.grad(total), (x,), (along,))[1],
      jax.grad(product)(x),
    )

  got, want = (jit(derivatives(m))(inputs) for m in ("auto", "scan"))
  assert_close(got, want, 1e-10)


@pytest.mark.usefixtures("x64")
def test_newton_solves_it_and_does_not_fall_back():
  for cell in (NOISY["recurrent dropout, diagonal"], NOISY["all"]):
    params, carry, inputs, mask, resets = draw(cell)
    params, inputs = cell.perturb(params, inputs, KEY)
    report = newton(cell, params, carry, inputs, mask=mask, resets=resets)[2]
    assert bool(report.converged)


def lstm_time_step(
  p,
  carry,
  x,
  d_h=1.0,
  d_g=1.0,
  zones=(0.0, 0.0),
):
  h, c = carry
  sums = x @ p.kernel + (d_h * h) @ p.recurrent + p.bias
  i, f, g, o = np.split(sums, 4)
  i, f, o = (reference.sigmoid(s) for s in (i, f, o))
  new_c = f * c + i * (d_g * np.tanh(g))
  new_h = o * np.tanh(new_c)
  h = zones[0] * h + (1 - zones[0]) * new_h
  return (h, zones[1] * c + (1 - zones[1]) * new_c), h


def by_hand(params, carry, inputs, noise):
  """Rows and time steps one by one; `noise(row, t)` gives keywords."""
  outputs = np.zeros((B, T, H))
  for row in range(B):
    now = tuple(x[row] for x in carry)
    for t in range(T):
      now, outputs[row, t] = lstm_time_step(
        params, now, inputs[row, t], **noise(row, t)
      )
  return outputs


def outputs_of(cell, params, carry, inputs):
  return unroll(cell, params, carry, inputs)[1]


@pytest.mark.usefixtures("x64")
def test_zoneout_keeps_the_units_that_its_masks_name():
  cell = Zoneout(LSTM(H), 0.3, 0.4)
  params, carry, inputs, *_ = draw(cell)
  noisy_params, noisy = cell.perturb(params, inputs, KEY)
  zones = [np.asarray(x, np.float64) for x in noisy.keep]
  want = by_hand(
    params, carry, inputs, lambda b, t: {"zones": [z[b, t] for z in zones]}
  )
  assert_close(outputs_of(cell, noisy_params, carry, noisy), want, 1e-12)
  assert 0 < zones[0].mean() < zones[1].mean() < 1


@pytest.mark.usefixtures("x64")
def test_zoneout_in_evaluation_is_the_expectation_of_its_time_step():
  cell = Zoneout(LSTM(H), 0.3, 0.4)
  params, carry, inputs, *_ = draw(cell)
  want = by_hand(params, carry, inputs, lambda b, t: {"zones": (0.3, 0.4)})
  assert_close(outputs_of(cell, params, carry, inputs), want, 1e-12)


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.usefixtures("x64")
def test_update_dropout_zeroes_the_candidate_only(locked):
  cell = UpdateDropout(LSTM(H), 0.4, locked)
  params, carry, inputs, *_ = draw(cell)
  noisy_params, noisy = cell.perturb(params, inputs, KEY)
  keep = np.asarray(noisy.keep)
  want = by_hand(params, carry, inputs, lambda b, t: {"d_g": keep[b, t] / 0.6})
  assert_close(outputs_of(cell, noisy_params, carry, noisy), want, 1e-12)
  assert (keep == keep[:, :1]).all() == locked


@pytest.mark.usefixtures("x64")
def test_recurrent_dropout_masks_what_recurs_alike_at_all_time_steps():
  cell = RecurrentDropout(LSTM(H), 0.5)
  params, carry, inputs, *_ = draw(cell)
  noisy, same = cell.perturb(params, inputs, KEY)
  assert same is inputs
  keep = np.asarray(noisy.keep)
  assert set(keep.ravel()) == {0.0, 2.0}
  want = by_hand(params.cell, carry, inputs, lambda b, t: {"d_h": keep[b]})
  assert_close(outputs_of(cell, noisy, carry, inputs), want, 1e-12)


def test_weight_drop_zeroes_weights_of_the_recurrent_matrix_only():
  params = LSTM(64).init(KEY, 5)
  dropped = weight_drop(KEY, params, 0.25)
  assert dropped.kernel is params.kernel and dropped.bias is params.bias
  zero = np.asarray(dropped.recurrent == 0)
  # 16,384 draws: five standard deviations.
  np.testing.assert_allclose(zero.mean(), 0.25, atol=0.017)
  np.testing.assert_allclose(
    dropped.recurrent[~zero], params.recurrent[~zero] / 0.75, rtol=1e-6
  )
  assert weight_drop(None, params, 0.25) is params


@pytest.mark.usefixtures("x64")
def test_weight_norm_starts_as_the_cell_and_scales_columns():
  cell = WeightNorm(LSTM(H))
  params = cell.init(KEY, D)
  inputs = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
  want = outputs_of(cell.cell, params.cell, None, inputs)
  assert_close(outputs_of(cell, params, None, inputs), want, 1e-6)
  doubled = params._replace(gain=2 * params.gain)
  by_two = params.cell._replace(recurrent=2 * params.cell.recurrent)
  want = outputs_of(cell.cell, by_two, None, inputs)
  assert_close(outputs_of(cell, doubled, None, inputs), want, 1e-6)
  # Lengths of the directions mean nothing.
  longer = params._replace(
    cell=params.cell._replace(recurrent=3 * params.cell.recurrent)
  )
  want = outputs_of(cell, params, None, inputs)
  assert_close(outputs_of(cell, longer, None, inputs), want, 1e-6)


@pytest.mark.parametrize("name", sorted(NOISY.keys() - {"weight norm"}))
def test_another_key_draws_another_noise_and_the_same_the_same(name):
  cell = NOISY[name]
  params, carry, inputs, *_ = draw(cell, np.float32)

  @jit
  def outputs(key):
    return outputs_of(cell, *_with(cell.perturb(params, inputs, key), carry))

  first, again, other = map(outputs, (KEY, KEY, jax.random.key(4, impl="rbg")))
  assert_same_bits(first, again)
  assert (np.asarray(first) != np.asarray(other)).any()


def _with(perturbed, carry):
  return perturbed[0], carry, perturbed[1]


@pytest.mark.parametrize(
  ("build", "says"),
  [
    (lambda: Zoneout(LRU(H)), "takes a GatedCell"),
    (lambda: Zoneout(LSTM(H), 1.0), "rate must be in"),
    (lambda: Zoneout(LSTM(H), 0.1, -0.1), "memory_rate must be in"),
    (lambda: Zoneout(GRU(H), 0.1, 0.1), "memory_rate needs"),
    (lambda: Zoneout(SLSTM(H)), "knows the carries"),
    (lambda: UpdateDropout(RNN(H)), "`candidate`"),
    (lambda: UpdateDropout(Zoneout(LSTM(H))), "`candidate`"),
    (lambda: RecurrentDropout(LSTM(H), 1.5), "rate must be in"),
    (lambda: WeightNorm(LSTM(H, structure=Diagonal())), "dense matrix"),
    (lambda: weight_drop(KEY, LRU(H).init(KEY, D), 0.1), "`recurrent`"),
    (lambda: weight_drop(KEY, LSTM(H).init(KEY, D), -1), "rate must be in"),
  ],
)
def test_what_cannot_be_is_refused(build, says):
  with pytest.raises(ValueError, match=says):
    build()


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before", "lru"])
@pytest.mark.usefixtures("x64")
def test_an_initial_carry_of_ones_own_is_what_resets_go_back_to(name):
  cell = cells.get(name)(H)
  params, carry, inputs, mask, resets = draw(cell)
  own = jax.tree.map(lambda x: x[::-1].copy(), carry)
  resets[:, 4] = mask[:, 4] = True
  kinds = [m for m in METHODS if _can(cell, m)]
  assert len(kinds) >= 2

  def run(initial, method):
    whole = functools.partial(unroll, cell, params, method=method)
    return whole(None, inputs, mask=mask, resets=resets, initial=initial)

  for method in kinds:
    # After the reset it is a sequence that begins with that carry.
    got = run(own, method)
    after = resets[:, 4:].copy()
    after[:, 0] = False
    want = unroll(
      cell,
      params,
      own,
      inputs[:, 4:],
      mask=mask[:, 4:],
      resets=after,
      initial=own,
    )
    assert_close((got[0], got[1][:, 4:]), want, 1e-12)
    # And the gradient finds its way into it.
    total = lambda initial, m=method: jnp.sum(run(initial, m)[1] ** 2)
    slopes, directions = jax.grad(total)(own), own
    along = sum(
      jnp.vdot(*pair)
      for pair in zip(
        jax.tree.leaves(slopes), jax.tree.leaves(directions), strict=True
      )
    )
    move = lambda by: jax.tree.map(lambda x: (1 + by) * x, own)
    high, low = total(move(1e-5)), total(move(-1e-5))
    assert_close(along, (high - low) / 2e-5, 1e-7)


def _can(cell, method):
  try:
    unroll(cell, cell.init(KEY, D), None, jnp.ones((1, 2, D)), method=method)
  except ValueError:
    return False
  return True
