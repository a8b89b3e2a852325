"""The state of a training run between two steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from recurrent.metrics import Mean
from recurrent.types import Array, Carry, Int, PyTree


class TrainState(NamedTuple):
  """Arrays that a train step reads and updates, and a checkpoint saves.

  PRNG keys are `fold_in(seed, step)` and batches are a function of (seed,
  step), so neither is stored. The carry is stored, since a language model that
  resumes without it is a different run. The unfinished sums of the metrics are
  stored too, so that a resumed run logs the same numbers.
  """

  step: Int[Array, ""]  # steps taken; also which batch and key come next
  params: PyTree
  opt_state: Any
  carry: Carry
  ema: PyTree  # moving average of params, or () without one
  metrics: dict[str, Mean]  # since the last row of metrics
  skipped: Int[Array, ""]  # steps whose update was not finite, in all
  skipped_in_a_row: Int[Array, ""]
  variables: PyTree = ()  # of the model, all but its parameters

  @property
  def evaluated_params(self) -> PyTree:
    """The parameters to evaluate and to decode with."""
    return self.params if isinstance(self.ema, tuple) else self.ema

  @property
  def evaluated(self) -> PyTree:
    """`evaluated_params` and the other variables, as `nnx.merge` takes them."""
    return join(self.evaluated_params, self.variables)


def create(
  model: nnx.Module,
  optimizer: optax.GradientTransformation,
  carry: Carry,
  metrics: list[str],
  *,
  ema: bool,
) -> tuple[nnx.GraphDef, TrainState]:
  """Splits a new model into its structure and the initial training state.

  Args:
    model: the model. Its `nnx.Param`s are trained. Its other variables, such
      as the statistics of `nnx.BatchNorm` and the counters of `nnx.Dropout`,
      keep the values that the loss function gives them.
    optimizer: its state is initialised here.
    carry: the initial carry of the training batch.
    metrics: names of the metrics to sum.
    ema: whether to keep a moving average of the parameters.

  Returns:
    The graph definition, to merge with `evaluated`, and the state at step 0.
  """
  graphdef, params, variables = split(model)
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    carry=carry,
    ema=jax.tree.map(jnp.copy, params) if ema else (),
    metrics={name: Mean.zero() for name in metrics},
    skipped=jnp.zeros((), jnp.int32),
    skipped_in_a_row=jnp.zeros((), jnp.int32),
    variables=variables,
  )
  # Zeros are often one shared buffer, which cannot be donated twice.
  return graphdef, jax.tree.map(jnp.copy, state)


def split(model: nnx.Module) -> tuple[nnx.GraphDef, PyTree, PyTree]:
  """Splits a model into graph definition, parameters and other variables.

  Values that a call has sown (`nnx.Intermediate`) are left out, since the next
  step does not read them.
  """
  graphdef, params, _, variables = nnx.split(
    model, nnx.Param, nnx.Intermediate, ...
  )
  return graphdef, nnx.as_pure(params), nnx.as_pure(variables) or ()


def join(params: PyTree, variables: PyTree) -> PyTree:
  """One tree of parameters and other variables, to merge into a model."""
  return nnx.merge_state(params, variables) if variables else params
