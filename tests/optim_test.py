"""Each flag against plain optax or arithmetic by hand.

Most tests use SGD with a learning rate of 1: the update is then minus the
gradient as the rest of the chain has changed it.
"""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from recurrent import cells, nn, optim
from recurrent.cells.noise import WeightNorm
from recurrent.errors import ConfigError
from recurrent.optim import OptimizerConfig, make_optimizer, make_schedule

PARAMS = {
  "kernel": np.array([[3.0, 1.0], [4.0, -1.0], [0.0, 2.0]], np.float32),
  "bias": np.array([2.0, -0.5], np.float32),
}

# optax's bias corrections raise Python floats to integer counts.
pytestmark = pytest.mark.usefixtures("standard_promotion")


def random_grads(count, seed=0):
  rng = np.random.default_rng(seed)
  return [
    {k: rng.normal(size=p.shape).astype(np.float32) for k, p in PARAMS.items()}
    for _ in range(count)
  ]


def zeros():
  return {k: np.zeros_like(p) for k, p in PARAMS.items()}


def plain(**choices):
  """SGD at a rate of 1 and nothing else, but for what is chosen."""
  return OptimizerConfig(
    **{"optimizer": "sgd", "learning_rate": 1.0, "clip_norm": 0.0, **choices}
  )


def run(optimizer, grads, losses=None, params=PARAMS):
  """All updates, each applied before the next; and the last parameters."""
  losses = [1.0] * len(grads) if losses is None else losses
  update = jax.jit(optimizer.update)
  params = jax.tree.map(jnp.asarray, params)
  state = optimizer.init(params)
  updates = []
  for grad, loss in zip(grads, losses, strict=True):
    updated, state = update(grad, state, params, value=jnp.float32(loss))
    params = optax.apply_updates(params, updated)
    updates.append(jax.device_get(updated))
  return updates, jax.device_get(params)


def run_config(config, grads, steps=100, **kwargs):
  return run(make_optimizer(config, steps), grads, **kwargs)


def rates(config, count, losses=None, steps=100):
  """The rate of each update: SGD's step for a gradient of one."""
  ones = jax.tree.map(np.ones_like, PARAMS)
  updates, _ = run_config(config, [ones] * count, steps, losses=losses)
  return [-float(u["bias"][0]) for u in updates]


def assert_close(got, expected):
  # float32, a few operations: 8 units in the last place.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
    got,
    expected,
  )


# Clipping.


def gradient_of_norm_five():
  grads = zeros()
  grads["kernel"][0, 1], grads["bias"][0] = 3.0, 4.0
  return grads


@pytest.mark.parametrize(
  "limit,kernel,bias",
  [(1.0, 0.6, 0.8), (2.5, 1.5, 2.0), (5.1, 3.0, 4.0), (0.0, 3.0, 4.0)],
)
def test_clip_norm_limits_the_norm_over_all_parameters(limit, kernel, bias):
  [update], _ = run_config(plain(clip_norm=limit), [gradient_of_norm_five()])
  expected = zeros()
  expected["kernel"][0, 1], expected["bias"][0] = -kernel, -bias
  assert_close(update, expected)


def test_clip_value_limits_each_entry_on_both_sides():
  grads = {"kernel": np.array([[0.2, -3.0]] * 3), "bias": np.array([7.0, -0.1])}
  [update], _ = run_config(plain(clip_value=0.5), [grads])
  assert_close(
    update,
    {"kernel": np.array([[-0.2, 0.5]] * 3), "bias": np.array([-0.5, 0.1])},
  )


def test_clip_adaptive_limits_each_unit_by_the_norm_of_its_weights():
  grads = zeros()
  grads["kernel"][:, 0] = 6.0, 8.0, 0.0  # norm 10; the weights' norm is 5
  grads["kernel"][:, 1] = 0.01, 0.0, 0.0  # far below 0.1 * sqrt(6)
  [update], _ = run_config(plain(clip_adaptive=0.1), [grads])
  expected = zeros()
  expected["kernel"][:, 0] = -0.3, -0.4, 0.0
  expected["kernel"][:, 1] = -0.01, 0.0, 0.0
  assert_close(update, expected)


@pytest.mark.parametrize("penalty", ["l1", "l2"])
@pytest.mark.parametrize("clip", ["clip_norm", "clip_value"])
def test_penalties_are_clipped_with_the_gradient(penalty, clip):
  config = plain(**{penalty: 1000.0, clip: 0.01})
  [update], _ = run_config(config, [zeros()])
  norm = np.sqrt((update["kernel"] ** 2).sum())
  largest = np.abs(update["kernel"]).max()
  limited = norm if clip == "clip_norm" else largest
  np.testing.assert_allclose(limited, 0.01, rtol=1e-5)


