"""A recurrent language model: tokens in, logits of the next token out."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from recurrent import nn
from recurrent.models.token_model import TokenModel
from recurrent.types import (
  Activations,
  Array,
  Carry,
  Float,
  Int,
  Mask,
  PRNGKey,
  Tokens,
)


class LanguageModel(TokenModel):
  """Embedding, a stack of causal layers, and a softmax over the vocabulary.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from recurrent import cells, models, nn
    >>> rngs = nnx.Rngs(0)
    >>> layers = [
    ...   nn.Recurrent(cells.LSTM(16), 8, rngs=rngs),
    ...   nn.Recurrent(cells.LSTM(16), 16, rngs=rngs),
    ... ]
    >>> model = models.LanguageModel(50, nn.Stack(layers), rngs=rngs)
    >>> carry, logits = model(None, jnp.zeros((2, 5), int))
    >>> logits.shape
    (2, 5, 50)

  Args:
    vocab_size: number of tokens V.
    stack: the layers. The width of the embedding is that of their inputs. All
      must be causal, as `nn.Recurrent` and `nn.TransformerBlock` are.
    tied: whether the output matrix is the transpose of the embedding.
    embedding_dropout: dropout rate on the embedded tokens, with one mask for
      all time steps.
    embedding_row_dropout: rate at which whole rows of the embedding are
      dropped.
    output_dropout: dropout rate on the last layer's outputs, with one mask for
      all time steps.
    dtype: dtype to compute in; parameters and carry are float32.
    rngs: source of the keys that draw the embedding and the output matrix.

  Raises:
    ValueError: if `tied`, and the stack's outputs are not as wide as its
      inputs.

  Reference:
    Mikolov et al., "Recurrent neural network based language model", 2010;
    Zaremba, Sutskever & Vinyals, 2014 (dropout between layers); Gal &
    Ghahramani, 2016 (one mask for all time steps); Press & Wolf, 2017 (tied).
  """

  def __init__(
    self,
    vocab_size: int,
    stack: nn.Stack,
    *,
    tied: bool = False,
    embedding_dropout: float = 0.0,
    embedding_row_dropout: float = 0.0,
    output_dropout: float = 0.0,
    dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    super().__init__(
      vocab_size,
      stack.in_features,
      stack.features,
      tied=tied,
      dtype=dtype,
      rngs=rngs,
    )
    self.embedding_dropout = embedding_dropout
    self.embedding_row_dropout = embedding_row_dropout
    self.output_dropout = output_dropout
    self.stack = stack

  def initial_carry(self, batch_size: int) -> Carry:
    """The carry before the first token, [batch, ...]."""
    return self.stack.initial_carry(batch_size)

  def __call__(
    self,
    carry: Carry | None,
    tokens: Tokens,
    *,
    mask: Mask | None = None,
    resets: Mask | None = None,
    key: PRNGKey | None = None,
  ) -> tuple[Carry, Float[Array, "B T V"]]:
    """Computes the logits of each next token.

    Args:
      carry: from the window before, or None to begin.
      tokens: [batch, time] ids.
      mask: [batch, time], True where a token is real.
      resets: [batch, time], True where a token begins a text.
      key: draws the dropout masks; None for evaluation.

    Returns:
      The carry after the last token, and float32 logits [batch, time, V].
    """
    carry, _, activations = self.activations(
      carry, tokens, mask=mask, resets=resets, key=key
    )
    return carry, self.logits(activations)

  def activations(
    self,
    carry: Carry | None,
    tokens: Tokens,
    *,
    mask: Mask | None = None,
    resets: Mask | None = None,
    key: PRNGKey | None = None,
  ) -> tuple[Carry, Activations, Activations]:
    """Computes the last layer's outputs, from the arguments of `__call__`.

    Returns:
      The carry after the last token, and the last layer's outputs
      [batch, time, H], first before and then after dropout. The logits are
      computed from those after dropout.
    """
    keys = [None] * 3 if key is None else jax.random.split(key, 3)
    row_key = None if key is None else jax.random.fold_in(key, 3)
    table = nn.embedding_dropout(
      row_key, self.embedding[...], self.embedding_row_dropout
    )
    # The cast follows the look-up, so that the gradient of a row, a sum over
    # all occurrences of its token, is summed in the table's dtype.
    inputs = table[tokens].astype(self.dtype)
    inputs = nn.dropout(keys[0], inputs, self.embedding_dropout, locked=True)
    carry, raw = self.stack(
      carry, inputs, mask=mask, resets=resets, key=keys[1]
    )
    dropped = nn.dropout(keys[2], raw, self.output_dropout, locked=True)
    return carry, raw, dropped

  def decoder(
    self,
  ) -> Callable[[Carry, Int[Array, "B"]], tuple[Carry, Float[Array, "B V"]]]:
    """Returns a decoding function `step(carry, token) -> (carry, logits)`.

    It computes what `__call__` does for one time step, without dropout, from
    tokens [batch] to logits [batch, V].
    """
    step = self.stack.step_over(self.embedding[...], self.dtype)

    def decode(carry, token):
      carry, activations = step(carry, token)
      return carry, self.logits(activations)

    return decode
