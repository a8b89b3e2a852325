"""Builds an `optax` optimiser from a configuration of plain values.

The order of the chain: l1 and l2 penalties are added to the gradient, their sum
is clipped, then follow the optimiser, decoupled weight decay, and the factor of
the plateau schedule. Gradient accumulation wraps the whole chain, so schedules
count updates and not micro-steps.
"""

import dataclasses
import difflib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from optax import contrib

from recurrent.errors import ConfigError
from recurrent.types import Array, Float, PyTree

# All take the learning rate as a schedule. Of optax's optimisers these are left
# out: lbfgs, whose line search evaluates the loss more than once a step; rprop,
# sm3 and noisy_sgd, which do not take a schedule; and optimistic_adam, which is
# deprecated.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
  "adabelief": optax.adabelief,
  "adadelta": optax.adadelta,
  "adafactor": optax.adafactor,
  "adagrad": optax.adagrad,
  "adam": optax.adam,
  "adamax": optax.adamax,
  "adamaxw": optax.adamaxw,
  "adamw": optax.adamw,
  "adan": optax.adan,
  "amsgrad": optax.amsgrad,
  "fromage": optax.fromage,
  "lamb": optax.lamb,
  "lars": optax.lars,
  "lion": optax.lion,
  "novograd": optax.novograd,
  "optimistic_adam_v2": optax.optimistic_adam_v2,
  "optimistic_gradient_descent": optax.optimistic_gradient_descent,
  "radam": optax.radam,
  "rmsprop": optax.rmsprop,
  "sgd": optax.sgd,
  "sign_sgd": optax.sign_sgd,
  "signum": optax.signum,
  "yogi": optax.yogi,
}
SCHEDULES = ("constant", "cosine", "plateau")
# Ends of the names of parameters that are not matrices, whatever their rank:
# the bias of stacked layers, for example, has two axes.
NO_MATRIX = tuple(
  "bias biases scale scales gain gains peephole peepholes".split()
)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Configuration of the optimiser; 0 switches a penalty or a clip off.

  Args:
    optimizer: one of `OPTIMIZERS`, such as adam or sgd.
    learning_rate: peak learning rate.
    schedule: learning rate after the warm-up: constant, cosine or plateau.
    warmup_steps: number of updates of linear warm-up of the learning rate.
    final_learning_rate: learning rate at the end of the cosine schedule, as a
      fraction of the peak.
    plateau_factor: the plateau schedule multiplies the learning rate by this
      factor when the loss stops improving.
    plateau_patience: number of windows without a better loss before the plateau
      schedule lowers the learning rate.
    plateau_window: number of updates in a window, over which the plateau
      schedule averages the loss.
    plateau_min: lower bound of the plateau schedule's learning rate, as a
      fraction of the peak; below 1.
    clip_norm: largest global norm of the gradient.
    clip_value: largest absolute value of an element of the gradient.
    clip_adaptive: largest ratio of gradient norm to parameter norm, unit by
      unit (Brock et al., 2021).
    weight_decay: decoupled weight decay of matrices, multiplied by the learning
      rate (Loshchilov & Hutter, 2019). Biases and scales do not decay.
    l1: adds the gradient of the penalty l1 * sum |w| over all matrices.
    l2: adds the gradient of the penalty l2 / 2 * sum w^2 over all matrices.
    accumulate: number of gradients to average for each update, at least 1.
    b1: decay rate of the first moment, if the optimiser has one; by default
      that of optax.
    b2: decay rate of the second moment, if the optimiser has one; by default
      that of optax.
  """

  optimizer: str = "adam"
  learning_rate: float = 1e-3
  schedule: str = "constant"
  warmup_steps: int = 0
  final_learning_rate: float = 0.0
  plateau_factor: float = 0.5
  plateau_patience: int = 5
  plateau_window: int = 100
  plateau_min: float = 1e-3
  clip_norm: float = 1.0
  clip_value: float = 0.0
  clip_adaptive: float = 0.0
  weight_decay: float = 0.0
  l1: float = 0.0
  l2: float = 0.0
  accumulate: int = 1
  b1: float | None = None
  b2: float | None = None


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """Makes the learning rate schedule, a function of the number of updates.

  Args:
    config: the configuration.
    steps: number of training steps.

  Raises:
    ConfigError: if the schedule is unknown.
  """
  updates = max(1, steps // config.accumulate)
  warmup = min(config.warmup_steps, updates - 1)
  if config.schedule == "cosine":
    after = optax.cosine_decay_schedule(
      config.learning_rate, updates - warmup, config.final_learning_rate
    )
  elif config.schedule in ("constant", "plateau"):
    after = optax.constant_schedule(config.learning_rate)
  else:
    raise ConfigError(
      f"`schedule={config.schedule}` is unknown",
      f"use one of {', '.join(SCHEDULES)}",
    )
  if not warmup:
    return after
  # The warm-up does not begin at zero, so that the first update has an effect.
  rise = optax.linear_schedule(
    config.learning_rate / (warmup + 1), config.learning_rate, warmup
  )
  return optax.join_schedules([rise, after], [warmup])


def make_optimizer(
  config: OptimizerConfig,
  steps: int,
  matrices: PyTree | Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Makes the optimiser that a configuration describes.

  Args:
    config: the configuration.
    steps: number of training steps, for the schedule.
    matrices: a tree of bools, True at the parameters that weight decay and
      penalties apply to, or a function from the parameters to that tree; by
      default `is_matrix`. For an NNX model pass `decayed(model)`.

  Returns:
    A gradient transformation; pass the loss as `update(..., value=loss)`.

  Raises:
    ConfigError: if the optimiser or the schedule is unknown, or a value is out
      of range.
  """
  schedule = make_schedule(config, steps)
  matrices = is_matrix if matrices is None else matrices
  chain: list[Any] = []
  if config.l1:
    chain.append(_l1_penalty(config.l1, matrices))
  if config.l2:
    chain.append(optax.add_decayed_weights(config.l2, mask=matrices))
  if config.clip_value:
    chain.append(optax.clip(config.clip_value))
  if config.clip_norm:
    chain.append(optax.clip_by_global_norm(config.clip_norm))
  if config.clip_adaptive:
    chain.append(optax.adaptive_grad_clip(config.clip_adaptive))
  chain.append(_named_optimizer(config, schedule))
  if config.weight_decay:
    chain.append(_decoupled_decay(config.weight_decay, schedule, matrices))
  if config.schedule == "plateau":
    if not 0 < config.plateau_factor < 1:
      raise ConfigError(
        f"`plateau_factor={config.plateau_factor}` is out of range",
        "use a number between 0 and 1",
      )
    if config.plateau_patience < 1:
      raise ConfigError(
        f"`plateau_patience={config.plateau_patience}` is out of range",
        "use at least 1",
      )
    if not 0 <= config.plateau_min < 1:
      raise ConfigError(
        f"`plateau_min={config.plateau_min}` is out of range",
        "use a number from 0, for no bound, to below 1",
      )
    chain.append(
      contrib.reduce_on_plateau(
        factor=config.plateau_factor,
        patience=config.plateau_patience,
        accumulation_size=config.plateau_window,
        # An absolute tolerance, since a loss may be negative.
        rtol=0.0,
        atol=1e-4,
        min_scale=config.plateau_min,
      )
    )
  optimizer = optax.with_extra_args_support(optax.chain(*chain))
  if config.accumulate > 1:
    # `MultiSteps.gradient_transformation()` would drop the argument `value`.
    steps_of = optax.MultiSteps(optimizer, config.accumulate)
    optimizer = optax.GradientTransformationExtraArgs(
      steps_of.init, steps_of.update
    )
  return optimizer


