"""`TokenModel`: what all networks that predict tokens have in common."""

import jax
import jax.numpy as jnp
from flax import nnx

from recurrent import numerics
from recurrent.types import Array, Float, Logits


class TokenModel(nnx.Module):
  """Base class: an embedding of tokens, and logits of the next token.

  Args:
    vocab_size: number of tokens V.
    width: width of the embedding.
    features: width H of the outputs that the logits are computed from.
    source: number of tokens and width of a second embedding, for inputs of
      another vocabulary; None: there is none.
    tied: whether the output matrix is the transpose of the embedding, which
      must be as wide as the outputs.
    dtype: dtype to compute in; the parameters are float32.
    rngs: source of the keys that draw the parameters.

  Raises:
    ValueError: if `tied`, and `width` is not `features`.

  Reference:
    tied: Press & Wolf, "Using the output embedding to improve language models",
    2017.
  """

  def __init__(
    self,
    vocab_size: int,
    width: int,
    features: int,
    *,
    source: tuple[int, int] | None = None,
    tied: bool,
    dtype: jax.typing.DTypeLike,
    rngs: nnx.Rngs,
  ):
    if tied and width != features:
      raise ValueError(
        f"tied needs outputs as wide as the embedding, got {features} and"
        f" {width}"
      )
    self.dtype = dtype
    self.tied = tied

    def table(size, width):
      # The layers' initialisers expect inputs of unit variance. A tied
      # embedding is also the output matrix and is scaled as such.
      scale = width**-0.5 if tied else 1.0
      drawn = jax.random.normal(rngs.params(), (size, width))
      return nnx.Param(scale * drawn)

    self.embedding = table(vocab_size, width)
    if source is not None:
      self.source_embedding = table(*source)
    if not tied:
      self.output = nnx.Param(
        features**-0.5
        * jax.random.normal(rngs.params(), (features, vocab_size))
      )
    self.output_bias = nnx.Param(jnp.zeros((vocab_size,)))

  def logits(self, activations: Float[Array, "*B H"]) -> Logits:
    """Computes float32 logits [*batch, V] from outputs [*batch, H]."""
    kernel = self.embedding[...].T if self.tied else self.output[...]
    logits = numerics.product(activations, kernel.astype(self.dtype))
    logits = logits.astype(jnp.float32)
    return logits + jnp.broadcast_to(self.output_bias[...], logits.shape)
