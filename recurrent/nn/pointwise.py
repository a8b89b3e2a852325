"""Layers that compute each time step by itself: affine, norm, feed-forward."""

import jax
import jax.numpy as jnp
from flax import nnx

from recurrent import initializers, numerics
from recurrent.checks import check_positive
from recurrent.masking import blank
from recurrent.types import Activations, Array, Float, Mask, PRNGKey


class _Pointwise(nnx.Module):
  """Base class: a function of each time step's inputs, without a carry."""

  def __init__(self, in_features: int, features: int):
    self.in_features = check_positive("in_features", in_features)
    self.features = check_positive("features", features)

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
    """Computes all time steps.

    Args:
      carry: () or None.
      inputs: [batch, time, in_features].
      mask: [batch, time], True where a time step is real; elsewhere the outputs
        are zero, whatever the inputs are.
      resets: has no effect, since time steps do not depend on each other.
      key: has no effect, since nothing is drawn.

    Returns:
      () and outputs [batch, time, features].
    """
    del carry, resets, key
    return (), blank(mask, self.project(blank(mask, inputs)))

  def project(self, inputs: Float[Array, "*B D"]) -> Float[Array, "*B H"]:
    """Computes the outputs, for inputs with any batch axes."""
    raise NotImplementedError

  def step(
    self,
    carry: tuple[()],
    projected: Float[Array, "*B H"],
    dtype: jax.typing.DTypeLike,
  ) -> tuple[tuple[()], Float[Array, "*B H"]]:
    """Returns the carry and the result of `project`, in `dtype`."""
    return carry, projected.astype(dtype)


class Affine(_Pointwise):
  """Affine map of each time step: outputs = inputs @ kernel + bias.

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from recurrent import nn
    >>> rngs = nnx.Rngs(0)
    >>> wider = nn.Affine(3, 8, rngs=rngs)
    >>> block = nn.TransformerBlock(8, heads=2, context=16, rngs=rngs)
    >>> nn.Stack([wider, block])(None, jnp.ones((1, 5, 3)))[1].shape
    (1, 5, 8)

  Args:
    in_features: width D of the inputs.
    features: width H of the outputs.
    rngs: source of the key that draws the kernel.

  Raises:
    ValueError: if a width is not a positive integer.
  """

  def __init__(self, in_features: int, features: int, *, rngs: nnx.Rngs):
    super().__init__(in_features, features)
    shape = self.in_features, self.features
    self.kernel = nnx.Param(initializers.lecun_uniform(rngs.params(), shape))
    self.bias = nnx.Param(jnp.zeros((self.features,)))

  def project(self, inputs: Float[Array, "*B D"]) -> Float[Array, "*B H"]:
    """Computes the outputs, for inputs with any batch axes."""
    both = numerics.cast((self.kernel[...], self.bias[...]), inputs.dtype)
    return numerics.affine(inputs, *both)


class Norm(_Pointwise):
  """Layer normalisation of each time step, with a scale and no bias.

  Args:
    features: width H of the inputs and outputs.

  Raises:
    ValueError: if the width is not a positive integer.

  Reference:
    Ba, Kiros & Hinton, "Layer normalization", 2016.
  """

  def __init__(self, features: int):
    super().__init__(features, features)
    self.scale = nnx.Param(jnp.ones((self.features,)))

  def project(self, inputs: Float[Array, "*B D"]) -> Float[Array, "*B H"]:
    """Computes the outputs, for inputs with any batch axes."""
    return numerics.layer_norm(inputs, self.scale[...])


class FeedForward(_Pointwise):
  """MLP of each time step: outputs = gelu(norm(x) W + b) U + c.

  Between linear recurrent layers it makes the network nonlinear. It is meant to
  be added to its inputs, by `Residual` or `Stack(residual=True)`.

  Args:
    features: width H of the inputs and outputs.
    inside: width inside the MLP.
    rngs: source of the keys that draw the matrices.

  Raises:
    ValueError: if a width is not a positive integer.
  """

  def __init__(self, features: int, inside: int, *, rngs: nnx.Rngs):
    super().__init__(features, features)
    self.norm = Norm(features)
    self.inside = Affine(features, inside, rngs=rngs)
    self.output = Affine(inside, features, rngs=rngs)

  def project(self, inputs: Float[Array, "*B D"]) -> Float[Array, "*B H"]:
    """Computes the outputs, for inputs with any batch axes."""
    inside = self.inside.project(self.norm.project(inputs))
    return self.output.project(jax.nn.gelu(inside, approximate=False))
