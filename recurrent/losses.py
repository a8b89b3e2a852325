"""Losses: pure functions of network outputs and targets."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from recurrent import numerics, rows
from recurrent.types import Activations, Array, Bool, Float, Int, Mask


def cross_entropy(
  logits: Float[Array, "*B V"],
  targets: Int[Array, "*B"],
  *,
  label_smoothing: float = 0.0,
) -> Float[Array, "*B"]:
  """Negative log-likelihood of each target, in nats.

  With `label_smoothing` s, the result is the cross-entropy of the distribution
  that has 1 - s at the target, and s divided equally among all V.

  Args:
    logits: [*batch, V], such as [batch, time, V]; float32.
    targets: [*batch], ids in [0, V).
    label_smoothing: s, from 0 to 1.

  Returns:
    [*batch].

  Reference:
    label smoothing: Szegedy et al., "Rethinking the Inception architecture for
    computer vision", 2016.
  """
  nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  if not label_smoothing:
    return nats
  even = jax.nn.logsumexp(logits, axis=-1) - logits.mean(axis=-1)
  return (1 - label_smoothing) * nats + label_smoothing * even


def coverage(weights: Float[Array, "*B T S"]) -> Float[Array, "*B T"]:
  """Attention to what was attended to before: sum_s min(w_ts, c_ts).

  c_t is the sum of the weights of all time steps before t.

  Args:
    weights: [*batch, T, S], attention weights.

  Returns:
    [*batch, T].

  Reference:
    See, Liu & Manning, "Get to the point: summarization with pointer-generator
    networks", 2017.
  """
  before = jnp.cumsum(weights, axis=-2) - weights
  return jnp.minimum(weights, before).sum(axis=-1)


def ctc(
  logits: Float[Array, "B T V"],
  mask: Mask,
  labels: Int[Array, "B N"],
  label_mask: Bool[Array, "B N"],
  *,
  blank: int = 0,
) -> Float[Array, "B"]:
  """Connectionist temporal classification: -log of a labelling's probability.

  The probability is the sum over all alignments of the labels with the time
  steps; see `recurrent.decoding.ctc`.

  Args:
    logits: [batch, time, V]; float32.
    mask: [batch, time], True where a time step is real.
    labels: [batch, N] symbols other than the blank, padded at their end.
    label_mask: [batch, N], True where a label is real.
    blank: the symbol that stands for no label.

  Returns:
    [batch] in nats; infinite where the labels need more time steps than there
    are. The gradient of such a row is zero.

  Reference:
    Graves et al., "Connectionist temporal classification: labelling unsegmented
    sequence data with recurrent neural networks", 2006.
  """
  needed = ctc_time_steps(labels, label_mask)
  possible = needed <= mask.sum(axis=1).astype(needed.dtype)
  padding = lambda real: 1.0 - real.astype(jnp.float32)
  # Its loop over time begins with this number, which must vary over the mesh as
  # the logits do.
  least = rows.vary(jnp.float32(-1e5), rows.axes_of((logits, mask)))
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    nats = optax.ctc_loss(
      logits,
      padding(mask),
      labels,
      padding(label_mask),
      blank_id=blank,
      log_epsilon=least,
    )
  return jnp.where(possible, nats, jnp.inf)


def ctc_time_steps(
  labels: Int[Array, "B N"], label_mask: Bool[Array, "B N"]
) -> Int[Array, "B"]:
  """The least number of time steps in which CTC can say labels, [batch].

  Each label takes one, and one more if it equals the label before it, since a
  blank must come between them.
  """
  again = (labels[:, 1:] == labels[:, :-1]) & label_mask[:, 1:]
  return (label_mask.sum(axis=1) + again.sum(axis=1)).astype(jnp.int32)


def pinball(
  quantiles: Float[Array, "*B Q"],
  targets: Float[Array, "*B"],
  levels: Sequence[float],
) -> Float[Array, "*B Q"]:
  """Pinball (quantile) loss: max(q e, (q - 1) e) with e = target - quantile.

  Args:
    quantiles: [*batch, Q], the forecast of each quantile.
    targets: [*batch].
    levels: the Q levels q of the quantiles, each between 0 and 1.

  Returns:
    [*batch, Q].

  Reference:
    Koenker & Bassett, "Regression quantiles", 1978.
  """
  level = jnp.asarray(levels, quantiles.dtype)
  level = jnp.broadcast_to(level, quantiles.shape)
  error = targets[..., None] - quantiles
  return jnp.maximum(level * error, (level - 1) * error)


def gaussian_nll(
  mean: Float[Array, "*B"], scale: Float[Array, "*B"], targets: Array
) -> Float[Array, "*B"]:
  """Negative log-likelihood of a normal distribution, in nats."""
  return -jax.scipy.stats.norm.logpdf(targets, mean, scale)


def student_t_nll(
  freedom: Float[Array, "*B"],
  location: Float[Array, "*B"],
  scale: Float[Array, "*B"],
  targets: Array,
) -> Float[Array, "*B"]:
  """Negative log-likelihood of Student's t distribution, in nats.

  Args:
    freedom: degrees of freedom, above 0.
    location: its centre.
    scale: its scale, above 0.
    targets: the values.
  """
  return -jax.scipy.stats.t.logpdf(targets, freedom, location, scale)


def activation_penalty(
  outputs: Activations, mask: Mask | None = None
) -> Float[Array, ""]:
  """Activation regularisation (AR): the mean square of a layer's outputs.

  Args:
    outputs: [batch, time, H], after dropout.
    mask: [batch, time], True where a time step is real.

  Returns:
    The mean over real time steps and units; zero if no time step is real.

  Reference:
    Merity, McCann & Socher, "Revisiting activation regularization for language
    RNNs", 2017.
  """
  return _mean(jnp.square(numerics.widen(outputs)).mean(axis=-1), mask)


def temporal_activation_penalty(
  outputs: Activations,
  mask: Mask | None = None,
  resets: Mask | None = None,
) -> Float[Array, ""]:
  """Temporal activation regularisation (TAR): mean squared output change.

  The change is the difference between the outputs of neighbouring time steps.

  Args:
    outputs: [batch, time, H], before dropout.
    mask: [batch, time], True where a time step is real; only pairs of
      neighbours that are both real count.
    resets: [batch, time], True where a new sequence begins. The pair of that
      time step and the one before it does not count.

  Returns:
    The mean over the counted pairs and the units; zero if there is no pair.

  Reference:
    Merity, McCann & Socher, "Revisiting activation regularization for language
    RNNs", 2017.
  """
  outputs = numerics.widen(outputs)
  changes = jnp.square(outputs[:, 1:] - outputs[:, :-1]).mean(axis=-1)
  counts = jnp.ones(changes.shape, bool)
  if mask is not None:
    counts = counts & mask[:, 1:] & mask[:, :-1]
  if resets is not None:
    counts = counts & ~resets[:, 1:]
  return _mean(changes, counts)


def _mean(values, mask):
  """The mean of the values where the mask is True."""
  if mask is None:
    mask = jnp.ones(values.shape, bool)
  values = jnp.where(mask, values, jnp.zeros_like(values))
  value, count = rows.total((values.sum(), mask.sum()))
  return value / jnp.maximum(count, 1).astype(values.dtype)
