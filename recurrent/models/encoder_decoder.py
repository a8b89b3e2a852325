"""Encoder-decoder: a source sequence in, a target sequence out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from recurrent import nn
from recurrent.masking import hold
from recurrent.models.token_model import TokenModel
from recurrent.nn.attention import Attention, Past
from recurrent.rows import vary_alike
from recurrent.types import (
  Activations,
  Array,
  Bool,
  Carry,
  Float,
  Int,
  Mask,
  PRNGKey,
  Tokens,
)

Step = Callable[[Carry, Int[Array, "B"]], tuple[Carry, Float[Array, "B V"]]]


class Encoded(NamedTuple):
  """An encoded source sequence.

  Attributes:
    source: [batch, S] ids.
    outputs: [batch, S, E], those of the encoder's last layer.
    mask: [batch, S], True where the source is real.
  """

  source: Tokens
  outputs: Activations
  mask: Bool[Array, "B S"]


class DecoderState(NamedTuple):
  """The carry of a decoder; every leaf is [batch, ...].

  Beam search therefore moves the encoded source with its row.

  Attributes:
    layers: the carries of the decoder's layers.
    keys: the attention's `Keys`, or () without attention.
    source: [batch, S] ids of the source.
    past: the attention's `Past`; without attention it does not change.
    fed: [batch, H], the last attentional hidden state with input feeding, else
      ().
  """

  layers: tuple[Carry, ...]
  keys: Any
  source: Tokens
  past: Past
  fed: Any

  @property
  def attended(self) -> Float[Array, "B S"]:
    """The sum of the attention weights so far, as a coverage penalty takes it.

    It is zero without attention.
    """
    return self.past.attended


class EncoderDecoder(TokenModel):
  """Embeddings, an encoder, attention, a decoder, and a softmax.

  A recurrent decoder starts from a carry that an affine map computes from the
  encoder's last outputs (the bridge). Attention reads the encoder's outputs
  with the decoder's outputs h as queries: with the context c, the logits are
  computed from tanh([h, c] W + b). Since it follows the recurrence, all time
  steps of the decoder run at once in training. With `feeding` that vector is
  also an input of the next time step, and training is a loop over time steps.

  The layers of a Transformer decoder (`nn.TransformerDecoderBlock`) attend to
  the source themselves and need neither bridge nor `attention`.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from recurrent import cells, decoding, models, nn
    >>> rngs = nnx.Rngs(0)
    >>> gru = cells.GRU(16)
    >>> model = models.EncoderDecoder(
    ...   30,
    ...   40,
    ...   nn.Stack([nn.Bidirectional(gru, 8, rngs=rngs)]),
    ...   nn.Stack([nn.Recurrent(gru, 8, rngs=rngs)]),
    ...   attention=nn.AdditiveAttention(16, 32, 16, rngs=rngs),
    ...   rngs=rngs,
    ... )
    >>> source, targets = jnp.ones((2, 7), int), jnp.ones((2, 5), int)
    >>> logits, weights = model(source, None, targets)
    >>> logits.shape, weights.shape
    ((2, 5, 40), (2, 5, 7))
    >>> carry = model.begin(model.encode(source))
    >>> step = model.decoder()
    >>> carry, logits = step(carry, jnp.zeros(2, int))  # the first token
    >>> decoding.beam_search(
    ...   step, carry, logits, num_tokens=6, stop_token=0
    ... ).tokens.shape
    (2, 4, 6)

  Args:
    source_size: number of source tokens.
    target_size: number of target tokens V.
    encoder: layers over the source; they need not be causal.
    decoder: causal layers over the target. With `feeding`, its inputs are as
      wide as the embedding and its outputs together.
    attention: attention with queries as wide as the decoder's outputs over a
      sequence as wide as the encoder's outputs; None: without.
    feeding: whether the decoder sees its last attentional state (input
      feeding); needs `attention`. There is then no dropout between its layers.
    copying: whether a target token may be copied from the source, with the
      attention weights as probabilities (pointer-generator); needs `attention`
      and one vocabulary for both.
    tied: whether the output matrix is the transpose of the target embedding,
      which must be as wide as the decoder's outputs.
    shared: whether source and target have one embedding.
    embedding_dropout: dropout rate of the embedded tokens.
    output_dropout: dropout rate of what the logits are computed from.
    dtype: dtype to compute in; parameters and carry are float32.
    rngs: source of the keys that draw the parameters.

  Raises:
    ValueError: if widths or options do not fit.

  Reference:
    Sutskever, Vinyals & Le, "Sequence to sequence learning with neural
    networks", 2014; attention: Bahdanau, Cho & Bengio, 2015; Luong, Pham &
    Manning, 2015 (after the recurrence; input feeding); copying: See, Liu &
    Manning, "Get to the point", 2017.
  """

  def __init__(
    self,
    source_size: int,
    target_size: int,
    encoder: nn.Stack,
    decoder: nn.Stack,
    *,
    attention: Attention | None = None,
    feeding: bool = False,
    copying: bool = False,
    tied: bool = False,
    shared: bool = False,
    embedding_dropout: float = 0.0,
    output_dropout: float = 0.0,
    dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    features = decoder.features
    width = decoder.in_features - (features if feeding else 0)
    if attention is None and (feeding or copying):
      raise ValueError("feeding and copying need attention, which is missing")
    if copying and attention is not None and not attention.normalised:
      raise ValueError("copying needs attention weights that sum to one")
    if copying and source_size != target_size:
      raise ValueError(
        f"copying needs one vocabulary, got {source_size} source tokens and"
        f" {target_size} target tokens"
      )
    if shared and (source_size, encoder.in_features) != (target_size, width):
      raise ValueError(
        "shared needs equal sizes of source and target, got"
        f" {(source_size, encoder.in_features)} and {(target_size, width)}"
      )
    if attention is not None and (
      attention.query_features,
      attention.encoded_features,
    ) != (features, encoder.features):
      raise ValueError(
        f"attention must be from {features} to {encoder.features} features, got"
        f" {attention.query_features} to {attention.encoded_features}"
      )
    super().__init__(
      target_size,
      width,
      features,
      source=None if shared else (source_size, encoder.in_features),
      tied=tied,
      dtype=dtype,
      rngs=rngs,
    )
    self.feeding, self.copying, self.shared = feeding, copying, shared
    self.embedding_dropout = embedding_dropout
    self.output_dropout = output_dropout
    self.encoder, self.decoder_stack = encoder, decoder
    self.attention = attention
    if attention is not None:
      both = features + attention.context_features
      self.combine = nn.Affine(both, features, rngs=rngs)
      if copying:
        self.gate = nn.Affine(both, 1, rngs=rngs)
    self.bridge = nnx.List(
      [self._bridge(layer, rngs) for layer in decoder.layers]
    )

  def _bridge(self, layer, rngs):
    """One affine map per leaf of a layer's carry that the source sets."""
    if not isinstance(layer, nn.Recurrent):
      return nnx.List([])
    leaves = jax.tree.leaves(layer.initial_carry(1))
    return nnx.List(
      [
        nn.Affine(self.encoder.features, leaf[0].size, rngs=rngs)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        else None
        for leaf in leaves
      ]
    )

  def encode(
    self,
    source: Tokens,
    mask: Mask | None = None,
    *,
    key: PRNGKey | None = None,
  ) -> Encoded:
    """Encodes source sequences.

    Args:
      source: [batch, S] ids.
      mask: [batch, S], True where a token is real; None: everywhere.
      key: draws the dropout masks; None for evaluation.
    """
    keys = (None, None) if key is None else jax.random.split(key)
    table = self.embedding if self.shared else self.source_embedding
    inputs = table[...][source].astype(self.dtype)
    inputs = nn.dropout(keys[0], inputs, self.embedding_dropout)
    _, outputs = self.encoder(None, inputs, mask=mask, key=keys[1])
    mask = jnp.ones(source.shape, bool) if mask is None else mask
    return Encoded(source, outputs, mask)

  def begin(self, encoded: Encoded) -> DecoderState:
    """The carry of the decoder before the first token."""
    batch = len(encoded.source)
    pool = (
      nn.pool_ends
      if isinstance(self.encoder.layers[-1], nn.Bidirectional)
      and self.encoder.layers[-1].merge == "concat"
      else nn.pool_mean
    )
    summary = pool(encoded.outputs, encoded.mask)

    def first(layer, maps):
      if hasattr(layer, "begin"):
        return layer.begin(encoded.outputs, encoded.mask)
      initial = layer.initial_carry(batch)
      leaves, structure = jax.tree.flatten(initial)
      for place, affine in enumerate(maps):
        if affine is not None:
          shift = jnp.tanh(affine.project(summary)).astype(leaves[place].dtype)
          leaves[place] += shift.reshape(leaves[place].shape)
      return jax.tree.unflatten(structure, leaves)

    layers = zip(self.decoder_stack.layers, self.bridge, strict=True)
    carry = DecoderState(
      layers=tuple(first(layer, maps) for layer, maps in layers),
      keys=()
      if self.attention is None
      else self.attention.precompute(encoded.outputs, encoded.mask),
      source=encoded.source,
      past=Past.none(encoded.mask),
      fed=jnp.zeros((batch, self.decoder_stack.features), jnp.float32)
      if self.feeding
      else (),
    )
    # Within `jax.shard_map` zeros must vary as what is added to them.
    return vary_alike(carry)

  def __call__(
    self,
    source: Tokens,
    source_mask: Mask | None,
    inputs: Tokens,
    *,
    mask: Mask | None = None,
    key: PRNGKey | None = None,
  ) -> tuple[Float[Array, "B T V"], Float[Array, "B T S"] | None]:
    """Computes the logits of each next target token.

    Args:
      source: [batch, S] ids.
      source_mask: [batch, S], True where a source token is real; None:
        everywhere.
      inputs: [batch, T], the target tokens before each one to predict.
      mask: [batch, T], True where a target token is real.
      key: draws the dropout masks; None for evaluation.

    Returns:
      Float32 logits [batch, T, V], and the attention weights [batch, T, S], the
      mean over the heads if there are several; None without attention.
    """
    keys = [None] * 4 if key is None else jax.random.split(key, 4)
    carry = self.begin(self.encode(source, source_mask, key=keys[0]))
    embedded = self.embedding[...][inputs].astype(self.dtype)
    embedded = nn.dropout(keys[1], embedded, self.embedding_dropout)
    if not self.feeding:
      _, outputs = self.decoder_stack(
        carry.layers, embedded, mask=mask, key=keys[2]
      )
      return self._read(carry, outputs, keys[3])[:2]

    def time_step(carry, now):
      embedded, real = now
      new, found = self._fed_step(carry, embedded, keys[3])
      return hold(real, new, carry), found

    mask = jnp.ones(inputs.shape, bool) if mask is None else mask
    by_time = jnp.swapaxes(embedded, 0, 1), mask.T
    _, found = jax.lax.scan(time_step, carry, by_time)
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), found)

  def decoder(self) -> Step:
    """Returns a decoding function `step(carry, token) -> (carry, logits)`.

    It computes what `__call__` does for one time step, without dropout, from
    tokens [batch] to logits [batch, V]. The first carry comes from `begin`.
    """
    if self.feeding:

      def fed_step(carry, token):
        embedded = self.embedding[...][token].astype(self.dtype)
        carry, (logits, _) = self._fed_step(carry, embedded)
        return carry, logits

      return fed_step
    advance = self.decoder_stack.step_over(self.embedding[...], self.dtype)

    def step(carry, token):
      layers, outputs = advance(carry.layers, token)
      logits, weights, _ = self._read(carry, outputs)
      return self._attended(carry._replace(layers=layers), weights), logits

    return step

  def _fed_step(self, carry: DecoderState, embedded, key=None):
    """One time step with input feeding; returns carry, logits and weights."""
    fed = carry.fed.astype(self.dtype)
    inputs = jnp.concatenate([embedded, fed], axis=-1)
    stack = self.decoder_stack
    layers, outputs = stack.step(
      carry.layers, stack.project(inputs), self.dtype
    )
    logits, weights, state = self._read(carry, outputs, key)
    carry = carry._replace(layers=layers, fed=state.astype(jnp.float32))
    return self._attended(carry, weights), (logits, weights)

  def _attended(self, carry, weights):
    if weights is None:
      return carry
    return carry._replace(past=carry.past.after(weights))

  def _read(self, carry: DecoderState, outputs, key=None):
    """Logits, attention weights, and the vector they are computed from."""
    if self.attention is None:
      state = nn.dropout(key, outputs, self.output_dropout)
      return self.logits(state), None, state
    context, weights = self.attention(carry.keys, outputs, carry.past)
    if weights.ndim == outputs.ndim + 1:
      weights = weights.mean(axis=-2)
    both = jnp.concatenate([outputs, context], axis=-1)
    state = jnp.tanh(self.combine.project(both))
    state = nn.dropout(key, state, self.output_dropout)
    logits = self.logits(state)
    if self.copying:
      gate = self.gate.project(both)[..., 0].astype(jnp.float32)
      logits = _with_copies(logits, gate, weights, carry.source)
    return logits, weights.astype(jnp.float32), state


def _with_copies(logits: Any, gate: Any, weights: Any, source: Any) -> Any:
  """Log-probabilities of a mixture of the softmax and of source tokens.

  Args:
    logits: [batch, (T,) V].
    gate: [batch, (T)], the logit of the share of the softmax.
    weights: [batch, (T,) S], attention weights.
    source: [batch, S] ids.
  """
  # [batch, S, V] would be large: the weights are added at the source's ids.
  add = lambda zeros, ids, weights: zeros.at[..., ids].add(weights)
  copied = jax.vmap(add)(jnp.zeros_like(logits), source, weights)
  share = jax.nn.log_sigmoid(gate)[..., None]
  written = jax.nn.log_softmax(logits, axis=-1)
  written = written + jnp.broadcast_to(share, written.shape)
  rest = jax.nn.log_sigmoid(-gate)[..., None]
  # Away from zero, whose logarithm has no gradient.
  copies = jnp.log(jnp.maximum(copied, 1e-20))
  copies = copies + jnp.broadcast_to(rest, copies.shape)
  return jnp.logaddexp(written, copies)
