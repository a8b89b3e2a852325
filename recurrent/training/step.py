"""The train step: loss, gradient and update, skipped if not finite."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from recurrent import rows, sharding
from recurrent.errors import ConfigError
from recurrent.metrics import Mean
from recurrent.training.state import TrainState, join, split
from recurrent.types import Array, Carry, Float, Int, PRNGKey

# What an experiment gives to the train step:
# `loss(model, carry, batch, key) -> (loss, (carry, metrics))`.
# Each device computes it on its own rows. A value over all rows, such as the
# loss itself, is made by `Mean.value()` or `recurrent.rows.total`, and noise
# that differs from row to row is drawn by `recurrent.rows.bernoulli`.
Loss = Callable[
  [Any, Carry, Any, PRNGKey | None],
  tuple[Float[Array, ""], tuple[Carry, dict[str, Mean]]],
]

# What an experiment without a carry gives instead; `loss_of` makes a `Loss`.
Measure = Callable[[Any, Any, PRNGKey | None], dict[str, Mean]]

# What a step measures itself: the loss, and the global norm of its gradient.
LOSS, GRAD_NORM = MEASURED = "loss", "grad_norm"


class Status(NamedTuple):
  """Scalars of a step that the host can read after the state is donated."""

  loss: Float[Array, ""]
  skipped: Int[Array, ""]
  skipped_in_a_row: Int[Array, ""]
  learning_rate: Float[Array, ""] | None = None  # of the last update


def loss_of(measure: Measure, objective: str) -> Loss:
  """Makes the loss of an experiment whose batches share no carry.

  Args:
    measure: `measure(model, batch, key) -> metrics`.
    objective: name of the metric that is minimised.

  Returns:
    `loss(model, carry, batch, key) -> (loss, (carry, metrics))`, which returns
    the carry as it is.
  """

  def loss(model, carry, batch, key):
    metrics = measure(model, batch, key)
    # The weight of a batch that has padding rows only is zero.
    return metrics[objective].value(), (carry, metrics)

  return loss


def make_train_step(
  graphdef: nnx.GraphDef,
  loss: Loss,
  optimizer: optax.GradientTransformationExtraArgs,
  mesh: Mesh,
  *,
  seed: int,
  ema_decay: float = 0.0,
  learning_rate: Callable[[Any], Array] | None = None,
  zero: bool = False,
) -> Callable[[TrainState, Any], tuple[TrainState, Status]]:
  """Makes the jitted train step over a mesh; the step donates its state.

  Args:
    graphdef: graph definition of the model, from `state.create`.
    loss: `loss(model, carry, batch, key) -> (loss, (carry, metrics))`.
    optimizer: from `recurrent.optim`.
    mesh: from `recurrent.sharding`.
    seed: the step's PRNG key is fold_in(key(seed), step).
    ema_decay: decay of the moving average of the parameters; 0: there is none.
      In the first steps the decay is smaller, so that the average covers about
      the last tenth of the steps.
    learning_rate: a function from the optimiser's state to the learning rate
      of the last update, from `optim.make_learning_rate`. If given, the status
      contains that rate.
    zero: whether the optimiser state is divided over "data".

  Returns:
    `step(state, batch) -> (state, status)`. If the loss or a value of the new
    state is not finite, the step is counted as skipped, and the parameters,
    optimiser state, carry, variables and metrics remain as they were.

  Raises:
    ConfigError: when the step is traced, if the loss returns other metrics
      than those that the state has sums for.
  """

  def differentiate(params, variables, key, carry, batch):
    """Computes loss and gradient, on all rows or on those of one device."""

    def objective(params):
      model = nnx.merge(graphdef, join(params, variables))
      value, (after, metrics) = loss(model, carry, batch, key)
      return value, (after, metrics, split(model)[2])

    # The gradient of each device's own copy. Otherwise JAX would sum it over
    # the devices wherever a parameter is used, at every time step of a loop.
    own = rows.vary(params, rows.axes_of((carry, batch)))
    (value, (after, metrics, variables)), grads = jax.value_and_grad(
      objective, has_aux=True
    )(own)
    metrics = {name: mean.over_devices() for name, mean in metrics.items()}
    # Counted here, so that it is summed together with the gradient.
    broken = (~still_finite(carry, after)).astype(jnp.float32)
    grads, broken = rows.total((grads, broken))
    return value, metrics, variables, grads, broken, after

  differentiate = sharding.on_own_rows(
    differentiate,
    mesh,
    (*[sharding.WHOLE] * 3, *[sharding.ROWS] * 2),
    (*[sharding.WHOLE] * 5, sharding.ROWS),
  )

  def step(state: TrainState, batch):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    value, metrics, variables, grads, broken, carry = differentiate(
      state.params, state.variables, key, state.carry, batch
    )
    check_metrics(state.metrics, metrics)
    updates, opt_state = optimizer.update(
      grads, state.opt_state, state.params, value=value
    )
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema_decay:
      # Bias correction, as in Adam: the initial random parameters have no
      # weight in the average.
      age = (state.step - state.skipped + 1).astype(jnp.float32)
      weight = (1 - ema_decay) / (1 - ema_decay**age)
      # At first the average covers fewer steps, or it would lag far behind: the
      # decay is at most (1 + t) / (10 + t), as in TensorFlow.
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
    good = (broken == 0) & still_finite(
      (state._replace(carry=()), jnp.zeros_like(value)),
      (new._replace(carry=()), value),
    )
    new = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
    bad = (~good).astype(jnp.int32)
    new = new._replace(
      step=state.step + 1,
      skipped=state.skipped + bad,
      skipped_in_a_row=(state.skipped_in_a_row + bad) * bad,
    )
    rate = learning_rate(new.opt_state) if learning_rate else None
    return new, Status(value, new.skipped, new.skipped_in_a_row, rate)

  def placed_step(state: TrainState, batch):
    new, status = step(state, batch)
    everywhere = sharding.replicated(mesh)
    where = state_sharding(mesh, new, zero=zero), everywhere
    return jax.lax.with_sharding_constraint((new, status), where)

  return jax.jit(placed_step, donate_argnums=0)


def state_sharding(
  mesh: Mesh, shapes: TrainState, *, zero: bool = False
) -> TrainState:
  """The shardings of a state: of its carry by rows, of its matrices by columns.

  Args:
    mesh: from `recurrent.sharding`.
    shapes: the state, or its shapes.
    zero: whether the optimiser state, and the moving average of the parameters,
      are divided over "data", since only their update needs them.

  Returns:
    For each array a sharding. Without a second axis of the mesh and without
    `zero`, everything but the carry is replicated.
  """
  whole, rows_of = sharding.replicated(mesh), sharding.split_batch(mesh)
  where = jax.tree.map(lambda _: whole, shapes)
  divided = functools.partial(sharding.columns, mesh=mesh, by_data=zero)
  return where._replace(
    params=sharding.columns(shapes.params, mesh),
    opt_state=divided(shapes.opt_state),
    ema=divided(shapes.ema),
    carry=jax.tree.map(lambda _: rows_of, shapes.carry),
  )


def check_metrics(wanted: Iterable[str], found: Iterable[str]) -> None:
  """Raises ConfigError unless the loss returns exactly the wanted metrics.

  Args:
    wanted: names of the metrics that the state has sums for. `MEASURED` among
      them are ignored, since the training step measures them.
    found: names of the metrics that the loss returns.
  """
  if taken := {*MEASURED} & {*found}:
    raise ConfigError(
      f"the loss returns a metric {min(taken)!r}, which the training step"
      " measures itself",
      "give it another name",
    )
  said, measured = sorted(set(wanted) - {*MEASURED}), sorted(found)
  if said != measured:
    raise ConfigError(
      f"the state has sums for {said}, but the loss returns {measured}",
      "create the state with the names of what the loss returns",
    )


def still_finite(old, new) -> Array:
  """Whether every float of `new` is finite where that of `old` is finite.

  The state of some optimisers begins with an infinity, such as the best loss
  so far.
  """
  finite = [
    (jnp.isfinite(b) | ~jnp.isfinite(a)).all()
    for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    if jnp.issubdtype(b.dtype, jnp.floating)
  ]
  return jnp.stack(rows.vary_alike(finite)).all() if finite else jnp.array(True)
