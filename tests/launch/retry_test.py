"""Tests of the decision to start a run again."""

import pytest

from launch import retry


def outcome(attempts, retries=2, before=-1, **options):
  """The exit code, the delays, and what was said, of a list of attempts.

  An attempt is its exit code and the newest checkpoint after it; the last one
  would be repeated for ever.
  """
  steps = [before]
  attempts = list(attempts)
  delays, said = [], []

  def run_once():
    code, step = attempts.pop(0) if len(attempts) > 1 else attempts[0]
    steps.append(step)
    return code

  code = retry.supervise(
    run_once,
    lambda: steps[-1],
    retries,
    said.append,
    sleep=delays.append,
    **options,
  )
  return code, delays, said


def test_preemptions_cost_no_retry():
  attempts = [(75, step) for step in range(10, 200, 10)] + [(0, 200)]
  assert outcome(attempts, retries=0)[:2] == (0, [0.0] * 19)


def test_preemptions_before_any_checkpoint_wait_longer_and_longer():
  delays = outcome([(75, -1)] * 5 + [(0, 1)], retries=0)[1]
  assert delays == [0.0, 10.0, 20.0, 40.0, 80.0]


def test_failures_back_off_and_end_with_the_place():
  code, delays, said = outcome([(1, 40), (134, 40), (1, 40)], before=40)
  assert (code, delays) == (1, [10.0, 20.0])
  assert said[-1] == (
    "not started again: failure 3 since the checkpoint of step 40 (exit code 1,"
    " 134, 1): all 2 retries are used"
  )


def test_failures_before_the_first_checkpoint_say_so():
  assert "before the first checkpoint" in outcome([(1, -1)], retries=0)[2][-1]


def test_a_new_checkpoint_gives_all_retries_back():
  # Ten failures, each of which has made progress, and two retries.
  attempts = [(1, step) for step in range(1, 11)] + [(0, 11)]
  code, delays, _ = outcome(attempts)
  assert (code, delays) == (0, [10.0] * 10)


def test_preemptions_between_failures_do_not_hide_them():
  attempts = [(1, 5), (75, 5), (1, 5), (75, 5), (1, 5)]
  assert outcome(attempts, before=5)[0] == 1


def test_a_wrong_command_is_not_run_again():
  assert outcome([(2, -1)], retries=9)[:2] == (2, [])


def test_without_knowledge_of_checkpoints_every_failure_counts():
  assert outcome([(1, None)], retries=3, before=None)[1] == [10.0, 20.0, 40.0]


def test_the_longest_delay_is_five_minutes():
  delays = outcome([(1, -1)], retries=1000)[1]
  assert delays[-1] == max(delays) == 300.0


def test_what_was_asked_to_stop_is_not_started_again():
  assert outcome([(75, 5)], stopped=lambda: True)[:2] == (75, [])


def test_a_scheduler_that_starts_again_by_itself_gets_the_preemption():
  assert outcome([(75, 5)], rerun_preempted=False)[:2] == (75, [])


@pytest.mark.parametrize(
  ("folders", "step"),
  [
    ([], -1),
    (["7.orbax-checkpoint-tmp", "best"], -1),
    (["9", "120", "40.orbax-checkpoint-tmp"], 120),
  ],
)
def test_the_newest_checkpoint_is_found(folders, step, tmp_path):
  for name in folders:
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
  assert retry.newest_checkpoint(str(tmp_path)) == step


@pytest.mark.parametrize(
  ("program", "step"),
  [
    ("echo gs://b/x/checkpoints/20/; echo gs://b/x/checkpoints/100/", 100),
    ("echo 'One or more URLs matched no objects.' >&2; exit 1", -1),
    ("echo 'no permission' >&2; exit 1", None),
  ],
)
def test_checkpoints_in_a_bucket_are_listed_by_gcloud(
  program, step, tmp_path, monkeypatch
):
  gcloud = tmp_path / "gcloud"
  gcloud.write_text(f"#!/bin/sh\n{program}\n")
  gcloud.chmod(0o755)
  monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
  assert retry.newest_checkpoint("gs://b/x") == step


def test_an_unknown_store_has_an_unknown_step():
  assert retry.newest_checkpoint("s3://b/x") is None