def test_decoupled_decay_is_not_clipped():
  config = plain(weight_decay=0.5, clip_norm=0.01, clip_value=0.01)
  [update], _ = run_config(config, [zeros()])
  assert_close(update["kernel"], -0.5 * PARAMS["kernel"])


# Penalties and decay.


def test_l1_adds_the_sign_of_each_matrix_entry():
  [update], _ = run_config(plain(l1=0.25), [zeros()])
  assert_close(
    update["kernel"],
    np.array([[-0.25, -0.25], [-0.25, 0.25], [0.0, -0.25]]),
  )


def test_l2_adds_a_share_of_each_matrix_entry():
  [update], _ = run_config(plain(l2=0.25), [zeros()])
  assert_close(update["kernel"], -0.25 * PARAMS["kernel"])


@pytest.mark.parametrize("part", ["l1", "l2", "weight_decay"])
def test_biases_are_neither_decayed_nor_penalised(part):
  [update], _ = run_config(plain(**{part: 0.25}), [zeros()])
  assert (update["bias"] == 0).all()


# What of each cell is a matrix of a product, by its nature. All else, whatever
# its rank, is a bias, a scale, a rate, a peephole or a gain. A cell that is not
# here has the usual two matrices.
USUAL = {"kernel", "recurrent"}
DECAYED = {
  "lstm_projected": USUAL | {"projection"},
  "mogrifier": USUAL | {"by_hidden", "by_inputs"},
  "gru_d": USUAL | {"observed_kernel", "hidden_decay"},
  **dict.fromkeys(("lru", "s5"), {"kernel", "output", "skip"}),
  **dict.fromkeys(("rg_lru", "mlstm"), {"kernel", "gates"}),
  **dict.fromkeys(("min_gru", "min_lstm", "qrnn", "sru"), {"kernel"}),
}


def decayed_names(model):
  """The last names on the paths of what is decayed."""
  found = jax.tree.leaves_with_path(optim.decayed(model))
  names = lambda path: [k.key for k in path if isinstance(k.key, str)]
  return {names(path)[-1] for path, is_decayed in found if is_decayed}


@pytest.mark.parametrize("name", cells.CELLS)
def test_what_is_decayed_of_a_cell_are_its_matrices(name):
  layer = lambda: nn.Recurrent(
    cells.CELLS[name](8), 3, learn_carry=True, rngs=nnx.Rngs(0)
  )
  assert decayed_names(nnx.eval_shape(layer)) == DECAYED.get(name, USUAL)


@dataclasses.dataclass(frozen=True)
class Constant(cells.RNN):
  """An RNN whose recurrent weights are not to be decayed."""

  undecayed = ("recurrent",)


def test_gains_and_what_a_cell_names_are_not_decayed_within_noise_either():
  for cell, names in [
    (WeightNorm(cells.LSTM(4)), USUAL),
    (cells.RecurrentDropout(Constant(4)), {"kernel"}),
    (cells.LSTM(4, structure=cells.LowRank(2)), {"kernel", "down", "up"}),
  ]:
    layer = nn.Recurrent(cell, 3, rngs=nnx.Rngs(0))
    assert decayed_names(layer) == names


def test_a_module_of_its_own_is_judged_by_names_and_says_otherwise():
  class Own(nnx.Module):
    def __init__(self, rngs):
      self.linear = nnx.Linear(3, 3, rngs=rngs)
      self.norm = nnx.LayerNorm(3, rngs=rngs)
      self.embed = nnx.Embed(5, 3, rngs=rngs)
      self.attention = nnx.MultiHeadAttention(2, 4, 4, decode=False, rngs=rngs)
      self.layers_bias = nnx.Param(jnp.zeros((2, 3)))
      self.log_rate = nnx.Param(jnp.zeros((2, 3)), decayed=False)
      self.vector = nnx.Param(jnp.zeros(3), decayed=True)

  names = {"kernel", "embedding", "vector"}
  assert decayed_names(Own(nnx.Rngs(0))) == names


@pytest.mark.parametrize("part", ["l1", "l2", "weight_decay"])
def test_the_bias_of_a_stack_of_layers_is_left_alone(part):
  params = cells.RHN(3).init(jax.random.key(0), 2)
  optimizer = make_optimizer(plain(**{part: 0.25}), 10)
  still = jax.tree.map(jnp.zeros_like, params)
  [update], _ = run(optimizer, [still], params=params)
  assert (update.bias == 0).all() and (update.recurrent != 0).any()


