"""Losses: pure functions of network outputs and targets."""

import optax

from recurrent.types import Array, Float, Int


def cross_entropy(
  logits: Float[Array, "B T V"], targets: Int[Array, "B T"]
) -> Float[Array, "B T"]:
  """Negative log-likelihood of each target, in nats.

  Args:
    logits: [batch, time, V], float32.
    targets: [batch, time], ids in [0, V).

  Returns:
    [batch, time].
  """
  return optax.softmax_cross_entropy_with_integer_labels(logits, targets)
