"""Pooling over time: one vector a row, from the outputs of its time steps.

All take outputs [batch, time, H] and a mask, and no time step that is not real
has a part in the result or a gradient. A row without a real time step is
pooled to zeros.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

from recurrent import numerics
from recurrent.masking import blank
from recurrent.nn import attention
from recurrent.types import Activations, Array, Float, Mask


def pool_last(
  outputs: Activations, mask: Mask | None = None
) -> Float[Array, "B D"]:
  """The outputs of the last real time step of each row, [batch, H]."""
  return _at_end(outputs, mask, reverse=False)


def pool_ends(
  outputs: Activations, mask: Mask | None = None
) -> Float[Array, "B D"]:
  """What each direction of a bidirectional layer has found in all of a row.

  That is the outputs of the last real time step in the forward half of the
  features, and those of the first in the backward half, as `nn.Bidirectional`
  with `merge="concat"` puts them side by side.

  Raises:
    ValueError: if the features are not two halves.
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
  """The mean over the real time steps, [batch, H], summed in float32."""
  total = numerics.widen(blank(mask, outputs)).sum(axis=1)
  real = _mask_of(outputs, mask).sum(axis=1, keepdims=True, dtype=total.dtype)
  real = jnp.broadcast_to(jnp.maximum(real, 1), total.shape)
  return (total / real).astype(outputs.dtype)


def pool_max(
  outputs: Activations, mask: Mask | None = None
) -> Float[Array, "B D"]:
  """The largest of each feature over the real time steps, [batch, H]."""
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
  """Outputs [batch, time, H] to one vector a row, [batch, H].

  "last": the last real time step. "ends": the same for the outputs of
  `Bidirectional`: of the forward half the last real time step, of the backward
  half the first. "mean", "max": over all real time steps. "attention": their
  mean weighted by softmax(outputs . query), the query being a parameter; it
  starts at zero, so the weights start equal.

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
    >>> pooling.query[...] += 10  # it looks for large outputs
    >>> round(float(pooling(outputs, mask)[0, 0]), 3)
    3.0

  Args:
    kind: "last", "ends", "mean", "max" or "attention".
    features: width H of the outputs.

  Raises:
    ValueError: if there is no such kind, or the width does not fit it.

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
    self.features = attention.check_positive("features", features)
    if kind == "ends" and features % 2:
      raise ValueError(f'features must be even for kind="ends", got {features}')
    learned = kind == "attention"
    self.query = nnx.Param(jnp.zeros((features,))) if learned else None

  def __call__(
    self, outputs: Activations, mask: Mask | None = None
  ) -> Float[Array, "B D"]:
    """Pools over time.

    Args:
      outputs: [batch, time, features].
      mask: [batch, time], True where a time step is real; None: everywhere.

    Returns:
      [batch, features] in the dtype of the outputs, zero in rows without a
      real time step.

    Raises:
      ValueError: if an argument has the wrong shape or dtype.
    """
    attention.check_sequence(outputs, self.features, mask, None, name="outputs")
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
  """The last real time step of each row, or the first if `reverse`."""
  if mask is None:
    return outputs[:, 0 if reverse else -1]
  # argmax finds the first True.
  place = jnp.argmax(mask if reverse else mask[:, ::-1], axis=1)
  place = place if reverse else mask.shape[1] - 1 - place
  found = attention.take(blank(mask, outputs), place[:, None])
  return found[:, 0]
