"""Attention: additive, multiplicative, local, multi-head, and self-attention.

The first four attend to an encoded sequence and share one interface, made for
decoders. The keys and values do not depend on the query, so they are computed
once; each decoding step then computes only what depends on its query.

  keys = attention.precompute(encoded, mask)
  context, weights = attention(keys, query)

Scores and their softmax are computed in float32 at least. Masked positions are
set to zero before any arithmetic. If all positions are masked, the weights and
the context are zero.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from recurrent import initializers, numerics
from recurrent.checks import (
  check_flags,
  check_floating,
  check_positive,
  check_sequence,
)
from recurrent.kernels import chunks
from recurrent.masking import blank
from recurrent.rows import vary_alike
from recurrent.types import (
  Activations,
  Array,
  Bool,
  Float,
  Int,
  Mask,
  Num,
  PyTree,
)

SCORES = ("dot", "general")


class Keys(NamedTuple):
  """The keys and values of an encoded sequence, with its mask.

  Attributes:
    keys: [*batch, S, ...], where S is the length of the encoded sequence.
      Queries are compared with these.
    values: [*batch, S, ...], of which the context is the weighted mean.
    mask: [*batch, S], True where a position may be attended to.
  """

  keys: Array
  values: Array
  mask: Bool[Array, "*B S"]


class Past(NamedTuple):
  """What a decoder has attended to before a query, for attention with memory.

  Attributes:
    attended: [*batch, S], the sum of the weights of all earlier queries.
    number: [*batch], the number of earlier queries.
  """

  attended: Float[Array, "*B S"]
  number: Int[Array, "*B"]

  @classmethod
  def none(
    cls,
    mask: Bool[Array, "*B S"],
    dtype: jax.typing.DTypeLike = jnp.float32,
  ) -> "Past":
    """That of the first query to a sequence with this mask."""
    attended = jnp.zeros(mask.shape, dtype)
    return cls(attended, jnp.zeros(mask.shape[:-1], jnp.int32))

  def after(self, weights: Float[Array, "*B S"]) -> "Past":
    """That of the next query, after one with these weights."""
    return Past(self.attended + weights, self.number + 1)


class Attention(nnx.Module):
  """Base class of attention over an encoded sequence.

  Args:
    query_features: width Q of the queries.
    encoded_features: width E of the encoded sequence.

  Attributes:
    normalised: whether the weights sum to one.

  Raises:
    ValueError: if a width is not a positive integer.
  """

  normalised: bool = True

  def __init__(self, query_features: int, encoded_features: int):
    self.query_features = check_positive("query_features", query_features)
    self.encoded_features = check_positive("encoded_features", encoded_features)

  @property
  def context_features(self) -> int:
    """Width C of the context: that of the encoded sequence by default."""
    return self.encoded_features

  def precompute(
    self,
    encoded: Float[Array, "*B S E"],
    mask: Bool[Array, "*B S"] | None = None,
  ) -> Keys:
    """Computes the keys and values, which do not depend on the query.

    Args:
      encoded: [*batch, S, encoded_features].
      mask: [*batch, S], True where `encoded` is real; None: everywhere.

    Returns:
      `Keys`, which any number of calls can use.

    Raises:
      ValueError: if an argument has the wrong shape or dtype.
    """
    if encoded.ndim < 2 or encoded.shape[-1] != self.encoded_features:
      raise ValueError(
        f"encoded must be [*batch, S, {self.encoded_features}], got"
        f" {encoded.shape}"
      )
    check_floating("encoded", encoded)
    check_flags("mask", mask, encoded.shape[:-1], "[*batch, S]")
    encoded = blank(mask, encoded)
    if mask is None:
      mask = jnp.ones(encoded.shape[:-1], bool)
    keys, values = self._keys_and_values(encoded)
    return Keys(keys, values, mask)

  def __call__(
    self, keys: Keys, query: Float[Array, "... Q"], past: Past | None = None
  ) -> tuple[Float[Array, "... C"], Float[Array, "... S"]]:
    """Computes the mean of the values, weighted by their match with a query.

    Args:
      keys: from `precompute`.
      query: [*batch, query_features], or [*batch, T, query_features] for T
        queries at once; its dtype must be that of `encoded`.
      past: what was attended to before; None: nothing. Only coverage and
        monotonic local attention depend on it.

    Returns:
      The context [*batch, C] or [*batch, T, C], and the weights over S,
      [*batch, S] or [*batch, T, S] (with many heads [..., heads, S]), float32
      at least. They sum to one, or to zero where all is masked.

    Raises:
      ValueError: if the query has the wrong shape or dtype.
    """
    batch = keys.mask.shape[:-1]
    axis = len(batch)
    if (
      query.ndim not in (axis + 1, axis + 2)
      or query.shape[:axis] != batch
      or query.shape[-1] != self.query_features
    ):
      raise ValueError(
        f"query must be [*batch, {self.query_features}] or [*batch, T,"
        f" {self.query_features}] with batch {batch}, got {query.shape}"
      )
    if query.dtype != keys.values.dtype:
      raise ValueError(
        f"query must be {keys.values.dtype} as the keys are, got {query.dtype}"
      )
    if past is None:
      past = Past.none(keys.mask, numerics.wide_dtype(query.dtype))
    if query.ndim == axis + 2:
      return self._read(keys, query, past)
    found = self._read(keys, jnp.expand_dims(query, axis), past)
    context, weights = (jnp.squeeze(x, axis) for x in found)
    return context, weights

  def _keys_and_values(self, encoded):
    raise NotImplementedError

  def _read(self, keys, query, past):
    raise NotImplementedError


class AdditiveAttention(Attention):
  """Additive attention: score = v . tanh(query W + encoded U).

  With `coverage`, score_s = v . tanh(query W + encoded_s U + attended_s c),
  where attended_s is the sum of the weights of all earlier queries for position
  s, and c a vector that begins as zeros. The queries are then processed one
  after another.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from recurrent import nn
    >>> attention = nn.AdditiveAttention(4, 6, 8, rngs=nnx.Rngs(0))
    >>> keys = attention.precompute(jnp.ones((2, 7, 6)))  # encoded sequences
    >>> context, weights = attention(keys, jnp.ones((2, 4)))  # one query a row
    >>> context.shape, weights.shape
    ((2, 6), (2, 7))

  Args:
    query_features: width of the queries.
    encoded_features: width of the encoded sequence and of the context.
    features: width of v.
    coverage: whether the scores depend on what was attended to before.
    rngs: source of the keys that draw the parameters.

  Raises:
    ValueError: if a width is not a positive integer.

  Reference:
    Bahdanau, Cho & Bengio, "Neural machine translation by jointly learning to
    align and translate", 2015; coverage: See, Liu & Manning, "Get to the
    point", 2017.
  """

  def __init__(
    self,
    query_features: int,
    encoded_features: int,
    features: int,
    *,
    coverage: bool = False,
    rngs: nnx.Rngs,
  ):
    super().__init__(query_features, encoded_features)
    check_positive("features", features)
    self.query = drawn(rngs, query_features, features)
    self.key = drawn(rngs, encoded_features, features)
    self.score = nnx.Param(drawn(rngs, features, 1)[..., 0])
    self.coverage = nnx.Param(jnp.zeros((features,))) if coverage else None

  def _keys_and_values(self, encoded):
    return _product(encoded, self.key), encoded

  def _read(self, keys, query, past):
    query = _product(query, self.query)
    if self.coverage is None:
      return _weighted_mean(self._scores(keys.keys, query), keys)

    def read_next(past, query):
      attended = past.attended.astype(query.dtype)[..., None]
      key = keys.keys + _product(attended, self.coverage[...][None])
      scores = self._scores(key, query[..., None, :])
      context, weights = _weighted_mean(scores, keys)
      past = past.after(weights[..., 0, :].astype(past.attended.dtype))
      return past, (context[..., 0, :], weights[..., 0, :])

    past, query = vary_alike((past, query))
    _, found = jax.lax.scan(read_next, past, jnp.moveaxis(query, -2, 0))
    context, weights = (jnp.moveaxis(x, 0, -2) for x in found)
    return context, weights

  def _scores(self, key, query):
    query, key = query[..., :, None, :], key[..., None, :, :]
    shape = jnp.broadcast_shapes(query.shape, key.shape)
    sums = numerics.spread(query, shape) + numerics.spread(key, shape)
    score = self.score[...].astype(query.dtype)
    return _einsum("...f,f->...", jnp.tanh(sums), score)


class MultiplicativeAttention(Attention):
  """Multiplicative attention: score = query . (encoded W) or query . encoded.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from recurrent import nn
    >>> attention = nn.MultiplicativeAttention(4, 6, rngs=nnx.Rngs(0))
    >>> keys = attention.precompute(jnp.ones((2, 7, 6)))  # encoded sequences
    >>> context, weights = attention(keys, jnp.ones((2, 4)))  # one query a row
    >>> context.shape, weights.shape
    ((2, 6), (2, 7))

  Args:
    query_features: width of the queries.
    encoded_features: width of the encoded sequence and of the context.
    score: "general" for query . (encoded W); "dot" for query . encoded, which
      has no parameters and needs both widths to be equal.
    rngs: source of the key that draws W.

  Raises:
    ValueError: on an unknown score, or widths that do not fit.

  Reference:
    Luong, Pham & Manning, "Effective approaches to attention-based neural
    machine translation", 2015.
  """

  def __init__(
    self,
    query_features: int,
    encoded_features: int,
    *,
    score: str = "general",
    rngs: nnx.Rngs,
  ):
    super().__init__(query_features, encoded_features)
    if score not in SCORES:
      raise ValueError(f"score must be one of {SCORES}, got {score!r}")
    if score == "dot" and query_features != encoded_features:
      raise ValueError(
        f'score="dot" needs query_features = encoded_features, got'
        f" {query_features} and {encoded_features}"
      )
    shape = encoded_features, query_features
    self.key = drawn(rngs, *shape) if score == "general" else None

  def _keys_and_values(self, encoded):
    keys = encoded if self.key is None else _product(encoded, self.key)
    return keys, encoded

  def _read(self, keys, query, past):
    del past
    return _weighted_mean(_dots(query, keys), keys)


class LocalAttention(MultiplicativeAttention):
  """Multiplicative attention to the positions near a centre p.

  Only positions s with |s - p| <= window have weights. Positions count from
  zero, without masked ones; S is their number. In the monotonic form (local-m)
  the centre of query t is p = t, or the last position if t is larger. In the
  predicted form (local-p) it is p = S sigmoid(v . tanh(query W)), and the
  softmax is multiplied by exp(-2 (s - p)^2 / window^2), so that the weights sum
  to less than one.

  The scores of all positions are computed, so this takes no less time than
  attention without a window.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from recurrent import nn
    >>> attention = nn.LocalAttention(4, 6, window=1, rngs=nnx.Rngs(0))
    >>> keys = attention.precompute(jnp.ones((2, 7, 6)))  # encoded sequences
    >>> context, weights = attention(keys, jnp.ones((2, 5, 4)))  # five queries
    >>> (weights[0, 3] > 0).astype(int).tolist()
    [0, 0, 1, 1, 1, 0, 0]

  Args:
    query_features: width of the queries.
    encoded_features: width of the encoded sequence and of the context.
    window: largest distance from the centre.
    predicted: whether the centre is predicted from the query.
    score: as for `MultiplicativeAttention`.
    rngs: source of the keys that draw the parameters.

  Raises:
    ValueError: as `MultiplicativeAttention` does, and if `window` is not a
      positive integer.

  Reference:
    Luong, Pham & Manning, "Effective approaches to attention-based neural
    machine translation", 2015.
  """

  def __init__(
    self,
    query_features: int,
    encoded_features: int,
    *,
    window: int,
    predicted: bool = False,
    score: str = "general",
    rngs: nnx.Rngs,
  ):
    super().__init__(query_features, encoded_features, score=score, rngs=rngs)
    self.window = check_positive("window", window)
    self.normalised = not predicted
    self.predicted = predicted
    if predicted:
      self.position = drawn(rngs, query_features, query_features)
      self.centre = drawn(rngs, query_features, 1)

  def _read(self, keys, query, past):
    scores = _dots(query, keys)
    place = jnp.cumsum(keys.mask, axis=-1, dtype=jnp.int32) - 1
    count = keys.mask.sum(axis=-1, keepdims=True, dtype=jnp.int32)
    if self.predicted:
      inside = jnp.tanh(_product(query, self.position))
      share = jax.nn.sigmoid(_product(inside, self.centre)[..., 0])
      share = share.astype(scores.dtype)
      centre = jnp.broadcast_to(count, share.shape).astype(share.dtype) * share
    else:
      shape = query.shape[:-1]
      number = jnp.broadcast_to(jnp.arange(shape[-1], dtype=jnp.int32), shape)
      number += jnp.broadcast_to(past.number[..., None], shape)
      centre = jnp.minimum(number, jnp.broadcast_to(count - 1, shape))
      centre = centre.astype(scores.dtype)
    away = place[..., None, :].astype(scores.dtype) - centre[..., :, None]
    near = keys.mask[..., None, :] & (jnp.abs(away) <= self.window)
    weights = masked_softmax(scores, near)
    if self.predicted:
      weights *= jnp.exp(-2 * jnp.square(away / self.window))
    return _context(weights, keys), weights


class MultiHeadAttention(Attention):
  """Multi-head attention: softmax(Q K^T / sqrt(d)) V in each head.

  The results of all heads are concatenated and multiplied by an output matrix.
  The queries and the encoded sequence are two different sequences; for
  attention of a sequence to itself there is `SelfAttention`.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from recurrent import nn
    >>> attention = nn.MultiHeadAttention(4, 6, 8, heads=2, rngs=nnx.Rngs(0))
    >>> keys = attention.precompute(jnp.ones((2, 7, 6)))  # encoded sequences
    >>> context, weights = attention(keys, jnp.ones((2, 4)))  # one query a row
    >>> context.shape, weights.shape
    ((2, 8), (2, 2, 7))

  Args:
    query_features: width of the queries.
    encoded_features: width of the encoded sequence.
    features: width of all heads together, and of the context.
    heads: number of heads.
    rngs: source of the keys that draw the parameters.

  Raises:
    ValueError: if a width is not a positive integer, or `heads` does not
      divide `features`.

  Reference:
    Vaswani et al., "Attention is all you need", 2017.
  """

  def __init__(
    self,
    query_features: int,
    encoded_features: int,
    features: int,
    *,
    heads: int,
    rngs: nnx.Rngs,
  ):
    super().__init__(query_features, encoded_features)
    self.heads = _check_heads(features, heads)
    self.query = drawn(rngs, query_features, features)
    self.key_value = drawn(rngs, encoded_features, 2 * features)
    self.output = drawn(rngs, features, features)

  @property
  def context_features(self) -> int:
    """Width C of the context, that of all heads together."""
    return self.output.shape[-1]

  def _keys_and_values(self, encoded):
    return _heads(_product(encoded, self.key_value), 2, self.heads)

  def _read(self, keys, query, past):
    del past
    [query] = _heads(_product(query, self.query), 1, self.heads)
    visible = keys.mask[..., None, :]
    context, weights = attend(query, keys.keys, keys.values, visible)
    context = context.reshape(*context.shape[:-2], -1)
    return _product(context, self.output), jnp.swapaxes(weights, -3, -2)


class SelfAttention(nnx.Module):
  """Multi-head attention of a sequence to itself.

  Masked time steps are not attended to and do not count as positions.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from recurrent import nn
    >>> attention = nn.SelfAttention(8, heads=2, causal=True, rngs=nnx.Rngs(0))
    >>> attention(jnp.ones((2, 5, 8))).shape
    (2, 5, 8)

  Args:
    features: width of inputs and outputs.
    heads: number of heads.
    causal: whether a time step attends only to itself and earlier ones.
    window: with `causal`, each time step attends to itself and the window - 1
      real time steps before it; None: to all earlier ones. Sequences longer
      than the window are computed in blocks of that length, each of which
      attends to itself and the block before: memory is O(time * window).
    rotary: whether to use rotary positions: a score then depends on the number
      of real time steps between query and key. Without them attention ignores
      the order of the time steps it attends to.
    rngs: source of the keys that draw the parameters.

  Raises:
    ValueError: if `heads` does not divide `features`, or, with `rotary`,
      `features` is not an even multiple of it, or `window` is not a positive
      integer or stands without `causal`.

  Reference:
    Vaswani et al., "Attention is all you need", 2017; window: De et al.,
    "Griffin: mixing gated linear recurrences with local attention for
    efficient language models", 2024; positions: Su et al., "RoFormer", 2021.
  """

  def __init__(
    self,
    features: int,
    *,
    heads: int,
    causal: bool = False,
    window: int | None = None,
    rotary: bool = False,
    rngs: nnx.Rngs,
  ):
    self.heads = _check_heads(features, heads)
    if rotary and features // heads % 2:
      raise ValueError(
        f"features must be an even multiple of heads={heads}, got {features}"
      )
    if window is not None:
      check_positive("window", window)
      if not causal:
        raise ValueError(f"window={window} needs causal=True")
    self.features = features
    self.causal = causal
    self.window = window
    self.rotary = rotary
    self.query_key_value = drawn(rngs, features, 3 * features)
    self.output = drawn(rngs, features, features)

  def __call__(
    self,
    inputs: Activations,
    *,
    mask: Mask | None = None,
    resets: Mask | None = None,
  ) -> Activations:
    """Attends within each sequence of each row.

    Args:
      inputs: [batch, time, features].
      mask: [batch, time], True where a time step is real. No time step attends
        to a masked one, whose outputs are zero.
      resets: [batch, time], True where a sequence begins: time steps attend
        only within their own sequence. A reset at a masked time step has no
        effect.

    Returns:
      Outputs [batch, time, features].

    Raises:
      ValueError: if an argument has the wrong shape or dtype.
    """
    check_sequence(inputs, self.features, mask, resets)
    batch, time, _ = inputs.shape
    inputs, resets = blank(mask, (inputs, resets))
    segments = count_resets(resets, (batch, time))
    if self.window is not None and self.window < time:
      return self._locally(inputs, mask, segments)
    visible = segments[:, :, None] == segments[:, None, :]
    if mask is not None:
      visible &= mask[:, None, :]
    if self.causal:
      visible &= jnp.tri(time, dtype=bool)[None]
    places = jnp.arange(time, dtype=jnp.int32)
    if mask is not None:
      # Masked time steps do not count as positions.
      places = jnp.cumsum(mask, axis=1, dtype=jnp.int32)
    context, _ = attend(*self._turned(inputs, places), visible)
    return blank(mask, self.merge(context))

  def project(self, inputs: Float[Array, "*B D"]) -> tuple[Array, Array, Array]:
    """Computes query, key and value, each [*batch, heads, features / heads]."""
    all_three = _product(inputs, self.query_key_value)
    query, key, value = _heads(all_three, 3, self.heads)
    return query, key, value

  def merge(self, context: Float[Array, "*B N K"]) -> Float[Array, "*B D"]:
    """Concatenates the heads' contexts and applies the output matrix."""
    flat = context.reshape(*context.shape[:-2], self.features)
    return _product(flat, self.output)

  def _turned(self, inputs, places) -> tuple[Array, Array, Array]:
    """`project`; with `rotary`, query and key are rotated by position."""
    query, key, value = self.project(inputs)
    if self.rotary:
      query, key = rotate(query, places), rotate(key, places)
    return query, key, value

  def _locally(self, inputs, mask, segments):
    if mask is not None:
      inputs, segments = compact(mask, (inputs, segments))
    places = jnp.arange(inputs.shape[1], dtype=jnp.int32)
    query, key, value = self._turned(inputs, places)
    before = lambda x, fill: jnp.pad(
      x,
      [(0, 0), (self.window, 0), *[(0, 0)] * (x.ndim - 2)],
      constant_values=fill,
    )
    context = attend_locally(
      query, before(key, 0), before(value, 0), segments, before(segments, -1)
    )
    outputs = self.merge(context)
    return outputs if mask is None else expand(mask, outputs)


