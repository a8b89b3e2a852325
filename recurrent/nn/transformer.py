"""Transformer layers with the interface of `Recurrent`, for use in a `Stack`.

  TransformerBlock         causal attention, for language models
  TransformerEncoderBlock  attention in both directions, for whole sequences
  TransformerDecoderBlock  causal attention and attention to an encoded
                           sequence, for translation

The carry of `TransformerBlock` holds the keys and values of the last time
steps, so that the layer can be trained on consecutive windows and can decode
one token at a time, as a recurrent layer does. The carry of
`TransformerDecoderBlock` also holds the encoded sequence's keys and values.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from recurrent import numerics
from recurrent.checks import check_carry, check_positive, check_sequence
from recurrent.masking import blank
from recurrent.nn import attention
from recurrent.nn.dropout import dropout
from recurrent.types import (
  Activations,
  Array,
  Bool,
  Float,
  Int,
  Mask,
  PRNGKey,
)


class TransformerCarry(NamedTuple):
  """Ring buffer of the keys and values of the last W = `context` time steps.

  Attributes:
    keys: [batch, W, heads, K], before rotation; zero in free slots.
    values: [batch, W, heads, K], zero in free slots.
    time_steps: [batch], number of time steps since the start of the row's
      sequence. Once it reaches W it is kept in [W, 2 W) by subtracting
      multiples of W. The next slot to write is `time_steps` mod W, and all
      slots are taken once `time_steps` is at least W.
  """

  keys: Float[Array, "B W N K"]
  values: Float[Array, "B W N K"]
  time_steps: Int[Array, "B"]


class DecoderCarry(NamedTuple):
  """Carry of a `TransformerDecoderBlock`; every leaf is [batch, ...].

  Attributes:
    past: keys and values of the last time steps.
    encoded: keys and values of the encoded sequence, which no step changes.
  """

  past: TransformerCarry
  encoded: attention.Keys


class Projected(NamedTuple):
  """Argument of `step`: all that is computed from one time step's inputs."""

  inputs: Float[Array, "*B D"]
  query: Float[Array, "*B N K"]
  key: Float[Array, "*B N K"]
  value: Float[Array, "*B N K"]


def rms_norm(array: Float[Array, "*B H"], scale: Float[Array, "H"]) -> Array:
  """Divides by the root mean square over the last axis, and scales.

  Reference:
    Zhang & Sennrich, "Root mean square layer normalization", 2019.
  """
  wide = numerics.widen(array)
  square = jnp.square(wide).mean(axis=-1, keepdims=True)
  normal = wide * jax.lax.rsqrt(square + 1e-5)
  return (normal * numerics.like(scale, normal)).astype(array.dtype)


NORMS = {"layer": numerics.layer_norm, "rms": rms_norm}


class _Sublayer(nnx.Module):
  """Base class: outputs = inputs + dropout(f(norm(inputs))) for some f."""

  def __init__(self, features: int, norm: str, dropout: float):
    if norm not in NORMS:
      raise ValueError(f"norm must be one of {[*NORMS]}, got {norm!r}")
    self.features = check_positive("features", features)
    self.norm = norm
    self.dropout = dropout
    self.scale = nnx.Param(jnp.ones((features,)))

  def _normalise(self, inputs):
    return NORMS[self.norm](inputs, self.scale[...])

  def _add(self, inputs, found, key=None):
    return inputs + dropout(key, found, self.dropout)


class MLP(_Sublayer):
  """x + mlp(norm(x)); mlp(x) = gelu(x W + b) U + c, optionally with a gate."""

  def __init__(self, features, norm, dropout, width, gated, rngs):
    super().__init__(features, norm, dropout)
    width = 4 * features if width is None else width
    inside = (1 + gated) * check_positive("mlp_features", width)
    self.gated = gated
    self.inside = attention.drawn(rngs, features, inside)
    self.inside_bias = nnx.Param(jnp.zeros((inside,)))
    self.output = attention.drawn(rngs, width, features)
    self.output_bias = nnx.Param(jnp.zeros((features,)))

  def __call__(self, inputs, key=None):
    """Returns outputs of the inputs' shape, [*batch, features]."""
    inside = self._affine(
      self._normalise(inputs), self.inside, self.inside_bias
    )
    if self.gated:
      inside, gate = jnp.split(inside, 2, axis=-1)
      inside = jax.nn.gelu(inside, approximate=False) * gate
    else:
      inside = jax.nn.gelu(inside, approximate=False)
    found = self._affine(inside, self.output, self.output_bias)
    return self._add(inputs, found, key)

  def _affine(self, array, kernel, bias):
    kernel, bias = numerics.cast((kernel[...], bias[...]), array.dtype)
    return numerics.affine(array, kernel, bias)


