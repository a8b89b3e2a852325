"""A recurrent classifier: sequences in, logits of classes out."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from recurrent import nn, numerics
from recurrent.types import Array, Float, Mask, PRNGKey


class Classifier(nnx.Module):
  """A stack of layers, pooling over time, and an affine map to the classes.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from recurrent import cells, models, nn
    >>> rngs = nnx.Rngs(0)
    >>> stack = nn.Stack([nn.Bidirectional(cells.GRU(16), 3, rngs=rngs)])
    >>> model = models.Classifier(stack, 10, pooling="ends", rngs=rngs)
    >>> model(jnp.zeros((2, 5, 3))).shape
    (2, 10)

  Args:
    stack: the layers.
    classes: number of classes C.
    pooling: a kind of `nn.Pooling`; None: there is no pooling, and every time
      step is classified.
    vocab_size: number of tokens V, if the inputs are tokens. Their embedding is
      as wide as the inputs of the stack.
    freeze_embedding: whether the embedding is no parameter, so that it is not
      trained.
    input_dropout: dropout rate on the embedded tokens or the inputs, with one
      mask for all time steps.
    output_dropout: dropout rate on the pooled outputs.
    dtype: dtype to compute in; parameters are float32.
    rngs: source of the keys that draw the embedding and the output matrix.
  """

  def __init__(
    self,
    stack: nn.Stack,
    classes: int,
    *,
    pooling: str | None = "last",
    vocab_size: int | None = None,
    freeze_embedding: bool = False,
    input_dropout: float = 0.0,
    output_dropout: float = 0.0,
    dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.stack = stack
    self.input_dropout = input_dropout
    self.output_dropout = output_dropout
    self.dtype = dtype
    if vocab_size is not None:
      table = jax.random.normal(
        rngs.params(), (vocab_size, stack.in_features), jnp.float32
      )
      kind = nnx.Variable if freeze_embedding else nnx.Param
      self.embedding = kind(table)
    self.pooling = pooling and nn.Pooling(pooling, stack.features)
    self.output = nn.Affine(stack.features, classes, rngs=rngs)

  def __call__(
    self,
    inputs: Any,
    *,
    mask: Mask | None = None,
    key: PRNGKey | None = None,
  ) -> Float[Array, "B C"] | Float[Array, "B T C"]:
    """Computes the logits of the classes.

    Args:
      inputs: tokens [batch, time], if the model has an embedding; else
        [batch, time, D], or the inputs of the first layer.
      mask: [batch, time], True where a time step is real.
      key: draws the dropout masks and the cells' noise; None for evaluation.

    Returns:
      float32 logits [batch, C]; without pooling [batch, time, C].
    """
    keys = (None, None, None) if key is None else jax.random.split(key, 3)
    if hasattr(self, "embedding"):
      inputs = self.embedding[...][inputs]
    if isinstance(inputs, jax.Array):
      inputs = inputs.astype(self.dtype)
      inputs = nn.dropout(keys[0], inputs, self.input_dropout, locked=True)
    _, outputs = self.stack(None, inputs, mask=mask, key=keys[1])
    if self.pooling:
      outputs = self.pooling(outputs, mask)
    outputs = nn.dropout(keys[2], outputs, self.output_dropout)
    return numerics.widen(self.output.project(outputs))