def masked_softmax(
  scores: Float[Array, "*B S"], mask: Bool[Array, "*B S"]
) -> Float[Array, "*B S"]:
  """Softmax over the last axis, of the entries where the mask is True.

  Args:
    scores: [*batch, S].
    mask: [*batch, S], or a shape that broadcasts to it.

  Returns:
    Weights [*batch, S], float32 at least; zero where the mask is False. If the
    mask is False for a whole row, its weights and their gradient are zero.
  """
  scores = numerics.widen(scores)
  mask = jnp.broadcast_to(mask, scores.shape)
  largest = jnp.max(
    scores, axis=-1, keepdims=True, where=mask, initial=-jnp.inf
  )
  shifted = scores - jax.lax.stop_gradient(largest)
  exps = jnp.exp(jnp.where(mask, shifted, -jnp.inf))
  total = exps.sum(axis=-1, keepdims=True)
  return exps / jnp.where(total == 0, 1, total)


def attend(
  query: Float[Array, "*B T N K"],
  keys: Float[Array, "*B S N K"],
  values: Float[Array, "*B S N K"],
  visible: Bool[Array, "*B T S"],
) -> tuple[Float[Array, "*B T N K"], Float[Array, "*B N T S"]]:
  """Computes softmax(Q K^T / sqrt(K)) V over the keys visible to each query.

  Args:
    query: [*batch, T, heads, K].
    keys: [*batch, S, heads, K].
    values: [*batch, S, heads, K].
    visible: [*batch, T, S], or a shape that broadcasts to it; True where query
      t may attend to key s.

  Returns:
    The context [*batch, T, heads, K] in the dtype of the values, and weights
    [*batch, heads, T, S], float32 at least.
  """
  scores = _einsum("...tnk,...snk->...nts", query, keys)
  weights = masked_softmax(
    scores / math.sqrt(query.shape[-1]), visible[..., None, :, :]
  )
  context = _einsum(
    "...nts,...snk->...tnk", weights.astype(values.dtype), values
  )
  return context.astype(values.dtype), weights