def make_learning_rate(
  config: OptimizerConfig, steps: int
) -> Callable[[PyTree], Float[Array, ""]]:
  """Makes a function that reads the learning rate from the optimiser's state.

  Args:
    config: the configuration of the optimiser.
    steps: number of training steps, for the schedule.

  Returns:
    A function from the state of the optimiser of `make_optimizer` to the
    learning rate of its last update, including the factor of the plateau
    schedule. Steps that only accumulate gradients or were skipped do not change
    it. Before the first update it is the rate of the first update.
  """
  schedule = make_schedule(config, steps)

  def learning_rate(state):
    # The state of each optimiser contains one of these, which counts updates;
    # this holds inside MultiSteps too.
    kinds = optax.ScaleByScheduleState, contrib.ReduceLROnPlateauState
    found = [
      leaf
      for leaf in jax.tree.leaves(
        state, is_leaf=lambda leaf: isinstance(leaf, kinds)
      )
      if isinstance(leaf, kinds)
    ]
    rate = jnp.asarray(schedule(jnp.maximum(found[0].count - 1, 0)))
    rate = rate.astype(jnp.float32)
    if config.schedule == "plateau":
      rate = rate * found[-1].scale.astype(jnp.float32)
    return rate

  return learning_rate


def is_matrix(params: PyTree) -> PyTree:
  """Tells which parameters are matrices, by their rank and their name.

  A matrix has more than one axis, and its name does not end in one of
  `NO_MATRIX`.

  Args:
    params: a pytree of arrays in dicts, NamedTuples and the like. The name of
      an array is the last name on its path.

  Returns:
    A tree of bools like `params`.
  """

  def judge(path, leaf):
    keys = (getattr(k, "key", getattr(k, "name", None)) for k in path)
    name = ([""] + [key for key in keys if isinstance(key, str)])[-1]
    return leaf.ndim > 1 and not name.lower().endswith(NO_MATRIX)

  return jax.tree.map_with_path(judge, params)


