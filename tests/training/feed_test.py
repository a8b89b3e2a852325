"""Tests that batches are read ahead in order, and that errors arrive."""

import threading

import pytest

from recurrent.training.feed import Feed

NEVER = lambda: False


class Batches:
  """Batches that are their step, and fail or wait at one of them."""

  def __init__(self, fail=None, wait=None):
    self.fail, self.wait, self.read = fail, wait, []
    self.released = threading.Event()

  def __getitem__(self, step):
    if step == self.wait:
      self.released.wait(60)
    if step == self.fail:
      raise OSError("unreadable")
    self.read.append(step)
    return step


def feed(batches, begin=0, steps=9, ahead=2):
  return Feed(
    batches, lambda b: b * 10, lambda b: b + 1, begin, steps, ahead=ahead
  )


@pytest.mark.parametrize("ahead", [0, 1, 2, 20])
def test_each_step_gets_its_batch_on_the_device_and_its_units(ahead):
  with feed(Batches(), 3, ahead=ahead) as source:
    found = [source.get(step, NEVER) for step in range(3, 9)]
  assert [f.batch for f in found] == [30, 40, 50, 60, 70, 80]
  assert [f.units for f in found] == [4, 5, 6, 7, 8, 9]


def test_it_reads_no_more_than_asked_ahead_and_not_beyond_the_end():
  batches = Batches()
  with feed(batches, ahead=2) as source:
    source.get(0, NEVER)
    for _ in range(50):  # One is in the thread's hand.
      assert max(batches.read, default=0) <= 3
  for step in range(1, 9):
    with feed(batches, step) as source:
      source.get(step, NEVER)
  assert max(batches.read) == 8


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_is_raised_at_its_step_and_not_before(ahead):
  with feed(Batches(fail=2), ahead=ahead) as source:
    assert [source.get(step, NEVER).batch for step in (0, 1)] == [0, 10]
    with pytest.raises(OSError, match="unreadable"):
      source.get(2, NEVER)


def test_who_is_told_to_stop_does_not_wait_for_a_batch():
  batches = Batches(wait=1)
  with feed(batches) as source:
    assert source.get(0, NEVER).batch == 0
    assert source.get(1, lambda: True) is None
    batches.released.set()
    assert source.get(1, NEVER).batch == 10


def test_the_time_that_the_loop_waited_is_measured():
  batches = Batches(wait=1)
  with feed(batches) as source:
    source.get(0, NEVER)
    threading.Timer(0.3, batches.released.set).start()
    assert source.get(1, NEVER).waited >= 0.2


def test_no_thread_is_left():
  before = threading.active_count()
  with feed(Batches()) as source:
    source.get(0, NEVER)
  assert threading.active_count() == before
