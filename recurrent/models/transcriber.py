"""A transcriber: sounds in, logits of symbols at each time step out (CTC)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from recurrent import audio, nn, numerics
from recurrent.types import Array, Bool, Carry, Float, Int, Mask, PRNGKey

_BLANK_BIAS = 4.0  # at the start: a blank is 55 times as likely as a symbol


class StreamCarry(NamedTuple):
  """The carry of `Transcriber.stream`; every leaf is [batch, ...].

  Attributes:
    samples: the last samples so far, which the next frames overlap.
    layers: carries of the layers.
    silent: number of time steps that have no logits yet.
  """

  samples: Float[Array, "B W"]
  layers: Carry
  silent: Int[Array, "B"]


class Transcriber(nnx.Module):
  """Log-mel frames, some to a time step, layers, and an affine map to symbols.

  A frame ends with the last sample of its hop; before a sound is silence. The
  logits of a time step are computed `delay` time steps later, when the layers
  have heard what comes next: with causal layers they depend on no sample after
  that, and `stream` computes the same from a sound that comes in chunks.

  Without a delay CTC trains causal layers badly: at first they learn to say a
  symbol where it begins, before they can know which one it is.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from recurrent import audio, cells, models, nn
    >>> rngs = nnx.Rngs(0)
    >>> features = audio.LogMel(rate=8000, window=256, hop=80, bands=40)
    >>> stack = nn.Stack([nn.Recurrent(cells.GRU(16), 160, rngs=rngs)])
    >>> model = models.Transcriber(features, stack, 30, stacking=4, rngs=rngs)
    >>> logits, mask = model(jnp.zeros((2, 8000)))
    >>> logits.shape, model.period / features.rate  # seconds a time step
    ((2, 25, 30), 0.04)

  Args:
    features: computes the frames, of M bands.
    stack: the layers, whose inputs are `stacking` M wide.
    symbols: number of symbols V, the blank among them.
    stacking: number of frames that make one time step.
    delay: number of time steps.
    input_dropout: dropout rate of the inputs of the layers, with one mask for
      all time steps.
    output_dropout: dropout rate of the outputs of the layers.
    dtype: dtype to compute the layers in; parameters are float32.
    rngs: source of the keys that draw the output matrix.

  Attributes:
    mean: [M], subtracted from each frame.
    scale: [M], by which each frame is then multiplied. Both are no parameters
      and are set by hand.

  Raises:
    ValueError: if the inputs of the stack have another width.
  """

  def __init__(
    self,
    features: audio.LogMel,
    stack: nn.Stack,
    symbols: int,
    *,
    stacking: int = 1,
    delay: int = 0,
    input_dropout: float = 0.0,
    output_dropout: float = 0.0,
    dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    if stack.in_features != stacking * features.bands:
      raise ValueError(
        f"stack must have inputs of stacking={stacking} times"
        f" {features.bands} bands, got {stack.in_features}"
      )
    self.features = features
    self.stack = stack
    self.stacking = stacking
    self.delay = delay
    self.input_dropout = input_dropout
    self.output_dropout = output_dropout
    self.dtype = dtype
    self.mean = nnx.Variable(jnp.zeros((features.bands,)))
    self.scale = nnx.Variable(jnp.ones((features.bands,)))
    self.output = nn.Affine(stack.features, symbols, rngs=rngs)
    # At most time steps nothing is said: without this, training begins by
    # learning that.
    self.output.bias[...] = self.output.bias[...].at[0].set(_BLANK_BIAS)

  @property
  def period(self) -> int:
    """Number of samples from one time step to the next."""
    return self.stacking * self.features.hop

  @property
  def latency(self) -> float:
    """Seconds from the first sample of a time step to its logits in `stream`.

    The time of computation comes in addition.
    """
    return (1 + self.delay) * self.period / self.features.rate

  def initial_carry(self, batch_size: int) -> StreamCarry:
    """The carry before the first sample, [batch, ...]."""
    width = self.features.window - self.features.hop
    return StreamCarry(
      jnp.zeros((batch_size, width), self.mean[...].dtype),
      self.stack.initial_carry(batch_size),
      jnp.full((batch_size,), self.delay, jnp.int32),
    )

  def __call__(
    self,
    samples: Float[Array, "B N"],
    *,
    mask: Bool[Array, "B N"] | None = None,
    key: PRNGKey | None = None,
  ) -> tuple[Float[Array, "B T V"], Mask]:
    """Computes the logits of all time steps.

    Args:
      samples: [batch, samples], from -1 to 1.
      mask: [batch, samples], True where a sample is real.
      key: draws the dropout masks and the cells' noise; None for evaluation.

    Returns:
      float32 logits [batch, T, V] of T = ceil(samples / period) time steps, and
      their mask [batch, T]. A time step is real if its first sample is.
    """
    if mask is None:
      mask = jnp.ones(samples.shape, bool)
    mask = self.every(self.period, mask)
    return self.logits(self.spectrum(samples), mask=mask, key=key), mask

  def every(self, samples: int, mask: Bool[Array, "B N"]) -> Bool[Array, "B T"]:
    """The mask of parts of so many samples, from that of the samples."""
    spare = -mask.shape[1] % self.period
    return jnp.pad(mask, ((0, 0), (0, spare)))[:, ::samples]

  def spectrum(self, samples: Float[Array, "B N"]) -> Float[Array, "B F M"]:
    """Computes the frames, scaled by `mean` and `scale`.

    Args:
      samples: [batch, samples].

    Returns:
      [batch, frames, M], `stacking` frames for each of ceil(samples / period)
      time steps, and for the `delay` time steps of silence after them.
    """
    spare = -samples.shape[1] % self.period + self.delay * self.period
    before = self.initial_carry(len(samples)).samples.astype(samples.dtype)
    return self._frames(before, jnp.pad(samples, ((0, 0), (0, spare))))

  def logits(
    self,
    spectrum: Float[Array, "B F M"],
    *,
    mask: Mask | None = None,
    key: PRNGKey | None = None,
  ) -> Float[Array, "B T V"]:
    """Computes float32 logits from what `spectrum` returns.

    Args:
      spectrum: [batch, (T + delay) * stacking, M].
      mask: [batch, T], True where a time step is real.
      key: draws the dropout masks and the cells' noise; None for evaluation.
    """
    if mask is not None:
      # What is heard after the last time step is real as well.
      ahead = ((0, 0), (self.delay, 0))
      mask = jnp.pad(mask, ahead, constant_values=True)
    return self._run(None, spectrum, mask, key)[1][:, self.delay :]

  def _frames(self, before, samples):
    """The scaled frames of samples [batch, n * period]."""
    found = self.features(jnp.concatenate([before, samples], axis=1))
    like = lambda x: numerics.like(x[...], found)
    return (found - like(self.mean)) * like(self.scale)

  def _run(self, carry, spectrum, mask=None, key=None):
    """Runs the layers; returns their carries and logits."""
    keys: Any = (None,) * 3 if key is None else jax.random.split(key, 3)
    batch, frames, _ = spectrum.shape
    inputs = spectrum.reshape(batch, frames // self.stacking, -1)
    inputs = nn.dropout(
      keys[0], inputs.astype(self.dtype), self.input_dropout, locked=True
    )
    carry, outputs = self.stack(carry, inputs, mask=mask, key=keys[1])
    outputs = nn.dropout(keys[2], outputs, self.output_dropout)
    return carry, numerics.widen(self.output.project(outputs))

  def stream(
    self, carry: StreamCarry, chunk: Float[Array, "B N"]
  ) -> tuple[StreamCarry, Float[Array, "B T V"]]:
    """Reads the next samples of sounds, with causal layers.

    Args:
      carry: from the chunk before, or `initial_carry`.
      chunk: [batch, N] samples, N a multiple of `period`. Chunks of one length
        are read by one compiled program.

    Returns:
      The carry, and log-probabilities of N / period time steps, which are those
      that `__call__` computes for the whole sound. They lie `delay` time steps
      back; before the first one the blank is certain. To hear the last ones,
      read `delay * period` samples of silence after a sound.

    Raises:
      ValueError: if N is no such number, or a layer is not causal.
    """
    ahead = (nn.Bidirectional, nn.TransformerEncoderBlock)
    for _, layer in nnx.iter_modules(self.stack):
      if isinstance(layer, ahead):
        raise ValueError(
          f"stream needs causal layers, got a {type(layer).__name__}"
        )
    if not chunk.shape[1] or chunk.shape[1] % self.period:
      raise ValueError(
        f"chunk must have a multiple of {self.period} samples, got"
        f" {chunk.shape[1]}"
      )
    heard = jnp.concatenate([carry.samples, chunk], axis=1)
    spectrum = self._frames(carry.samples, chunk)
    layers, logits = self._run(carry.layers, spectrum)
    _, steps, symbols = logits.shape
    silent = jnp.arange(steps)[None] < carry.silent[:, None]
    blank = jnp.where(jnp.arange(symbols) == 0, 0.0, -jnp.inf)
    nats = jnp.where(
      silent[..., None],
      jnp.broadcast_to(blank, logits.shape),
      jax.nn.log_softmax(logits, axis=-1),
    )
    left = jnp.maximum(carry.silent - steps, 0)
    samples = heard[:, heard.shape[1] - carry.samples.shape[1] :]
    return StreamCarry(samples, layers, left), nats
