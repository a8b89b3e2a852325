"""One training step: loss, gradient, update, or nothing if it is not finite."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from recurrent import sharding
from recurrent.errors import ConfigError
from recurrent.metrics import Mean
from recurrent.training.state import TrainState, join, split
from recurrent.types import Array, Carry, Float, Int, PRNGKey

# The whole contract between an experiment and the training loop.
Loss = Callable[
  [Any, Carry, Any, PRNGKey | None],
  tuple[Float[Array, ""], tuple[Carry, dict[str, Mean]]],
]

# What a step measures itself: the loss, and the global norm of its gradient.
LOSS, GRAD_NORM = MEASURED = "loss", "grad_norm"


class Status(NamedTuple):
  """What the host may read of a step after its state has been donated."""

  loss: Float[Array, ""]
  skipped: Int[Array, ""]
  skipped_in_a_row: Int[Array, ""]
  learning_rate: Float[Array, ""] | None = None  # of the last update


def make_train_step(
  graphdef: nnx.GraphDef,
  loss: Loss,
  optimizer: optax.GradientTransformationExtraArgs,
  mesh: Mesh,
  *,
  seed: int,
  ema_decay: float = 0.0,
  learning_rate: Callable[[Any], Array] | None = None,
) -> Callable[[TrainState, Any], tuple[TrainState, Status]]:
  """Compiles a step over the mesh; it donates the state it is given.

  Args:
    graphdef: structure of the model, from `state.create`.
    loss: `loss(model, carry, batch, key) -> (loss, (carry, metrics))`.
    optimizer: from `recurrent.optim`.
    mesh: from `recurrent.sharding`.
    seed: the step's key is fold_in(key(seed), step).
    ema_decay: decay of the parameters' moving average, if there is one; less
      at first, where the average is over the last tenth of the steps.
    learning_rate: reads the last update's rate off the optimiser's state, from
      `optim.make_learning_rate`; the status then has it.

  Returns:
    `step(state, batch) -> (state, status)`. If anything in the new state or
    the loss is not finite, the state keeps its parameters, optimiser state,
    carry, variables and metrics, and counts the step as skipped.

  Raises:
    ConfigError: while it is traced, if the loss measures other things than the
      state has sums of.
  """

  def step(state: TrainState, batch):
    key = jax.random.fold_in(jax.random.key(seed), state.step)

    def objective(params):
      model = nnx.merge(graphdef, join(params, state.variables))
      value, (carry, metrics) = loss(model, state.carry, batch, key)
      return value, (carry, metrics, split(model)[2])

    (value, (carry, metrics, variables)), grads = jax.value_and_grad(
      objective, has_aux=True
    )(state.params)
    check_metrics(state.metrics, metrics)
    updates, opt_state = optimizer.update(
      grads, state.opt_state, state.params, value=value
    )
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema_decay:
      # Bias correction, as Adam's: the average never holds the random start.
      age = (state.step - state.skipped + 1).astype(jnp.float32)
      weight = (1 - ema_decay) / (1 - ema_decay**age)
      # While the run is short, so is the average, or it would lag far behind:
      # a decay of at most (1 + t) / (10 + t), as TensorFlow's has it.
      weight = jnp.maximum(weight, 9 / (9 + age))
      ema = optax.incremental_update(params, ema, weight)
    metrics = {
      **metrics,
      LOSS: Mean.of(value),
      GRAD_NORM: Mean.of(optax.tree.norm(grads)),
    }
    new = state._replace(
      params=params,
      opt_state=opt_state,
      carry=jax.lax.stop_gradient(carry),
      variables=variables,
      ema=ema,
      metrics={k: v.merge(metrics[k]) for k, v in state.metrics.items()},
      skipped_in_a_row=jnp.zeros((), jnp.int32),
    )
    good = still_finite((state, jnp.zeros_like(value)), (new, value))
    new = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
    bad = (~good).astype(jnp.int32)
    new = new._replace(
      step=state.step + 1,
      skipped=state.skipped + bad,
      skipped_in_a_row=(state.skipped_in_a_row + bad) * bad,
    )
    rate = learning_rate(new.opt_state) if learning_rate else None
    return new, Status(value, new.skipped, new.skipped_in_a_row, rate)

  return jax.jit(
    step,
    donate_argnums=0,
    out_shardings=(state_sharding(mesh), sharding.replicated(mesh)),
  )


def state_sharding(mesh: Mesh) -> TrainState:
  """A sharding for each part of the state: the carry split, all else whole."""
  parts: dict[str, Any] = dict.fromkeys(
    TrainState._fields, sharding.replicated(mesh)
  )
  return TrainState(**{**parts, "carry": sharding.split_batch(mesh)})


def check_metrics(wanted: Iterable[str], found: Iterable[str]) -> None:
  """Raises ConfigError unless a loss measures what it was said to.

  Args:
    wanted: names that the state has sums of, `MEASURED` among them.
    found: names that the loss returns.
  """
  said, measured = sorted(set(wanted) - {*MEASURED}), sorted(found)
  if said != measured:
    raise ConfigError(
      f"Task.metrics names {said}, but the loss returns {measured}",
      "name in Task.metrics what the loss returns, no more and no less",
    )


def still_finite(old, new) -> Array:
  """Whether every float is finite that was so before.

  Some optimisers begin with an infinity, such as the best loss so far.
  """
  finite = [
    (jnp.isfinite(b) | ~jnp.isfinite(a)).all()
    for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    if jnp.issubdtype(b.dtype, jnp.floating)
  ]
  return jnp.stack(finite).all()