def attend_locally(
  query: Float[Array, "B T N K"],
  keys: Float[Array, "B S N K"],
  values: Float[Array, "B S N K"],
  segments: Int[Array, "B T"],
  key_segments: Int[Array, "B S"],
) -> Float[Array, "B T N K"]:
  """Attends from each time step to itself and the window - 1 before it.

  The window is S - T: `keys` and `values` begin with the `window` time steps
  before the first query. A query attends to keys of its own segment only. The
  queries are processed in blocks of one window, each of which attends to the
  keys of its own block and of the block before, so that no array is [T, T].

  Args:
    query: [batch, T, heads, K].
    keys: [batch, S, heads, K].
    values: [batch, S, heads, K].
    segments: [batch, T], number of each query's segment.
    key_segments: [batch, S], number of each key's segment. A key that no query
      may attend to has a number that no query has.

  Returns:
    The context [batch, T, heads, K].
  """
  batch, time = segments.shape
  window = key_segments.shape[1] - time
  size = min(window, time)
  cut = functools.partial(chunks.split, size=size, axis=1)

  def with_the_one_before(x):
    if size == time:
      return x[:, None]
    x = cut(x)
    return jnp.concatenate([x[:, :-1], x[:, 1:]], axis=2)

  keys, values, key_segments = map(
    with_the_one_before, (keys, values, key_segments)
  )
  # In its block's keys, query i's own key has index i + `window`.
  ahead = np.arange(window + size)[None, :] - np.arange(size)[:, None]
  band = jnp.asarray((ahead > 0) & (ahead <= window))[None, None]
  same = cut(segments)[..., :, None] == key_segments[..., None, :]
  context, _ = attend(cut(query), keys, values, band & same)
  return context.reshape(batch, -1, *context.shape[3:])[:, :time]


