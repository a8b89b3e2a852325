"""`Imputer`: predicts missing inputs from the inputs before them."""

import jax.numpy as jnp
from flax import nnx

from recurrent.masking import blank
from recurrent.nn.layer import Layer
from recurrent.nn.pointwise import Affine
from recurrent.types import Activations, Array, Bool, Float, Mask, PRNGKey


class Imputer(nnx.Module):
  """Fills each missing value with a prediction of it.

  A causal layer reads the values, zero where they are missing, and which of
  them are observed. An affine map of its outputs at a time step predicts the
  values of the next one. A prediction never sees the value it predicts, so its
  error on the observed values trains the layer.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from recurrent import cells, nn
    >>> rngs = nnx.Rngs(0)
    >>> layer = nn.Recurrent(cells.GRU(8), 2 * 3, rngs=rngs)
    >>> values = jnp.full((1, 5, 3), jnp.nan)
    >>> imputer = nn.Imputer(layer, 3, rngs=rngs)
    >>> filled, error = imputer(values, jnp.zeros((1, 5, 3), bool))
    >>> bool(jnp.isfinite(filled).all()), float(error.sum())
    (True, 0.0)

  Args:
    layer: a causal layer with inputs of width 2 D.
    variables: number D of variables.
    rngs: source of the key that draws the affine map.

  Raises:
    ValueError: if the layer has inputs of another width.

  Reference:
    Cao et al., "BRITS: bidirectional recurrent imputation for time series",
    2018; here in one direction, and the layer reads zeros within a gap.
  """

  def __init__(self, layer: Layer, variables: int, *, rngs: nnx.Rngs):
    if layer.in_features != 2 * variables:
      raise ValueError(
        f"layer must have inputs of width {2 * variables}, got"
        f" {layer.in_features}"
      )
    self.layer = layer
    self.output = Affine(layer.features, variables, rngs=rngs)

  def __call__(
    self,
    values: Activations,
    observed: Bool[Array, "B T D"],
    *,
    mask: Mask | None = None,
    key: PRNGKey | None = None,
  ) -> tuple[Activations, Float[Array, "B T D"]]:
    """Fills the missing values.

    Args:
      values: [batch, time, D]; anything where they are not observed.
      observed: [batch, time, D], True where a value is observed.
      mask: [batch, time], True where a time step is real.
      key: PRNG key of the layer's noise; None for evaluation.

    Returns:
      The values with predictions in place of the missing ones, and the squared
      error of the predictions of the observed ones, 0 elsewhere.
    """
    seen = jnp.where(observed, values, jnp.zeros_like(values))
    read = jnp.concatenate([seen, observed.astype(seen.dtype)], axis=-1)
    _, outputs = self.layer(None, read, mask=mask, key=key)
    # The prediction of the first time step comes from outputs of zero.
    before = jnp.pad(outputs, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    predicted = self.output.project(before)
    error = jnp.where(observed, jnp.square(predicted - seen), 0.0)
    filled = jnp.where(observed, seen, predicted)
    return blank(mask, filled), blank(mask, error)
