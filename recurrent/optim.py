"""From plain values to one `optax.chain`.

Order: penalties join the gradient, clipping sees both, then the optimiser,
then decoupled decay, then the plateau's factor. Gradient accumulation wraps
the whole; schedules count updates, not micro-steps.
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

# lbfgs searches along a line with more evaluations of the loss than a step
# has; the others take no schedule, or are deprecated.
NOT_HERE = ("lbfgs", "rprop", "sm3", "noisy_sgd", "optimistic_adam")
SCHEDULES = ("constant", "cosine", "plateau")
# How the names of parameters end that are no matrix, whatever their rank: the
# bias of a stack of layers has two axes.
NO_MATRIX = tuple(
  "bias biases scale scales gain gains peephole peepholes".split()
)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """What `make_optimizer` builds from; 0 switches a penalty or a clip off.

  Args:
    optimizer: a name in optax that takes a learning rate.
    learning_rate: peak learning rate.
    schedule: "constant", "cosine" or "plateau", after the warm-up.
    warmup_steps: updates of linear warm-up from zero.
    final_learning_rate: cosine's end, as a fraction of the peak.
    plateau_factor: what a plateau multiplies the rate with.
    plateau_patience: windows without a better loss before it does.
    plateau_window: updates whose loss is averaged to one value.
    plateau_min: least rate, as a fraction of the peak; below 1.
    clip_norm: largest global norm of the gradient.
    clip_value: largest absolute value of a gradient's entry.
    clip_adaptive: largest ratio of gradient to parameter norm, unit by unit
      (Brock et al., 2021).
    weight_decay: decoupled decay of matrices, times the learning rate
      (Loshchilov & Hutter, 2019). Biases, scales and the like are left alone,
      see `decayed`.
    l1: penalty l1 * sum |w| over matrices, as a gradient.
    l2: penalty l2 / 2 * sum w^2 over matrices, as a gradient.
    accumulate: gradients averaged before each update, at least 1.
    b1: first-moment decay, where the optimiser has one; None for optax's.
    b2: second-moment decay, where the optimiser has one; None for optax's.
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
  """Learning rate by update, `steps` training steps long."""
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
      f"--schedule={config.schedule} is unknown",
      f"use one of {', '.join(SCHEDULES)}",
    )
  if not warmup:
    return after
  # One more than zero, so that the first update is not lost.
  rise = optax.linear_schedule(
    config.learning_rate / (warmup + 1), config.learning_rate, warmup
  )
  return optax.join_schedules([rise, after], [warmup])