def rotate(
  array: Float[Array, "*B S N K"], positions: Int[Array, "*B S"]
) -> Float[Array, "*B S N K"]:
  """Rotates feature pair i by the angle position / 10000^(2 i / K).

  Pair i consists of features i and i + K / 2. The dot product of a rotated
  query and a rotated key depends on the difference of their positions only.

  Args:
    array: [*batch, S, heads, K], K even.
    positions: [*batch, S], or [S] for all rows.

  Returns:
    The rotated array, of the same shape and dtype.

  Reference:
    Su et al., "RoFormer: enhanced transformer with rotary position embedding",
    2021.
  """
  wide = numerics.widen(array)
  width = array.shape[-1]
  rates = jnp.asarray(10000.0 ** -(np.arange(0, width, 2) / width), wide.dtype)
  angles = positions[..., None, None].astype(wide.dtype) * jnp.expand_dims(
    rates, range(positions.ndim + 1)
  )
  angles = jnp.expand_dims(angles, range(array.ndim - angles.ndim))
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  a, b = jnp.split(wide, 2, axis=-1)
  turned = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
  return turned.astype(array.dtype)


def count_resets(
  resets: Mask | None, shape: tuple[int, int]
) -> Int[Array, "B T"]:
  """Numbers the sequences in each row, from 0 or 1 on: [batch, time]."""
  if resets is None:
    return jnp.zeros(shape, jnp.int32)
  return jnp.cumsum(resets, axis=1, dtype=jnp.int32)