def decayed(model: nnx.Module) -> PyTree:
  """Tells which parameters of a model weight decay and penalties apply to.

  These are its matrices by `is_matrix`, unless a parameter has metadata that
  says otherwise, such as `nnx.Param(array, decayed=False)`. A cell excludes its
  parameters by `Cell.undecayed`.

  Args:
    model: any NNX module; a module of shapes, from `nnx.eval_shape`, is enough.

  Returns:
    A tree of bools like `nnx.as_pure(nnx.state(model, nnx.Param))`.
  """
  variables = nnx.state(model, nnx.Param)
  by_name = is_matrix(nnx.as_pure(variables))
  said = [
    variable.get_metadata().get("decayed")
    for variable in jax.tree.leaves(
      variables, is_leaf=lambda x: isinstance(x, nnx.Variable)
    )
  ]
  leaves, treedef = jax.tree.flatten(by_name)
  return jax.tree.unflatten(
    treedef, [a if b is None else b for a, b in zip(leaves, said, strict=True)]
  )


def _named_optimizer(config, schedule):
  name = config.optimizer
  if name not in OPTIMIZERS:
    near = difflib.get_close_matches(name.lower(), OPTIMIZERS, n=1)
    hint = f"did you mean `optimizer={near[0]}`? " if near else ""
    raise ConfigError(
      f"`optimizer={name}` is unknown",
      f"{hint}use one of {', '.join(OPTIMIZERS)}",
    )
  make = OPTIMIZERS[name]
  known = inspect.signature(make).parameters
  chosen = {"b1": config.b1, "b2": config.b2}
  chosen = {k: v for k, v in chosen.items() if v is not None}
  if "weight_decay" in known:
    # Only `config.weight_decay` decays weights; some of optax's optimisers
    # would do so by default, biases included.
    chosen["weight_decay"] = 0.0
  # A default value is dropped if the optimiser has no such argument; a value
  # that was chosen is refused below.
  defaults = {f.name: f.default for f in dataclasses.fields(config)}
  chosen = {
    name: value
    for name, value in chosen.items()
    if name in known or value != defaults[name]
  }
  for name in chosen:
    if name not in known:
      raise ConfigError(
        f"`{name}` is set, but optax.{config.optimizer} has no {name}",
        f"leave `{name}` out, or choose another `optimizer`",
      )
  return make(learning_rate=schedule, **chosen)


def _map_matrices(function, matrices, updates, params):
  """Applies `function(update, param)` to the updates of matrices only."""
  where = matrices(params) if callable(matrices) else matrices
  return jax.tree.map(
    lambda is_matrix, u, p: function(u, p) if is_matrix else u,
    where,
    updates,
    params,
  )


def _l1_penalty(strength, matrices):
  def update(updates, params):
    penalised = lambda g, p: g + strength * jnp.sign(p)
    return _map_matrices(penalised, matrices, updates, params)

  return optax.stateless(update)


def _decoupled_decay(decay, schedule, matrices):
  """Adds -learning_rate * decay * w to the updates of matrices."""

  def init(params):
    del params
    return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

  def update(updates, state, params):
    rate = decay * schedule(state.count)
    shrunk = lambda u, p: u - rate * p
    updates = _map_matrices(shrunk, matrices, updates, params)
    return updates, optax.ScaleByScheduleState(count=state.count + 1)

  return optax.GradientTransformation(init, update)
