"""Tests of the training loop, with a step that only counts."""

import math

import jax.numpy as jnp
import pytest

from recurrent.errors import DivergedError, Preempted
from recurrent.metrics import Mean
from recurrent.training import loop
from recurrent.training.state import TrainState
from recurrent.training.step import Status


class Saved:
  """Stands in for checkpoints."""

  def __init__(self):
    self.steps, self.best, self.progress = [], [], None

  def save(self, step, state, progress, best_step):
    self.steps.append(step)
    self.best.append(best_step)
    self.progress = progress

  def wait(self):
    pass

  check = wait


class Rows:
  """Stands in for the writer and for the progress bar."""

  def __init__(self):
    self.rows = []

  def write(self, step, values):
    self.rows.append((step, values))

  def report(self, step, values):
    return {}

  board = note = say = update = lambda self, *args: None


class Signal:
  """Stands in for preemption, where the loop alone polls it."""

  caught = False

  def __init__(self, at=math.inf):
    self.at, self.polls = at, 0

  def agreed(self):
    self.polls += 1
    return self.polls > self.at

  def hold(self):
    pass


def state(step=0):
  zero = jnp.int32(0)
  sums = {"nats": Mean.zero()}
  return TrainState(jnp.int32(step), {}, (), {}, (), sums, zero, zero)


def fit(
  schedule,
  losses=lambda step: 1.0,
  values=lambda step: 1.0,
  signal=None,
  outcome=None,
  start=0,
  evaluate=None,
):
  saved, rows, seen = Saved(), Rows(), []

  def train_step(state, batch):
    seen.append(batch)
    step = int(state.step)
    loss = losses(step)
    bad = 0 if math.isfinite(loss) else int(state.skipped_in_a_row) + 1
    mean = Mean(jnp.float32(0 if bad else loss), jnp.float32(not bad))
    state = state._replace(
      step=jnp.int32(step + 1),
      metrics={"nats": state.metrics["nats"].merge(mean)},
      skipped=state.skipped + jnp.int32(bad > 0),
      skipped_in_a_row=jnp.int32(bad),
    )
    return state, Status(jnp.float32(loss), state.skipped, jnp.int32(bad))

  evaluations = []

  def default_evaluate(params, stop):
    evaluations.append(len(seen) + start)
    return {"valid": values(evaluations[-1])}

  class Batches:
    def __getitem__(self, step):
      return step

  result = None
  try:
    result = loop.fit(
      state(start),
      train_step,
      Batches(),
      loop.Hooks(
        put=lambda batch: batch,
        evaluate=evaluate or default_evaluate,
        on_evaluation=lambda step, params: "",
        describe=lambda means, step: {"train_loss": means["nats"]},
      ),
      schedule,
      objective="valid",
      outcome=outcome or loop.Outcome(),
      checkpoints=saved,
      writer=rows,
      progress=rows,
      preemption=signal or Signal(),
    )
  finally:
    fit.last = saved, rows.rows, seen, evaluations
  return result


def test_steps_rows_evaluations_and_checkpoints_come_when_due():
  final, _ = fit(loop.Schedule(10, log_every=3, eval_every=4))
  saved, rows, seen, evaluations = fit.last
  assert seen == list(range(10)) and int(final.step) == 10
  assert [s for s, row in rows if "train_loss" in row] == [3, 6, 9, 10]
  assert evaluations == [4, 8, 10]
  assert saved.steps == [4, 8, 10]


def test_each_row_is_the_mean_since_the_row_before():
  fit(loop.Schedule(6, log_every=3, eval_every=6), losses=lambda s: 4 + s)
  rows = [row["train_loss"] for _, row in fit.last[1] if "train_loss" in row]
  assert rows == [5.0, 8.0]


def test_checkpoints_may_come_more_often_than_evaluations():
  fit(loop.Schedule(6, log_every=6, eval_every=6, checkpoint_every=2))
  assert fit.last[0].steps == [2, 4, 6]


def test_a_better_evaluation_is_saved_and_named_best():
  values = {2: 3.0, 4: 1.0, 6: 2.0, 8: 2.0}
  _, outcome = fit(
    loop.Schedule(8, log_every=8, eval_every=2, checkpoint_every=8),
    values=values.get,
  )
  assert fit.last[0].steps == [2, 4, 8]
  assert (outcome.best_step, outcome.best_value) == (4, 1.0)
  assert fit.last[0].best == [2, 4, 4]


def test_it_stops_when_evaluations_get_no_better():
  final, outcome = fit(
    loop.Schedule(100, log_every=50, eval_every=1, patience=3),
    values=lambda step: abs(step - 5),
  )
  assert int(final.step) == 8 and outcome.best_step == 5