def test_what_is_decayed_may_be_given():
  given = {"kernel": False, "bias": True}
  optimizer = make_optimizer(plain(weight_decay=0.5), 10, given)
  [update], _ = run(optimizer, [zeros()])
  assert (update["kernel"] == 0).all()
  assert_close(update["bias"], -0.5 * PARAMS["bias"])


def test_decay_with_adam_is_adamw_under_the_same_schedule():
  config = OptimizerConfig(
    optimizer="adam",
    learning_rate=0.1,
    schedule="cosine",
    warmup_steps=3,
    clip_norm=0.0,
    weight_decay=0.2,
  )
  grads = random_grads(8)
  adamw = optax.adamw(
    make_schedule(config, 8), weight_decay=0.2, mask=optim.is_matrix
  )
  _, expected = run(optax.with_extra_args_support(adamw), grads)
  assert_close(run_config(config, grads, steps=8)[1], expected)


def test_decay_is_times_the_learning_rate_whatever_the_optimiser():
  config = plain(learning_rate=0.1, weight_decay=0.5)
  grads = random_grads(2)
  updates, _ = run_config(config, grads)
  moved = PARAMS["kernel"] + updates[0]["kernel"]
  assert_close(updates[1]["kernel"], -0.1 * grads[1]["kernel"] - 0.05 * moved)


@pytest.mark.parametrize(
  "name",
  [
    name
    for name in optim.OPTIMIZERS
    if "weight_decay" in inspect.signature(getattr(optax, name)).parameters
  ],
)
def test_without_weight_decay_no_optimiser_decays(name):
  config = OptimizerConfig(optimizer=name, learning_rate=1.0)
  _, params = run_config(config, [zeros()] * 2)
  jax.tree.map(np.testing.assert_array_equal, params, PARAMS)


# Schedules.


@pytest.mark.parametrize("schedule", ["constant", "plateau"])
def test_without_warm_up_the_rate_is_constant(schedule):
  rate = make_schedule(OptimizerConfig(schedule=schedule, learning_rate=0.5), 9)
  assert [float(rate(step)) for step in (0, 1, 8, 100)] == [0.5] * 4


def test_warm_up_rises_in_even_steps_and_loses_no_update():
  config = OptimizerConfig(learning_rate=1.0, warmup_steps=4)
  rate = make_schedule(config, 100)
  got = [float(rate(step)) for step in range(7)]
  np.testing.assert_allclose(got, [0.2, 0.4, 0.6, 0.8, 1, 1, 1], rtol=1e-6)


def test_cosine_falls_from_the_peak_to_the_final_rate():
  config = OptimizerConfig(
    learning_rate=2.0, schedule="cosine", final_learning_rate=0.1
  )
  rate = make_schedule(config, 12)
  got = [float(rate(step)) for step in (0, 3, 4, 6, 12, 20)]
  # 0.2 + 1.8 (1 + cos(pi t / 12)) / 2, at t = 0, 3, 4, 6, 12 and after it.
  expected = [2.0, 1.736396, 1.55, 1.1, 0.2, 0.2]
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_cosine_begins_where_the_warm_up_ends():
  config = OptimizerConfig(learning_rate=1.0, schedule="cosine", warmup_steps=4)
  rate = make_schedule(config, 10)
  got = [float(rate(step)) for step in (3, 4, 7, 10)]
  np.testing.assert_allclose(got, [0.8, 1.0, 0.5, 0.0], atol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "plateau"])
def test_a_warm_up_longer_than_the_run_reaches_the_peak_at_its_end(schedule):
  config = OptimizerConfig(
    learning_rate=1.0, schedule=schedule, warmup_steps=1000
  )
  rate = make_schedule(config, 5)
  got = [float(rate(step)) for step in range(5)]
  np.testing.assert_allclose(got, [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "plateau"])
def test_a_run_of_one_step_has_a_positive_rate(schedule):
  config = OptimizerConfig(schedule=schedule, warmup_steps=3)
  assert float(make_schedule(config, 1)(0)) > 0


def test_the_optimiser_follows_the_schedule():
  config = plain(schedule="cosine", warmup_steps=2)
  schedule = make_schedule(config, 6)
  expected = [float(schedule(step)) for step in range(6)]
  np.testing.assert_allclose(rates(config, 6, steps=6), expected, rtol=1e-6)


# Plateau.