def make_optimizer(
  config: OptimizerConfig,
  steps: int,
  matrices: PyTree | Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """The whole chain.

  Args:
    config: what to build.
    steps: number of training steps, for the schedule.
    matrices: True at the parameters that are decayed and penalised, or a
      function from parameters to that; by default `is_matrix`. Of an NNX model
      it is `decayed(model)`.

  Returns:
    A gradient transformation; pass the loss as `update(..., value=loss)`.

  Raises:
    ConfigError: on an unknown optimiser or schedule.
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
        f"--plateau_factor={config.plateau_factor} is out of range",
        "use a number between 0 and 1",
      )
    if config.plateau_patience < 1:
      raise ConfigError(
        f"--plateau_patience={config.plateau_patience} is out of range",
        "use at least 1",
      )
    if not 0 <= config.plateau_min < 1:
      raise ConfigError(
        f"--plateau_min={config.plateau_min} is out of range",
        "use a number from 0, for no bound, to below 1",
      )
    chain.append(
      contrib.reduce_on_plateau(
        factor=config.plateau_factor,
        patience=config.plateau_patience,
        accumulation_size=config.plateau_window,
        # Absolute, for a loss may be negative.
        rtol=0.0,
        atol=1e-4,
        min_scale=config.plateau_min,
      )
    )
  optimizer = optax.with_extra_args_support(optax.chain(*chain))
  if config.accumulate > 1:
    # Not its own gradient_transformation(), which drops `value`.
    steps_of = optax.MultiSteps(optimizer, config.accumulate)
    optimizer = optax.GradientTransformationExtraArgs(
      steps_of.init, steps_of.update
    )
  return optimizer


def make_learning_rate(
  config: OptimizerConfig, steps: int
) -> Callable[[PyTree], Float[Array, ""]]:
  """A function that reads the learning rate off the optimiser's state.

  Args:
    config: what the optimiser was built from.
    steps: number of training steps, for the schedule.

  Returns:
    A function from the state of `make_optimizer`'s optimiser to the rate of
    its last update, the plateau's factor included. Steps that only accumulate,
    or were skipped, change nothing; before all updates it is the first rate.
  """
  schedule = make_schedule(config, steps)

  def learning_rate(state):
    # Each optimiser counts its updates there, within MultiSteps too.
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
  """True at matrices, by rank and name: more than one axis, no `NO_MATRIX`.

  Args:
    params: arrays in dicts, NamedTuples or the like. The name of an array is
      the last one on its path.

  Returns:
    A tree of bools.
  """

  def judge(path, leaf):
    keys = (getattr(k, "key", getattr(k, "name", None)) for k in path)
    name = ([""] + [key for key in keys if isinstance(key, str)])[-1]
    return leaf.ndim > 1 and not name.lower().endswith(NO_MATRIX)

  return jax.tree.map_with_path(judge, params)


def decayed(model: nnx.Module) -> PyTree:
  """True at the parameters of a model that weight decay and penalties change.

  These are its matrices by `is_matrix`. A parameter that is something else, or
  is not to be decayed, says so: `nnx.Param(array, decayed=False)`. A cell says
  it by `Cell.undecayed`.

  Args:
    model: any NNX module; its shapes, from `nnx.eval_shape`, are enough.

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
  make = getattr(optax, config.optimizer, None)
  if not _takes_learning_rate(make):
    names = [n for n in dir(optax) if _takes_learning_rate(getattr(optax, n))]
    near = difflib.get_close_matches(config.optimizer.lower(), names, n=1)
    hint = f"did you mean --optimizer={near[0]}?" if near else "try adam or sgd"
    raise ConfigError(
      f"--optimizer={config.optimizer} is no optax optimiser", hint
    )
  known = inspect.signature(make).parameters
  chosen = {"b1": config.b1, "b2": config.b2}
  chosen = {k: v for k, v in chosen.items() if v is not None}
  if "weight_decay" in known:
    # The flag says it all; some of optax's optimisers decay by default, and
    # biases too.
    chosen["weight_decay"] = 0.0
  # A recipe's default gives way to an optimiser without it; a choice does not.
  defaults = {f.name: f.default for f in dataclasses.fields(config)}
  chosen = {
    name: value
    for name, value in chosen.items()
    if name in known or value != defaults[name]
  }
  for name in chosen:
    if name not in known:
      raise ConfigError(
        f"--{name} is set, but optax.{config.optimizer} has no {name}",
        f"leave --{name} out, or choose another --optimizer",
      )
  return make(learning_rate=schedule, **chosen)


def _takes_learning_rate(make) -> bool:
  name = getattr(make, "__name__", "")
  if not inspect.isfunction(make) or name in NOT_HERE or "scale_by" in name:
    return False
  parameters = inspect.signature(make).parameters
  others = [
    p
    for name, p in parameters.items()
    if name != "learning_rate"
    and p.default is p.empty
    and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
  ]
  return "learning_rate" in parameters and not others


def _map_matrices(function, matrices, updates, params):
  """`function(update, param)` at matrices, the update elsewhere."""
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
  """Subtracts learning rate * decay * w, whatever the optimiser was."""

  def init(params):
    del params
    return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

  def update(updates, state, params):
    rate = decay * schedule(state.count)
    shrunk = lambda u, p: u - rate * p
    updates = _map_matrices(shrunk, matrices, updates, params)
    return updates, optax.ScaleByScheduleState(count=state.count + 1)

  return optax.GradientTransformation(init, update)
