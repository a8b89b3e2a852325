"""`TransformerBlock`: a Transformer's layer, with the methods of `Recurrent`.

Its carry is the keys and values of the last ticks. So it trains on windows
that follow each other, stands in a `Stack`, and decodes like a recurrent layer.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from recurrent.cells import base
from recurrent.executors.ticks import blank
from recurrent.nn import attention
from recurrent.nn.dropout import dropout
from recurrent.types import Activations, Array, Float, Int, Mask, PRNGKey


class TransformerCarry(NamedTuple):
  """The last `context` ticks of each row, as a ring; W is `context`.

  Attributes:
    keys: [batch, W, heads, K], not yet rotated; zero in slots that are free.
    values: [batch, W, heads, K], likewise.
    ticks: [batch], ticks since the row's start, less a multiple of W so that
      it stays below 2 W. It says which slots are taken, all if it is W or
      more, and which is next: count mod W.
  """

  keys: Float[Array, "B W N K"]
  values: Float[Array, "B W N K"]
  ticks: Int[Array, "B"]


class Projected(NamedTuple):
  """What `TransformerBlock.step` consumes: all that one tick is alone."""

  inputs: Float[Array, "*B D"]
  query: Float[Array, "*B N K"]
  key: Float[Array, "*B N K"]
  value: Float[Array, "*B N K"]


def rms_norm(array: Float[Array, "*B H"], scale: Float[Array, "H"]) -> Array:
  """Each [H] over the root of its mean square, times scale.

  Reference:
    Zhang & Sennrich, "Root mean square layer normalization", 2019.
  """
  wide = base.widen(array)
  square = jnp.square(wide).mean(axis=-1, keepdims=True)
  normal = wide * jax.lax.rsqrt(square + 1e-5)
  return (normal * base.like(scale, normal)).astype(array.dtype)


NORMS = {"layer": base.layer_norm, "rms": rms_norm}


class TransformerBlock(nnx.Module):
  """h = x + attention(norm(x)); outputs = h + mlp(norm(h)).

  Attention is causal, to the last `context` real ticks of the sequence, the
  present one among them; more never count, however the sequence is cut.
  Positions are relative (rotary). mlp(x) = gelu(x W + b) U + c, or, gated,
  (gelu(x W + b) * (x V + d)) U + c.

  Args:
    features: width of inputs and outputs.
    heads: number of heads.
    context: number of ticks that a tick sees; the length of the carry.
    mlp_features: width inside the MLP; None: 4 times `features`.
    norm: "layer" (layer norm, a scale and no bias) or "rms".
    gated: a gate in the MLP.
    dropout: rate on what attention and MLP add.
    rngs: source of the keys that draw the parameters.

  Raises:
    ValueError: if `features` is not an even multiple of `heads`, a size is not
      a positive integer, or the norm is unknown.

  Reference:
    Xiong et al., "On layer normalization in the Transformer architecture",
    2020; carried keys and values: Dai et al., "Transformer-XL", 2019; rotary
    positions: Su et al., "RoFormer", 2021; gate: Shazeer, "GLU variants improve
    Transformer", 2020.
  """

  def __init__(
    self,
    features: int,
    *,
    heads: int,
    context: int,
    mlp_features: int | None = None,
    norm: str = "layer",
    gated: bool = False,
    dropout: float = 0.0,
    rngs: nnx.Rngs,
  ):
    width = 4 * features if mlp_features is None else mlp_features
    attention.check_positive("context", context)
    attention.check_positive("mlp_features", width)
    if norm not in NORMS:
      raise ValueError(f"norm must be one of {[*NORMS]}, got {norm!r}")
    self.attention = attention.SelfAttention(
      features, heads=heads, causal=True, window=context, rngs=rngs
    )
    if features // heads % 2:
      raise ValueError(
        f"features must be an even multiple of heads={heads}, got {features}"
      )
    self.features = features
    self.context = context
    self.norm = norm
    self.gated = gated
    self.dropout = dropout
    inside = (1 + gated) * width
    self.attention_scale = nnx.Param(jnp.ones((features,)))
    self.mlp_scale = nnx.Param(jnp.ones((features,)))
    self.mlp_in = attention.drawn(rngs, features, inside)
    self.mlp_in_bias = nnx.Param(jnp.zeros((inside,)))
    self.mlp_out = attention.drawn(rngs, width, features)
    self.mlp_out_bias = nnx.Param(jnp.zeros((features,)))

  def initial_carry(self, batch_size: int) -> TransformerCarry:
    """The carry before the first tick: empty, [batch, ...]."""
    heads = self.attention.heads
    empty = base.zeros(
      self.attention.query_key_value[...],
      (batch_size,),
      self.context,
      heads,
      self.features // heads,
    )
    return TransformerCarry(empty, empty, jnp.zeros((batch_size,), jnp.int32))

  def __call__(
    self,
    carry: TransformerCarry | None,
    inputs: Activations,
    *,
    mask: Mask | None = None,
    resets: Mask | None = None,
    key: PRNGKey | None = None,
  ) -> tuple[TransformerCarry, Activations]:
    """Runs over a sequence.

    Args:
      carry: from the window before, or None to begin.
      inputs: [batch, time, features].
      mask: [batch, time], as in `recurrent.unroll`: a tick that is not real
        is not stored, is not counted, and has zero outputs.
      resets: [batch, time], as in `recurrent.unroll`: no tick from there on
        sees one before.
      key: draws the dropout masks; None for evaluation.

    Returns:
      The carry after the last tick, and outputs [batch, time, features].

    Raises:
      ValueError: if an argument has the wrong shape or dtype.
    """
    attention.check_sequence(inputs, self.features, mask, resets)
    batch, time, _ = inputs.shape
    initial = self.initial_carry(batch)
    carry = initial if carry is None else carry
    got, want = (
      jax.tree.map(lambda x: (x.shape, str(x.dtype)), x)
      for x in (carry, initial)
    )
    if got != want:
      raise ValueError(f"carry must be {want}, got {got}")
    number = jnp.full((batch,), time, jnp.int32)
    if mask is not None:
      number = mask.sum(axis=1, dtype=jnp.int32)
      inputs, resets = blank(mask, (inputs, resets))
      # With all real ticks in front, places differ as positions do.
      inputs, resets = attention.compact(mask, (inputs, resets))
    segments = attention.count_resets(resets, (batch, time))
    projected = self.project(inputs)
    dtype = inputs.dtype

    carried, taken = self._in_order(carry)
    keys, values = (
      jnp.concatenate([old, new.astype(old.dtype)], axis=1)
      for old, new in zip(
        carried, (projected.key, projected.value), strict=True
      )
    )
    places = jnp.arange(self.context + time, dtype=jnp.int32)
    context = attention.attend_locally(
      attention.rotate(projected.query, places[self.context :]),
      attention.rotate(keys.astype(dtype), places),
      values.astype(dtype),
      segments,
      jnp.concatenate([jnp.where(taken, 0, -1), segments], axis=1),
    )
    outputs = self._finish(inputs, context, key)
    if mask is not None:
      outputs = attention.expand(mask, outputs)

    last = segments[:, -1]
    real = places[None, :time] < number[:, None]
    since = jnp.sum(real & (segments == last[:, None]), axis=1, dtype=jnp.int32)
    ticks = self._fold(jnp.where(last == 0, carry.ticks, 0) + since)
    age, taken = self._slots(ticks)
    newest = self.context + number[:, None] - 1
    keys, values = blank(
      taken, tuple(attention.take(x, newest - age) for x in (keys, values))
    )
    return TransformerCarry(keys, values, ticks), outputs

  def project(self, inputs: Float[Array, "*B D"]) -> Projected:
    """What `step` consumes, for inputs with any batch axes."""
    normal = self._normalise(inputs, self.attention_scale)
    return Projected(inputs, *self.attention.project(normal))

  def step(
    self,
    carry: TransformerCarry,
    projected: Projected,
    dtype: jax.typing.DTypeLike,
  ) -> tuple[TransformerCarry, Float[Array, "B D"]]:
    """One tick after `project`, as decoders need it, computed in `dtype`."""
    inputs, query, key, value = base.cast(projected, dtype)
    rows = jnp.arange(len(carry.ticks))
    slot = carry.ticks % self.context
    keys, values = (
      old.at[rows, slot].set(new.astype(old.dtype))
      for old, new in ((carry.keys, key), (carry.values, value))
    )
    ticks = self._fold(carry.ticks + 1)
    age, taken = self._slots(ticks)
    # Keys are turned by their age, when they are read: positions then stay
    # below `context`, however long the sequence is.
    context, _ = attention.attend(
      query[:, None],
      attention.rotate(keys.astype(dtype), -age),
      values.astype(dtype),
      taken[:, None, :],
    )
    outputs = self._finish(inputs, context[:, 0], None)
    return TransformerCarry(keys, values, ticks), outputs

  def _finish(self, inputs, context, key):
    """The block after attention has found its context."""
    keys = (None, None) if key is None else jax.random.split(key)
    found = self.attention.merge(context)
    hidden = inputs + dropout(keys[0], found, self.dropout)
    inside = self._affine(
      self._normalise(hidden, self.mlp_scale), self.mlp_in, self.mlp_in_bias
    )
    if self.gated:
      inside, gate = jnp.split(inside, 2, axis=-1)
      inside = jax.nn.gelu(inside, approximate=False) * gate
    else:
      inside = jax.nn.gelu(inside, approximate=False)
    found = self._affine(inside, self.mlp_out, self.mlp_out_bias)
    return hidden + dropout(keys[1], found, self.dropout)

  def _normalise(self, array, scale):
    return NORMS[self.norm](array, scale[...])

  def _affine(self, array, kernel, bias):
    kernel, bias = base.cast((kernel[...], bias[...]), array.dtype)
    return base.affine(array, kernel, bias)

  def _fold(self, ticks):
    """Less a multiple of W, so that nothing overflows."""
    return jnp.where(
      ticks < self.context, ticks, self.context + ticks % self.context
    )

  def _slots(self, ticks):
    """Ticks since each slot was written, and whether it is taken; [B, W]."""
    slots = jnp.arange(self.context, dtype=jnp.int32)[None]
    age = (ticks[:, None] - 1 - slots) % self.context
    return age, age < ticks[:, None]

  def _in_order(self, carry):
    """Keys and values, the newest last, and which of them are there."""
    places = jnp.arange(self.context, dtype=jnp.int32)[None]
    slots = (carry.ticks[:, None] + places) % self.context
    both = tuple(attention.take(x, slots) for x in carry[:2])
    return both, self.context - places <= carry.ticks[:, None]