def test_a_plateau_halves_the_rate_after_the_windows_of_its_patience():
  config = plain(schedule="plateau", plateau_window=2, plateau_patience=3)
  # The first window is the best so far; three more without a better one.
  expected = [1.0] * 7 + [0.5] * 6 + [0.25] * 2
  assert rates(config, 15) == expected


def test_a_falling_loss_is_no_plateau():
  config = plain(schedule="plateau", plateau_window=1, plateau_patience=2)
  losses = [0.9**step for step in range(10)]
  assert rates(config, 10, losses) == [1.0] * 10


def test_a_better_window_begins_the_patience_anew():
  config = plain(schedule="plateau", plateau_window=1, plateau_patience=2)
  losses = [5.0, 5.0, 4.0, 4.5, 4.5, 4.5]
  assert rates(config, 6, losses) == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5]


def test_a_window_counts_by_its_mean():
  config = plain(schedule="plateau", plateau_window=2, plateau_patience=1)
  # Means 3, 2, 1: each better, though every other loss is worse.
  losses = [1.0, 5.0, 0.0, 4.0, -1.0, 3.0]
  assert rates(config, 6, losses) == [1.0] * 6


def test_the_plateau_factor_is_what_the_rate_is_multiplied_with():
  config = plain(
    schedule="plateau",
    plateau_window=1,
    plateau_patience=1,
    plateau_factor=0.25,
  )
  assert rates(config, 3) == [1.0, 0.25, 0.0625]


def test_a_flat_negative_loss_is_a_plateau():
  # A log-density's loss can be below zero.
  config = plain(schedule="plateau", plateau_window=1, plateau_patience=1)
  assert rates(config, 2, [-1.0, -1.0]) == [1.0, 0.5]


def test_a_plateau_slows_the_decay_too():
  config = plain(
    schedule="plateau",
    plateau_window=1,
    plateau_patience=1,
    weight_decay=0.5,
  )
  updates, _ = run_config(config, [zeros()] * 2)
  moved = PARAMS["kernel"] + updates[0]["kernel"]
  assert_close(updates[1]["kernel"], -0.5 * 0.5 * moved)


@pytest.mark.parametrize(
  "impossible",
  [
    {"plateau_factor": 0.0},
    {"plateau_factor": 1.0},
    {"plateau_patience": 0},
    {"plateau_min": 1.0},
    {"plateau_min": -0.1},
  ],
)
def test_a_plateau_that_cannot_work_is_refused(impossible):
  with pytest.raises(ConfigError, match="|".join(impossible)):
    make_optimizer(OptimizerConfig(schedule="plateau", **impossible), 10)


def test_a_plateau_has_a_least_rate():
  fast = {"plateau_window": 1, "plateau_patience": 1, "plateau_factor": 0.1}
  config = plain(schedule="plateau", learning_rate=2.0, **fast)
  np.testing.assert_allclose(rates(config, 9)[-1], 2.0 * 1e-3, rtol=1e-6)
  config = plain(schedule="plateau", plateau_min=0.05, **fast)
  np.testing.assert_allclose(
    rates(config, 4), [1.0, 0.1, 0.05, 0.05], rtol=1e-6
  )


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("schedule", optim.SCHEDULES)
def test_the_rate_that_is_read_off_the_state_is_the_one_used(
  schedule, accumulate, decay
):
  choices = {"plateau_window": 1, "plateau_patience": 1}
  choices = choices if schedule == "plateau" else {}
  config = plain(
    schedule=schedule,
    accumulate=accumulate,
    warmup_steps=2,
    weight_decay=decay,
    **choices,
  )
  optimizer = make_optimizer(config, 18)
  read = jax.jit(optim.make_learning_rate(config, 18))
  params = jax.tree.map(jnp.asarray, PARAMS)
  ones = jax.tree.map(jnp.ones_like, params)
  state = optimizer.init(params)
  got, used = [], []
  for _ in range(18):
    update, state = optimizer.update(
      ones, state, params, value=jnp.float32(1.0)
    )
    # Nothing moves while gradients accumulate; biases are not decayed.
    used.append(-float(update["bias"][0]) or (used or [1 / 3])[-1])
    got.append(float(read(state)))
  np.testing.assert_allclose(got, used, rtol=1e-6)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_the_rate_can_be_read_off_every_optimiser(name):
  config = OptimizerConfig(optimizer=name, learning_rate=0.5, weight_decay=0.1)
  state = make_optimizer(config, 10).init(PARAMS)
  assert float(optim.make_learning_rate(config, 10)(state)) == 0.5


# Accumulation.


