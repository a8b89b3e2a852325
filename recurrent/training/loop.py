"""The training loop: train steps, evaluations, checkpoints, early stopping.

The loop does not depend on the task. It dispatches steps without waiting for
their results: metrics are summed on the device, as a part of the state, and
read only when a row of metrics is written.
"""

import collections
import dataclasses
import logging
import math
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax

from recurrent.errors import DivergedError, Preempted
from recurrent.metrics import Mean
from recurrent.training.feed import Feed
from recurrent.training.preemption import Preemption
from recurrent.training.profiling import Profiler
from recurrent.training.state import TrainState
from recurrent.training.step import Status
from recurrent.types import PyTree

if TYPE_CHECKING:  # they import Orbax, tqdm and tensorboardX
  from recurrent.training.checkpoint import Checkpoints
  from recurrent.training.progress import Progress
  from recurrent.training.writers import MetricsWriter

LOG = logging.getLogger("recurrent")

# Steps that may be dispatched and not yet finished: enough to keep the device
# busy, few enough that the run stops soon after a signal.
IN_FLIGHT = 4
MAX_SKIPPED_IN_A_ROW = 10
# A run has diverged when its mean loss exceeds the first loss by DIVERGED_RATIO
# times the first loss's absolute value, and by at least DIVERGED_GROWTH. The
# ratio alone would stop runs whose first loss is near zero, as that of a
# log-density may be. Losses are in nats: ten are far more than the noise of a
# working model.
DIVERGED_RATIO = 2.0
DIVERGED_GROWTH = 10.0