class AttentionToAll(_Sublayer):
  """x + attention(norm(x)) over the whole sequence, in both directions."""

  def __init__(self, features, norm, dropout, heads, rngs):
    super().__init__(features, norm, dropout)
    self.heads = attention.SelfAttention(
      features, heads=heads, rotary=True, rngs=rngs
    )

  def __call__(self, inputs, mask, resets, key):
    """Returns outputs of the inputs' shape, [batch, time, features]."""
    found = self.heads(self._normalise(inputs), mask=mask, resets=resets)
    return self._add(inputs, found, key)


class AttentionToEncoded(_Sublayer):
  """x + attention(norm(x), encoded): attention to an encoded sequence."""

  def __init__(self, features, norm, dropout, heads, encoded_features, rngs):
    super().__init__(features, norm, dropout)
    self.heads = attention.MultiHeadAttention(
      features, encoded_features, features, heads=heads, rngs=rngs
    )

  def __call__(self, encoded, inputs, key=None):
    """Returns outputs of the inputs' shape, [batch, (time,) features]."""
    found, _ = self.heads(encoded, self._normalise(inputs))
    return self._add(inputs, found, key)


class AttentionToPast(_Sublayer):
  """x + attention(norm(x)) over the last `context` time steps.

  The carry holds their keys and values. The methods are those of
  `TransformerBlock`, whose MLP is applied to the outputs afterwards.
  """

  def __init__(self, features, norm, dropout, heads, context, rngs):
    super().__init__(features, norm, dropout)
    self.context = check_positive("context", context)
    self.heads = attention.SelfAttention(
      features,
      heads=heads,
      causal=True,
      window=context,
      rotary=True,
      rngs=rngs,
    )

  def initial_carry(self, batch_size: int) -> TransformerCarry:
    """The empty carry before the first time step, [batch, ...]."""
    heads = self.heads.heads
    empty = numerics.zeros(
      self.heads.query_key_value[...],
      (batch_size,),
      self.context,
      heads,
      self.features // heads,
    )
    return TransformerCarry(empty, empty, jnp.zeros((batch_size,), jnp.int32))

  def __call__(self, carry, inputs, mask, resets, key):
    """Returns the last carry, and outputs of the inputs' shape."""
    batch, time, _ = inputs.shape
    initial = self.initial_carry(batch)
    carry = initial if carry is None else carry
    check_carry("carry", carry, initial)
    number = jnp.full((batch,), time, jnp.int32)
    if mask is not None:
      number = mask.sum(axis=1, dtype=jnp.int32)
      # With the real time steps moved to the front, differences of indices are
      # differences of positions.
      inputs, resets = attention.compact(mask, blank(mask, (inputs, resets)))
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
    outputs = self._add(inputs, self.heads.merge(context), key)
    if mask is not None:
      outputs = attention.expand(mask, outputs)

    last = segments[:, -1]
    real = places[None, :time] < number[:, None]
    since = jnp.sum(real & (segments == last[:, None]), axis=1, dtype=jnp.int32)
    time_steps = self._fold(jnp.where(last == 0, carry.time_steps, 0) + since)
    age, taken = self._slots(time_steps)
    newest = self.context + number[:, None] - 1
    keys, values = blank(
      taken, tuple(attention.take(x, newest - age) for x in (keys, values))
    )
    return TransformerCarry(keys, values, time_steps), outputs

  def project(self, inputs: Float[Array, "*B D"]) -> Projected:
    """Computes what `step` takes, for inputs with any batch axes."""
    return Projected(inputs, *self.heads.project(self._normalise(inputs)))

  def step(self, carry, projected, dtype):
    """Runs one time step; returns the carry and outputs [batch, features]."""
    inputs, query, key, value = numerics.cast(projected, dtype)
    rows = jnp.arange(len(carry.time_steps))
    slot = carry.time_steps % self.context
    keys, values = (
      old.at[rows, slot].set(new.astype(old.dtype))
      for old, new in ((carry.keys, key), (carry.values, value))
    )
    time_steps = self._fold(carry.time_steps + 1)
    age, taken = self._slots(time_steps)
    # Keys are stored unrotated and rotated here by minus their age, so that
    # positions stay below `context` in sequences of any length.
    context, _ = attention.attend(
      query[:, None],
      attention.rotate(keys.astype(dtype), -age),
      values.astype(dtype),
      taken[:, None, :],
    )
    outputs = self._add(inputs, self.heads.merge(context[:, 0]))
    return TransformerCarry(keys, values, time_steps), outputs

  def _fold(self, time_steps):
    """Subtracts multiples of W from counts of 2 W or more: no overflow."""
    return jnp.where(
      time_steps < self.context,
      time_steps,
      self.context + time_steps % self.context,
    )

  def _slots(self, time_steps):
    """The age in time steps of each slot, and whether it is taken; [B, W]."""
    slots = jnp.arange(self.context, dtype=jnp.int32)[None]
    age = (time_steps[:, None] - 1 - slots) % self.context
    return age, age < time_steps[:, None]

  def _in_order(self, carry):
    """Keys and values with the newest last, and whether each slot is taken."""
    places = jnp.arange(self.context, dtype=jnp.int32)[None]
    slots = (carry.time_steps[:, None] + places) % self.context
    both = tuple(attention.take(x, slots) for x in carry[:2])
    return both, self.context - places <= carry.time_steps[:, None]