def compact(mask: Mask, tree: PyTree) -> PyTree:
  """Moves the real time steps of arrays [batch, time, ...] to the front."""
  order = jnp.argsort(~mask, axis=1, stable=True)
  return jax.tree.map(lambda x: take(x, order), tree)


def expand(mask: Mask, array: Array) -> Array:
  """Inverse of `compact` for one array; zero where the mask is False."""
  place = jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1
  return blank(mask, take(array, jnp.maximum(place, 0)))


def take(array: Num[Array, "B S ..."], index: Int[Array, "B T"]) -> Array:
  """Takes the time steps `index` of each row; returns [batch, T, ...]."""
  index = jnp.expand_dims(index, range(2, array.ndim))
  return jnp.take_along_axis(array, index, axis=1)


def drawn(rngs: nnx.Rngs, *shape: int) -> nnx.Param:
  """Draws a parameter [fan_in, ...] that preserves unit variance."""
  return nnx.Param(initializers.lecun_uniform(rngs.params(), shape))


def _dots(query, keys):
  """The product of each query and each key, [*batch, T, S]."""
  return _einsum("...tf,...sf->...ts", query, keys.keys)


def _weighted_mean(scores, keys):
  """The context and the attention weights, from scores [*batch, T, S]."""
  weights = masked_softmax(scores, keys.mask[..., None, :])
  return _context(weights, keys), weights


def _context(weights, keys):
  """The sum of the values, with weights [*batch, T, S]."""
  values = keys.values
  context = _einsum("...ts,...sf->...tf", weights.astype(values.dtype), values)
  return context.astype(values.dtype)


def _heads(array, parts, heads):
  """Splits [*batch, parts * H] into `parts` arrays [*batch, heads, H/heads]."""
  parted = jnp.split(array, parts, axis=-1)
  return [x.reshape(*x.shape[:-1], heads, -1) for x in parted]


def _einsum(formula, a, b):
  """`jnp.einsum` with sums, and the result, in float32 at least."""
  wide = numerics.wide_dtype(a.dtype)
  return jnp.einsum(formula, a, b, preferred_element_type=wide)


def _product(inputs, param):
  return numerics.product(inputs, param[...].astype(inputs.dtype))


def _check_heads(features, heads):
  check_positive("features", features)
  check_positive("heads", heads)
  if features % heads:
    raise ValueError(f"heads must divide features={features}, got {heads}")
  return heads
