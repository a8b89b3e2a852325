"""Scores texts by a decoding step, one token after another."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

from recurrent import losses
from recurrent.decoding.sampling import Step
from recurrent.masking import hold
from recurrent.metrics import Mean
from recurrent.types import Array, Carry, Float


def score(
  step: Step, carry: Carry, windows: Iterable[Mapping[str, Any]]
) -> Mean:
  """Computes the mean cross-entropy of the targets of all windows, in nats.

  It is the score of a model as it decodes, such as with packed weights.

  Args:
    step: `(carry, token [batch]) -> (carry, logits [batch, V])`; a
      `jax.tree_util.Partial` if it has weights, as for `stream`.
    carry: the initial carry, [batch, ...].
    windows: dicts of `inputs`, `targets`, `mask` and `weights`, [batch, time],
      such as those of `data.EvalStreams`. The carry of one window is the
      initial carry of the next.

  Returns:
    The mean over all targets, weighted by `weights`.
  """
  windows = list(windows)
  total = Mean.zero()
  for nats, window in zip(
    score_tokens(step, carry, windows), windows, strict=True
  ):
    total = total.merge(Mean.of(nats, window["weights"]))
  return total


def score_tokens(
  step: Step, carry: Carry, windows: Iterable[Mapping[str, Any]]
) -> Iterator[Float[Array, "B T"]]:
  """Yields the cross-entropy of each target of each window, in nats.

  The arguments are those of `score`; `weights` are not needed.
  """
  step = jax.tree_util.Partial(step)
  for window in windows:
    needed = {name: window[name] for name in ("inputs", "targets", "mask")}
    carry, nats = _score(step, carry, needed)
    yield nats


@jax.jit
def _score(step, carry, window):
  def time_step(carry, now):
    new, logits = step(carry, now["inputs"])
    nats = losses.cross_entropy(logits, now["targets"])
    return hold(now["mask"], new, carry), nats

  by_time = {name: x.T for name, x in window.items()}
  carry, nats = jax.lax.scan(time_step, carry, by_time)
  return carry, nats.T