class Batches(Protocol):
  """The batch of each training step, as a pure function of the step.

  A resumed run therefore reads the same batches.
  """

  def __getitem__(self, step: int) -> Any:
    """The global batch of NumPy arrays for a step."""
    ...


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How often the loop logs, evaluates and saves, in training steps.

  Args:
    steps: total number of training steps.
    log_every: steps between rows of training metrics.
    eval_every: steps between evaluations; there is also one at the end.
    checkpoint_every: steps between checkpoints; 0 saves at evaluations.
    patience: stop after this many evaluations in a row without a new best
      one; 0: never.
  """

  steps: int
  log_every: int
  eval_every: int
  checkpoint_every: int = 0
  patience: int = 0


class Hooks(NamedTuple):
  """The functions of an experiment that the loop calls.

  Attributes:
    put: moves a global batch of NumPy arrays to the devices.
    evaluate: `(variables, interrupted) -> metrics`, or None if interrupted()
      became True.
    on_evaluation: `(step, variables) -> text` to show, such as a sample.
    describe: `(mean metrics, step) -> values` of a row to write.
    units: the number of units in a batch, such as tokens, to show the speed.
  """

  put: Callable[[Any], Any]
  evaluate: Callable[[PyTree, Callable[[], bool]], dict[str, Any] | None]
  on_evaluation: Callable[[int, PyTree], str]
  describe: Callable[[dict[str, float], int], dict[str, Any]]
  units: Callable[[Any], int] = lambda batch: 1


@dataclasses.dataclass
class Outcome:
  """What the host has recorded of a run; saved with every checkpoint."""

  logged_step: int = 0
  evaluated_step: int = 0
  best_step: int = -1
  best_value: float = math.inf
  stale: int = 0  # evaluations since the best
  first_loss: float = math.inf


class _Row(NamedTuple):
  """A row of metrics that the device may still be summing."""

  step: int
  metrics: dict[str, Mean]
  status: Status


def fit(
  state: TrainState,
  train_step: Callable[[TrainState, Any], tuple[TrainState, Any]],
  batches: Batches,
  hooks: Hooks,
  schedule: Schedule,
  *,
  objective: str,
  outcome: Outcome,
  checkpoints: "Checkpoints",
  writer: "MetricsWriter",
  progress: "Progress",
  preemption: Preemption,
  profiler: Profiler | None = None,
) -> tuple[TrainState, Outcome]:
  """Trains from `state.step` to the end of the schedule.

  Args:
    state: the initial state; it is donated.
    train_step: from `make_train_step`.
    batches: the global batch of each step.
    hooks: the experiment's functions.
    schedule: when to log, evaluate, save and stop.
    objective: name of the evaluation's metric to minimise.
    outcome: record of the run so far, from the checkpoint; a new run begins
      with `Outcome()`.
    checkpoints: saves the state.
    writer: writes rows of metrics.
    progress: shows progress on the terminal.
    preemption: says whether the run is to stop early.
    profiler: records a trace of some steps.

  Returns:
    The last state, and the outcome.

  Raises:
    DivergedError: after too many steps in a row without a finite update, or
      when the loss has grown too much. Nothing is saved then.
    Preempted: after a signal; the state has been saved.
  """
  step = int(state.step)
  saved = (step, dataclasses.asdict(outcome))
  in_flight: collections.deque[Status] = collections.deque()
  row: _Row | None = None

  def write_row():
    nonlocal row
    if row is not None:
      values = hooks.describe(
        {k: v.compute() for k, v in jax.device_get(row.metrics).items()},
        row.step,
      )
      if row.status.learning_rate is not None:
        values["learning_rate"] = float(row.status.learning_rate)
      values["skipped"] = int(row.status.skipped)
      writer.write(row.step, values)
      writer.board(row.step, progress.report(row.step, values))
      _refuse_divergence(row, values["train_loss"], outcome.first_loss)
      row = None

  with (
    Feed(batches, hooks.put, hooks.units, step, schedule.steps) as source,
    profiler or Profiler(pathlib.Path()) as profiler,
  ):
    while True:
      if (
        _due(step, schedule.log_every, schedule.steps)
        and step > outcome.logged_step
        and in_flight  # otherwise this session has made no step yet
      ):
        write_row()
        # The sums are taken out of the state, so that the next step does not
        # donate them and the host can read them later.
        row = _Row(step, state.metrics, in_flight[-1])
        state = state._replace(metrics=_zeros(state.metrics))
        outcome.logged_step = step
      interrupted = False
      checkpoints.check()
      if (
        _due(step, schedule.eval_every, schedule.steps)
        and step > outcome.evaluated_step
      ):
        write_row()
        found = hooks.evaluate(state.evaluated, preemption.agreed)
        interrupted = found is None
        if found is not None:
          writer.write(step, found)
          progress.note(step, found)
          progress.say(hooks.on_evaluation(step, state.evaluated))
          _judge(outcome, step, found[objective])
      stopped = 0 < schedule.patience <= outcome.stale
      ended = not interrupted and (step >= schedule.steps or stopped)
      interrupted = not ended and (interrupted or preemption.agreed())
      record = dataclasses.asdict(outcome)
      # After a resume, an evaluation that was interrupted is made again. It
      # changes the record of a step whose arrays are saved already.
      if (step, record) != saved and (
        step == saved[0]
        or interrupted
        or ended
        or step % (schedule.checkpoint_every or schedule.eval_every) == 0
        or outcome.best_step == step
      ):
        write_row()
        checkpoints.save(step, state, record, outcome.best_step)
        saved = (step, record)
      if interrupted:
        checkpoints.wait()
        raise Preempted(
          f"told to stop at step {step}; saved",
          "run the same command again to go on",
        )
      if ended:
        if stopped:
          LOG.info("No better evaluation in %d: stopping.", outcome.stale)
        return state, outcome

      fed = source.get(step, lambda: preemption.caught)
      if fed is None:
        continue  # The signal is seen above.
      with profiler.step(step, state):
        state, status = train_step(state, fed.batch)
      preemption.hold()
      step += 1
      progress.update(step, fed.units, fed.waited)
      in_flight.append(status)
      if len(in_flight) > IN_FLIGHT:
        jax.block_until_ready(in_flight.popleft())
      if not math.isfinite(outcome.first_loss):
        outcome.first_loss = float(status.loss)
      if row is not None and step >= row.step + IN_FLIGHT:
        write_row()


def _due(step: int, every: int, steps: int) -> bool:
  return step > 0 and (step % every == 0 or step >= steps)


@jax.jit
def _zeros(metrics: dict[str, Mean]) -> dict[str, Mean]:
  # A product with zero keeps the sharding over processes. It is zero, since
  # the sums are finite.
  return jax.tree.map(lambda x: x * 0, metrics)


def _refuse_divergence(row: _Row, loss: float, first_loss: float) -> None:
  bad = int(row.status.skipped_in_a_row)
  if bad >= min(MAX_SKIPPED_IN_A_ROW, row.step):
    cause = f"no finite update in the last {bad} of {row.step} steps"
  elif loss > first_loss + max(
    DIVERGED_RATIO * abs(first_loss), DIVERGED_GROWTH
  ):
    cause = f"the loss grew from {first_loss:.4g} to {loss:.4g}"
  else:
    return
  raise DivergedError(
    f"diverged at step {row.step}: {cause}",
    "use a smaller `learning_rate`, more `warmup_steps` or a smaller"
    " `clip_norm`; what was saved before is kept",
  )


def _judge(outcome: Outcome, step: int, value: float) -> None:
  """Compares an evaluation with the best so far."""
  outcome.evaluated_step = step
  if value < outcome.best_value:
    outcome.best_step, outcome.best_value, outcome.stale = step, value, 0
  else:
    outcome.stale += 1
