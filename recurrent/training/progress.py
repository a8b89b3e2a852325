"""A progress bar on a terminal, plain lines elsewhere; both on stderr."""

import logging
import sys
import time
from typing import Any

import jax
import tqdm

LOG = logging.getLogger("recurrent")


class Progress:
  """Shows the speed, the remaining time and the metrics of a run.

  Args:
    step: number of the step at which this session begins.
    steps: total number of training steps.
    units: name of what a step consumes, such as "tokens".
    evaluated: names the parameters that evaluations use, if these are not the
      current ones.
  """

  def __init__(
    self,
    step: int,
    steps: int,
    units: str,
    evaluated: str = "",
  ):
    self._units = units
    self._consumed = 0
    self._waited = 0.0
    self._steps = steps
    self._evaluated = f" ({evaluated})" if evaluated else ""
    self._last = (time.monotonic(), step, 0, 0.0)
    self._bar = None
    if sys.stderr.isatty() and jax.process_index() == 0:
      self._bar = tqdm.tqdm(
        initial=step, total=steps, unit="step", dynamic_ncols=True
      )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def update(self, step: int, units: int, waited: float = 0.0) -> None:
    """Moves the bar to a step that was dispatched.

    Args:
      step: number of steps dispatched so far.
      units: what the step consumes.
      waited: seconds that the loop waited for the step's batch.
    """
    self._consumed += units
    self._waited += waited
    if self._bar is not None:
      self._bar.update(step - self._bar.n)

  def report(self, step: int, values: dict[str, float]) -> dict[str, float]:
    """Shows metrics of training; returns the speed since the last report.

    `data_wait` is the share of the time in which the loop waited for batches.
    """
    now = (time.monotonic(), step, self._consumed, self._waited)
    seconds, steps, units, waited = (
      a - b for a, b in zip(now, self._last, strict=True)
    )
    self._last = now
    rate = steps / max(seconds, 1e-9)
    unit_rate = units / max(seconds, 1e-9)
    speed = {
      "steps_per_second": rate,
      f"{self._units}_per_second": unit_rate,
      "data_wait": waited / max(seconds, 1e-9),
    }
    per_second = f"{unit_rate:,.0f} {self._units.replace('_', ' ')}/s"
    left = tqdm.tqdm.format_interval((self._steps - step) / max(rate, 1e-9))
    waiting = f", data wait {speed['data_wait']:.1%}"
    self._show(step, f"{per_second}{waiting}, ETA {left}, {_text(values)}")
    return speed

  def note(self, step: int, values: dict[str, Any]) -> None:
    """Shows metrics of an evaluation; excludes its time from the speed."""
    self._show(step, _text(values) + self._evaluated)
    self._last = (time.monotonic(), step, self._consumed, self._waited)

  def _show(self, step, text):
    if self._bar is not None:
      self._bar.set_postfix_str(text)
    elif jax.process_index() == 0:
      LOG.info("step %d/%d: %s", step, self._steps, text)

  def say(self, text: str) -> None:
    """Prints text above the bar."""
    if jax.process_index() == 0:
      tqdm.tqdm.write(text, file=sys.stderr)

  def close(self) -> None:
    """Closes the bar, and leaves it on the terminal."""
    if self._bar is not None:
      self._bar.close()


def _text(values: dict[str, Any]) -> str:
  return ", ".join(
    f"{key} {value:.4g}"
    for key, value in values.items()
    if isinstance(value, int | float)
  )