def test_an_evaluation_that_is_not_a_number_is_never_the_best():
  _, outcome = fit(
    loop.Schedule(3, log_every=3, eval_every=1),
    values={1: math.nan, 2: 5.0, 3: math.nan}.get,
  )
  assert outcome.best_step == 2


def test_a_signal_saves_at_once_and_says_so():
  with pytest.raises(Preempted, match="step 5"):
    fit(loop.Schedule(10, log_every=4, eval_every=10), signal=Signal(at=5))
  assert fit.last[0].steps == [5]


def test_a_signal_after_the_last_step_is_no_preemption():
  final, _ = fit(loop.Schedule(3, log_every=3, eval_every=3), signal=Signal(3))
  assert int(final.step) == 3


def test_an_interrupted_evaluation_is_made_up_for_after_the_resume():
  schedule = loop.Schedule(8, log_every=2, eval_every=4)
  with pytest.raises(Preempted):
    fit(schedule, evaluate=lambda params, stop: None)
  saved = fit.last[0]
  assert saved.steps == [4]
  fit(schedule, outcome=loop.Outcome(**saved.progress), start=4)
  assert fit.last[3] == [4, 8]
  # The row of training metrics at 4 is written already.
  assert [s for s, row in fit.last[1] if "train_loss" in row] == [6, 8]


def test_a_resumed_run_begins_with_the_batch_that_comes_next():
  fit(loop.Schedule(9, log_every=9, eval_every=9), start=7)
  assert fit.last[2] == [7, 8]


def test_updates_that_are_never_finite_end_the_run_unsaved():
  with pytest.raises(DivergedError, match="no finite update in the last"):
    fit(
      loop.Schedule(100, log_every=20, eval_every=100),
      losses=lambda step: math.nan if step >= 5 else 1.0,
    )
  assert fit.last[0].steps == []


def test_a_run_shorter_than_the_patience_with_skips_diverges_as_well():
  with pytest.raises(DivergedError):
    fit(loop.Schedule(4, 4, 4), losses=lambda step: math.inf)
  assert fit.last[0].steps == []


def test_a_few_skipped_steps_do_not():
  fit(
    loop.Schedule(40, log_every=20, eval_every=40),
    losses=lambda step: math.nan if 10 <= step < 15 else 1.0,
  )
  assert fit.last[0].steps == [40]


def test_a_loss_that_grows_beyond_return_ends_the_run():
  with pytest.raises(DivergedError, match="grew from 1 to"):
    fit(
      loop.Schedule(100, log_every=10, eval_every=100),
      losses=lambda step: 1.0 + step,
    )


@pytest.mark.parametrize(
  ("first", "last"),
  [(-1.0, -2.5), (-1.0, 3.0), (1e-6, 0.5), (0.0, 1.0), (4.0, 13.0)],
)
def test_a_loss_below_or_near_zero_may_move_by_a_few_nats(first, last):
  fit(
    loop.Schedule(40, log_every=10, eval_every=40),
    losses=lambda step: last if step else first,
  )


@pytest.mark.parametrize("first", [-5.0, 0.0, 0.1, 4.0])
def test_a_loss_that_grows_by_far_ends_the_run_wherever_it_began(first):
  with pytest.raises(DivergedError, match="grew"):
    fit(
      loop.Schedule(40, log_every=10, eval_every=40),
      losses=lambda step: 1e3 if step else first,
    )


def test_the_first_loss_is_the_first_finite_one():
  _, outcome = fit(
    loop.Schedule(10, log_every=5, eval_every=10),
    losses=lambda step: math.nan if step < 3 else 2.0,
  )
  assert outcome.first_loss == 2.0


@pytest.mark.parametrize("steps", [3, 5, 7])
def test_a_run_that_has_its_steps_ends_with_an_evaluation(steps):
  final, outcome = fit(
    loop.Schedule(steps, log_every=3, eval_every=10),
    start=7,
    outcome=loop.Outcome(logged_step=6),
  )
  assert int(final.step) == 7 and outcome.best_step == 7
  assert fit.last[2] == [] and fit.last[0].steps == [7]


def test_an_evaluation_made_up_for_is_recorded_though_the_step_is_saved():
  schedule = loop.Schedule(4, log_every=2, eval_every=4)
  with pytest.raises(Preempted):
    fit(schedule, evaluate=lambda params, stop: None)
  before = fit.last[0].progress
  fit(schedule, outcome=loop.Outcome(**before), start=4)
  saved = fit.last[0]
  assert before["best_step"] == -1 and before["evaluated_step"] == 0
  assert saved.progress["best_step"] == saved.progress["evaluated_step"] == 4