class TransformerBlock(nnx.Module):
  """h = x + attention(norm(x)); outputs = h + mlp(norm(h)).

  Attention is causal, over the last `context` real time steps including the
  present one; a sequence that is run in several windows gives the same outputs
  as in one. Positions are relative (rotary). The MLP is
  mlp(x) = gelu(x W + b) U + c, or (gelu(x W + b) * (x V + d)) U + c if gated.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from recurrent import nn
    >>> block = nn.TransformerBlock(8, heads=2, context=16, rngs=nnx.Rngs(0))
    >>> carry, outputs = block(None, jnp.ones((1, 5, 8)))
    >>> inputs = jnp.ones((1, 8))  # one time step more
    >>> carry, outputs = block.step(carry, block.project(inputs), inputs.dtype)
    >>> outputs.shape, int(carry.time_steps[0])
    ((1, 8), 6)

  Args:
    features: width of inputs and outputs.
    heads: number of heads.
    context: number of time steps that each time step attends to, including
      itself; the length of the carry.
    mlp_features: width inside the MLP; None: 4 times `features`.
    norm: "layer" (layer norm, a scale and no bias) or "rms".
    gated: whether the MLP has a gate.
    dropout: dropout rate on the outputs of attention and MLP.
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
    shared = features, norm, dropout
    self.features = self.in_features = features
    self.attention = AttentionToPast(*shared, heads, context, rngs)
    self.mlp = MLP(*shared, mlp_features, gated, rngs)

  def initial_carry(self, batch_size: int) -> TransformerCarry:
    """The empty carry before the first time step, [batch, ...]."""
    return self.attention.initial_carry(batch_size)

  def __call__(
    self,
    carry: TransformerCarry | None,
    inputs: Activations,
    *,
    mask: Mask | None = None,
    resets: Mask | None = None,
    key: PRNGKey | None = None,
  ) -> tuple[TransformerCarry, Activations]:
    """Runs the block over a sequence.

    Args:
      carry: from the window before, or None to begin.
      inputs: [batch, time, features].
      mask: [batch, time], as in `recurrent.unroll`: a masked time step is not
        stored or counted, and its outputs are zero.
      resets: [batch, time], as in `recurrent.unroll`: from a reset on, no time
        step attends to one before the reset.
      key: draws the dropout masks; None for evaluation.

    Returns:
      The carry after the last time step, and outputs [batch, time, features].

    Raises:
      ValueError: if an argument has the wrong shape or dtype.
    """
    check_sequence(inputs, self.features, mask, resets)
    keys = _split(key, 2)
    carry, hidden = self.attention(carry, inputs, mask, resets, keys[0])
    return carry, blank(mask, self.mlp(hidden, keys[1]))

  def project(self, inputs: Float[Array, "*B D"]) -> Projected:
    """Computes what `step` takes, for inputs with any batch axes."""
    return self.attention.project(inputs)

  def step(
    self,
    carry: TransformerCarry,
    projected: Projected,
    dtype: jax.typing.DTypeLike,
  ) -> tuple[TransformerCarry, Float[Array, "B D"]]:
    """Runs one time step on the result of `project`, computed in `dtype`."""
    carry, hidden = self.attention.step(carry, projected, dtype)
    return carry, self.mlp(hidden)


class TransformerEncoderBlock(nnx.Module):
  """`TransformerBlock` with attention to both sides, over the whole sequence.

  h = x + attention(norm(x)); outputs = h + mlp(norm(h)). Positions are relative
  (rotary). Time steps attend to later ones too, so the layer cannot run step by
  step: its carry is empty and it has no `step`. Memory is O(time ** 2).

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from recurrent import nn
    >>> rngs = nnx.Rngs(0)
    >>> block = lambda: nn.TransformerEncoderBlock(8, heads=2, rngs=rngs)
    >>> mask = jnp.array([[True, True, True, False]])
    >>> _, encoded = nn.Stack([block(), block()])(
    ...   None, jnp.ones((1, 4, 8)), mask=mask
    ... )
    >>> encoded.shape
    (1, 4, 8)

  Args:
    features: width of inputs and outputs.
    heads: number of heads.
    mlp_features: width inside the MLP; None: 4 times `features`.
    norm: "layer" (layer norm, a scale and no bias) or "rms".
    gated: whether the MLP has a gate.
    dropout: dropout rate on the outputs of attention and MLP.
    rngs: source of the keys that draw the parameters.

  Raises:
    ValueError: as `TransformerBlock` does.

  Reference:
    Vaswani et al., "Attention is all you need", 2017; the rest: see
    `TransformerBlock`.
  """

  def __init__(
    self,
    features: int,
    *,
    heads: int,
    mlp_features: int | None = None,
    norm: str = "layer",
    gated: bool = False,
    dropout: float = 0.0,
    rngs: nnx.Rngs,
  ):
    shared = features, norm, dropout
    self.features = self.in_features = features
    self.attention = AttentionToAll(*shared, heads, rngs)
    self.mlp = MLP(*shared, mlp_features, gated, rngs)

  def initial_carry(self, batch_size: int) -> tuple[()]:
    """Returns (): this layer has no carry."""
    del batch_size
    return ()

  def __call__(
    self,
    carry: tuple[()] | None,
    inputs: Activations,
    *,
    mask: Mask | None = None,
    resets: Mask | None = None,
    key: PRNGKey | None = None,
  ) -> tuple[tuple[()], Activations]:
    """Runs the block over a sequence.

    Args:
      carry: () or None.
      inputs: [batch, time, features].
      mask: [batch, time], True where a time step is real. A masked time step
        is not attended to or counted, and its outputs are zero.
      resets: [batch, time], True where a sequence begins; time steps attend
        only within their own sequence. A reset at a masked time step has no
        effect.
      key: draws the dropout masks; None for evaluation.

    Returns:
      () and outputs [batch, time, features].

    Raises:
      ValueError: if an argument has the wrong shape or dtype.
    """
    if jax.tree.leaves(carry):
      raise ValueError(
        f"carry must be () or None, got {jax.tree.structure(carry)}"
      )
    check_sequence(inputs, self.features, mask, resets)
    keys = _split(key, 2)
    # The inputs are masked before the norm: if they were masked after it, a NaN
    # at a masked time step would reach the norm's gradient.
    hidden = self.attention(blank(mask, inputs), mask, resets, keys[0])
    return (), blank(mask, self.mlp(hidden, keys[1]))


class TransformerDecoderBlock(nnx.Module):
  """`TransformerBlock` with attention to an encoded sequence before its MLP.

  g = x + attention(norm(x)); h = g + attention(norm(g), encoded);
  outputs = h + mlp(norm(h)). The first attention is that of `TransformerBlock`.

  The keys and values of the encoded sequence are computed once, by `begin`, and
  are part of the carry, [batch, S, ...]. Decoders therefore need no special
  case, and beam search reorders them with the rest of the carry.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from recurrent import nn
    >>> block = nn.TransformerDecoderBlock(
    ...   8, heads=2, context=16, encoded_features=6, rngs=nnx.Rngs(0)
    ... )
    >>> carry = block.begin(jnp.ones((1, 7, 6)))  # the encoder's outputs
    >>> carry, outputs = block(carry, jnp.ones((1, 5, 8)))
    >>> inputs = jnp.ones((1, 8))  # one time step more
    >>> carry, outputs = block.step(carry, block.project(inputs), inputs.dtype)
    >>> outputs.shape
    (1, 8)

    In a `Stack` each layer has a carry of its own:

    >>> stack, encoded = nn.Stack([block]), jnp.ones((1, 7, 6))
    >>> begun = tuple(layer.begin(encoded) for layer in stack.layers)
    >>> stack(begun, jnp.ones((1, 5, 8)))[1].shape
    (1, 5, 8)

  Args:
    features: width of inputs and outputs.
    heads: number of heads in each attention.
    context: number of time steps that each time step attends to, including
      itself.
    encoded_features: width of the encoded sequence.
    mlp_features: width inside the MLP; None: 4 times `features`.
    norm: "layer" (layer norm, a scale and no bias) or "rms".
    gated: whether the MLP has a gate.
    dropout: dropout rate on the outputs of each attention and of the MLP.
    rngs: source of the keys that draw the parameters.

  Raises:
    ValueError: as `TransformerBlock` does.

  Reference:
    Vaswani et al., "Attention is all you need", 2017; the rest: see
    `TransformerBlock`.
  """

  def __init__(
    self,
    features: int,
    *,
    heads: int,
    context: int,
    encoded_features: int,
    mlp_features: int | None = None,
    norm: str = "layer",
    gated: bool = False,
    dropout: float = 0.0,
    rngs: nnx.Rngs,
  ):
    shared = features, norm, dropout
    self.features = self.in_features = features
    self.attention = AttentionToPast(*shared, heads, context, rngs)
    self.cross = AttentionToEncoded(*shared, heads, encoded_features, rngs)
    self.mlp = MLP(*shared, mlp_features, gated, rngs)

  def begin(
    self,
    encoded: Float[Array, "B S E"],
    mask: Bool[Array, "B S"] | None = None,
  ) -> DecoderCarry:
    """Computes the carry before the first time step from an encoded sequence.

    It takes the place of `initial_carry`, which this layer does not have, since
    its carry depends on the encoded sequence.

    Args:
      encoded: [batch, S, encoded_features]; its dtype must be that of the
        decoder's inputs.
      mask: [batch, S], True where `encoded` is real; None: everywhere. A row
        that is masked everywhere attends to nothing: its context is zero.

    Returns:
      The carry, for `__call__` or `step`.

    Raises:
      ValueError: if an argument has the wrong shape or dtype.
    """
    keys = self.cross.heads.precompute(encoded, mask)
    return DecoderCarry(self.attention.initial_carry(len(encoded)), keys)

  def __call__(
    self,
    carry: DecoderCarry,
    inputs: Activations,
    *,
    mask: Mask | None = None,
    resets: Mask | None = None,
    key: PRNGKey | None = None,
  ) -> tuple[DecoderCarry, Activations]:
    """Runs the block over a sequence.

    Args:
      carry: from `begin`, or from the window before.
      inputs: [batch, time, features].
      mask: [batch, time], as for `TransformerBlock`.
      resets: [batch, time], as for `TransformerBlock`. They do not affect the
        attention to the encoded sequence, which all time steps of its row
        attend to.
      key: draws the dropout masks; None for evaluation.

    Returns:
      The carry after the last time step, and outputs [batch, time, features].

    Raises:
      ValueError: if an argument has the wrong shape or dtype.
    """
    if not isinstance(carry, DecoderCarry):
      raise ValueError(
        "carry must come from `begin(encoded)` or a call, got"
        f" {type(carry).__name__}"
      )
    check_sequence(inputs, self.features, mask, resets)
    keys = _split(key, 3)
    past, hidden = self.attention(carry.past, inputs, mask, resets, keys[0])
    hidden = self.cross(carry.encoded, hidden, keys[1])
    outputs = blank(mask, self.mlp(hidden, keys[2]))
    return carry._replace(past=past), outputs

  def project(self, inputs: Float[Array, "*B D"]) -> Projected:
    """Computes what `step` takes, for inputs with any batch axes."""
    return self.attention.project(inputs)

  def step(
    self,
    carry: DecoderCarry,
    projected: Projected,
    dtype: jax.typing.DTypeLike,
  ) -> tuple[DecoderCarry, Float[Array, "B D"]]:
    """Runs one time step on the result of `project`, computed in `dtype`."""
    past, hidden = self.attention.step(carry.past, projected, dtype)
    hidden = self.cross(carry.encoded, hidden)
    return carry._replace(past=past), self.mlp(hidden)


def _split(key, number):
  """Splits a key into `number` keys; without a key, as many Nones."""
  return (None,) * number if key is None else jax.random.split(key, number)