def test_micro_batches_accumulate_to_one_big_batch():
  config = {
    "learning_rate": 0.1,
    "schedule": "cosine",
    "warmup_steps": 2,
    "weight_decay": 0.1,
    "l2": 0.1,
    "clip_norm": 0.5,
  }
  grads = random_grads(12)
  big = [
    jax.tree.map(lambda *parts: np.mean(parts, axis=0), *grads[i : i + 4])
    for i in range(0, 12, 4)
  ]
  _, expected = run_config(OptimizerConfig(**config), big, steps=3)
  _, got = run_config(OptimizerConfig(**config, accumulate=4), grads, steps=12)
  # The means differ in their last bit, which Adam's first step magnifies.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected
  )


def test_the_schedule_counts_updates_and_not_micro_batches():
  config = plain(warmup_steps=3, accumulate=2)
  got = rates(config, 10)
  expected = [0, 0.25, 0, 0.5, 0, 0.75, 0, 1, 0, 1]
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_the_schedule_ends_with_the_last_accumulated_update():
  config = OptimizerConfig(schedule="cosine", accumulate=4)
  assert float(make_schedule(config, 100)(25)) == 0


def test_a_plateau_works_with_accumulation():
  config = plain(
    schedule="plateau", plateau_window=1, plateau_patience=1, accumulate=2
  )
  assert rates(config, 6) == [0, 1.0, 0, 0.5, 0, 0.25]


# Names.


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_every_optimiser_steps_down_the_gradient(name):
  optimizer = make_optimizer(
    OptimizerConfig(optimizer=name, warmup_steps=2), 10
  )
  # Constant gradients: whatever an optimiser averages, down is down.
  grads = random_grads(1) * 4
  updates, params = run(optimizer, grads)
  slope = sum((grads[0][k] * (params[k] - PARAMS[k])).sum() for k in PARAMS)
  assert np.isfinite(slope) and slope < 0


@pytest.mark.parametrize(
  "name", ["adam", "adamw", "sgd", "lion", "rmsprop", "adafactor", "lamb"]
)
def test_the_common_optimisers_are_accepted(name):
  make_optimizer(OptimizerConfig(optimizer=name), 10)


@pytest.mark.parametrize(
  "name", ["scale_by_learning_rate", "scale_by_rprop", "clip", "lbfgs", ""]
)
def test_what_is_no_optimiser_is_refused(name):
  with pytest.raises(ConfigError, match=f"`optimizer={name}` "):
    make_optimizer(OptimizerConfig(optimizer=name), 10)


@pytest.mark.parametrize(
  "name,near", [("addam", "adam"), ("Adam", "adam"), ("rms_prop", "rmsprop")]
)
def test_a_misspelt_optimiser_is_refused_with_the_nearest_name(name, near):
  with pytest.raises(ConfigError, match=f"`optimizer={name}` ") as info:
    make_optimizer(OptimizerConfig(optimizer=name), 10)
  assert info.value.remedy.startswith(f"did you mean `optimizer={near}`? ")
  for known in optim.OPTIMIZERS:
    assert known in info.value.remedy


def test_an_unknown_schedule_is_refused_with_those_there_are():
  with pytest.raises(ConfigError, match="`schedule=linear` ") as info:
    make_optimizer(OptimizerConfig(schedule="linear"), 10)
  for schedule in optim.SCHEDULES:
    assert schedule in info.value.remedy


@pytest.mark.parametrize("moment", [{"b1": 0.5}, {"b2": 0.5}, {"b1": 0.0}])
def test_moment_decays_reach_the_optimiser(moment):
  grads = random_grads(3)
  config = OptimizerConfig(learning_rate=0.1, clip_norm=0.0, **moment)
  adam = optax.adam(0.1, **moment)
  _, expected = run(optax.with_extra_args_support(adam), grads)
  assert_close(run_config(config, grads)[1], expected)


@pytest.mark.parametrize("moment", ["b1", "b2"])
def test_a_moment_decay_that_the_optimiser_lacks_is_refused(moment):
  with pytest.raises(ConfigError, match=f"`{moment}` ") as info:
    make_optimizer(plain(**{moment: 0.9}), 10)
  assert f"`{moment}`" in info.value.remedy


# Types.


def test_our_own_parts_promote_no_dtypes():
  config = plain(
    warmup_steps=2,
    l1=0.1,
    l2=0.1,
    clip_value=1.0,
    clip_norm=1.0,
    clip_adaptive=0.1,
    weight_decay=0.1,
  )
  with jax.numpy_dtype_promotion("strict"):
    [update], _ = run_config(config, random_grads(1))
  assert update["kernel"].dtype == np.float32
