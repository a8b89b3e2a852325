"""Pooling over time: outputs [batch, time, H] to one vector per row.

All functions take outputs [batch, time, H] and an optional mask [batch, time],
which `recurrent.length_mask` makes from the lengths of padded sequences.
Masked time steps affect neither the result nor any gradient. A row whose time
steps are all masked is pooled to zeros.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

from recurrent import numerics
from recurrent.checks import check_positive, check_sequence
from recurrent.masking import as_mask, blank
from recurrent.nn import attention
from recurrent.types import Activations, Array, Float, Lengths, Mask


def pool_last(
  outputs: Activations, mask: Mask | None = None
) -> Float[Array, "B D"]:
  """Returns the outputs of each row's last real time step, [batch, H]."""
  return _at_end(outputs, mask, reverse=False)


def pool_ends(
  outputs: Activations, mask: Mask | None = None
) -> Float[Array, "B D"]:
  """Returns the final outputs of both directions of a layer, [batch, H].

  The outputs must be those of `nn.Bidirectional` with `merge="concat"`. Of the
  first half of the features, the forward layer's, the last real time step is
  taken; of the second half, the backward layer's, the first real time step.

  Raises:
    ValueError: if the number of features is odd.
  """
  if outputs.shape[-1] % 2:
    raise ValueError(
      f"outputs must have two halves, got {outputs.shape[-1]} features"
    )
  ahead, behind = jnp.split(outputs, 2, axis=-1)
  return jnp.concatenate(
    [_at_end(ahead, mask, reverse=False), _at_end(behind, mask, reverse=True)],
    axis=-1,
  )


def pool_mean(
  outputs: Activations, mask: Mask | None = None
) -> Float[Array, "B D"]:
  """Returns the mean over the real time steps, [batch, H].

  It is summed in float32 at least.
  """
  total = numerics.widen(blank(mask, outputs)).sum(axis=1)
  real = _mask_of(outputs, mask).sum(axis=1, keepdims=True, dtype=total.dtype)
  real = jnp.broadcast_to(jnp.maximum(real, 1), total.shape)
  return (total / real).astype(outputs.dtype)


def pool_max(
  outputs: Activations, mask: Mask | None = None
) -> Float[Array, "B D"]:
  """Returns each feature's maximum over the real time steps, [batch, H]."""
  mask = _mask_of(outputs, mask)
  shown = jnp.broadcast_to(mask[..., None], outputs.shape)
  largest = jnp.max(outputs, axis=1, where=shown, initial=-jnp.inf)
  return blank(mask.any(axis=1), largest)


POOLINGS: dict[str, Callable[..., Array]] = {
  "last": pool_last,
  "ends": pool_ends,
  "mean": pool_mean,
  "max": pool_max,
}


class Pooling(nnx.Module):
  """Pools outputs [batch, time, H] over time to [batch, H].

  The kinds of pooling are:

  - "last": the last real time step.
  - "ends": for the outputs of `Bidirectional` with `merge="concat"`, the last
    real time step of the forward half and the first of the backward half.
  - "mean", "max": the mean or maximum over all real time steps.
  - "attention": the mean over all real time steps, weighted by
    softmax(outputs . query). The query is a parameter that is initialised to
    zero, so that all weights are equal at first.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from recurrent import nn
    >>> outputs = jnp.array([[[1.0], [3.0], [5.0]]])
    >>> mask = jnp.array([[True, True, False]])
    >>> [float(nn.Pooling(kind, 1)(outputs, mask)[0, 0])
    ...  for kind in ("last", "mean", "max")]
    [3.0, 2.0, 3.0]
    >>> pooling = nn.Pooling("attention", 1)
    >>> pooling.query[...] += 10  # gives large outputs large weights
    >>> round(float(pooling(outputs, mask)[0, 0]), 3)
    3.0

  Args:
    kind: "last", "ends", "mean", "max" or "attention".
    features: width H of the outputs.

  Raises:
    ValueError: if the kind is unknown, `features` is not a positive integer,
      or it is odd and the kind is "ends".

  Reference:
    attention: Raffel & Ellis, "Feed-forward networks with attention can solve
    some long-term memory problems", 2016.
  """

  def __init__(self, kind: str, features: int):
    if kind not in (*POOLINGS, "attention"):
      raise ValueError(
        f"kind must be one of {[*POOLINGS, 'attention']}, got {kind!r}"
      )
    self.kind = kind
    self.features = check_positive("features", features)
    if kind == "ends" and features % 2:
      raise ValueError(f'features must be even for kind="ends", got {features}')
    learned = kind == "attention"
    self.query = nnx.Param(jnp.zeros((features,))) if learned else None

  def __call__(
    self,
    outputs: Activations,
    mask: Mask | None = None,
    *,
    seq_lengths: Lengths | None = None,
  ) -> Float[Array, "B D"]:
    """Pools the outputs over time.

    Args:
      outputs: [batch, time, features].
      mask: [batch, time], True where a time step is real; None: everywhere.
      seq_lengths: [batch], number of real time steps in each row, instead of a
        mask; see `recurrent.length_mask`.

    Returns:
      [batch, features] in the dtype of the outputs, zero in rows without a
      real time step.

    Raises:
      ValueError: if an argument has the wrong shape or dtype.
    """
    mask = as_mask(mask, seq_lengths, outputs)
    check_sequence(outputs, self.features, mask, None, name="outputs")
    if self.query is None:
      return POOLINGS[self.kind](outputs, mask)
    outputs = blank(mask, outputs)
    query = self.query[...].astype(outputs.dtype)
    scores = numerics.einsum("bth,h->bt", outputs, query)
    weights = attention.masked_softmax(scores, _mask_of(outputs, mask))
    return numerics.einsum("bth,bt->bh", outputs, weights.astype(outputs.dtype))


def _mask_of(outputs, mask):
  return jnp.ones(outputs.shape[:2], bool) if mask is None else mask


def _at_end(outputs, mask, reverse):
  """Takes the last real time step of each row, or the first if `reverse`."""
  if mask is None:
    return outputs[:, 0 if reverse else -1]
  # argmax finds the first True.
  place = jnp.argmax(mask if reverse else mask[:, ::-1], axis=1)
  place = place if reverse else mask.shape[1] - 1 - place
  found = attention.take(blank(mask, outputs), place[:, None])
  return found[:, 0]
