"""ConvLSTM: an LSTM on images, with convolutions in place of products."""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from recurrent import initializers, numerics
from recurrent.cells import base
from recurrent.cells.lstm import LSTM, LSTMCarry
from recurrent.checks import check_positive
from recurrent.types import Array, Float


class ConvLSTMParams(NamedTuple):
  """Parameters of `ConvLSTM`; columns of the gates in the order i, f, g, o."""

  kernel: Float[Array, "*K D 4*H"]
  recurrent: Float[Array, "*K H 4*H"]
  bias: Float[Array, "4*H"]


@dataclasses.dataclass(frozen=True)
class ConvLSTM(base.GatedCell):
  """An LSTM whose i, f, g, o come from convolutions: x * W + h * R + b.

  c' = f c + i g, h' = o tanh(c'), at each position. The convolutions, *, are
  over one to three spatial axes, with zero padding that keeps their lengths.
  Inputs are
  [*batch, *spatial, D]; outputs and both parts of the carry, an `LSTMCarry`,
  are [*batch, *spatial, H]. There are no peepholes.

  Args:
    features: channels H.
    spatial: lengths of the spatial axes.
    kernel_size: length of the window along each of them.
    forget_bias: initial value of the forget gate's bias.

  Raises:
    ValueError: if `spatial` is not one to three positive integers, or
      `kernel_size` no positive integer.

  Reference:
    Shi et al., "Convolutional LSTM network: a machine learning approach for
    precipitation nowcasting", 2015.
  """

  spatial: tuple[int, ...] = (8, 8)
  kernel_size: int = 3
  forget_bias: float = 1.0

  takes_vectors: ClassVar[bool] = False

  def __post_init__(self):
    super().__post_init__()
    whole = lambda size: type(size) is int and size > 0
    if (
      not isinstance(self.spatial, tuple)
      or not 1 <= len(self.spatial) <= 3
      or not all(map(whole, self.spatial))
    ):
      raise ValueError(
        "spatial must be a tuple of one to three positive integers,"
        f" got {self.spatial!r}"
      )
    check_positive("kernel_size", self.kernel_size)

  def init(self, key, in_features):
    """Draws `ConvLSTMParams`: LeCun kernels over a window's entries."""
    window = (self.kernel_size,) * len(self.spatial)
    kernel, recurrent = (
      initializers.lecun_uniform(k, (*window, width, 4 * self.features))
      for k, width in zip(
        jax.random.split(key), (in_features, self.features), strict=True
      )
    )
    h = self.features
    bias = jnp.zeros((4 * h,), jnp.float32)
    bias = bias.at[h : 2 * h].set(self.forget_bias)
    return ConvLSTMParams(kernel, recurrent, bias)

  def initial_carry(self, params, batch_shape):
    """Zeros."""
    start = numerics.zeros(params, batch_shape, *self.spatial, self.features)
    return LSTMCarry(hidden=start, cell=start)

  def check_inputs(self, params, inputs):
    """Raises ValueError unless inputs are [batch, time, *spatial, D]."""
    width = params.kernel.shape[-2]
    base.check_time_steps("inputs", inputs, *self.spatial, width)

  def project(self, params, inputs):
    """X * W + b: all batch axes and time steps in one convolution."""
    return numerics.add_bias(self._convolve(inputs, params.kernel), params.bias)

  def recur(self, params, carry):
    """H * R."""
    hidden = carry.hidden.astype(params.recurrent.dtype)
    return self._convolve(hidden, params.recurrent)

  # The gate of the LSTM is elementwise, with the channels on the last axis.
  gate = LSTM.gate

  def _convolve(self, array, kernel):
    """The convolution of [*batch, *spatial, D], summed in float32 at least."""
    axes = len(self.spatial)
    batch = array.shape[: -axes - 1]
    letters = "DHW"[3 - axes :]
    out = jax.lax.conv_general_dilated(
      array.reshape(math.prod(batch), *array.shape[-axes - 1 :]),
      kernel,
      window_strides=(1,) * axes,
      padding="SAME",
      dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
      preferred_element_type=numerics.wide_dtype(array.dtype),
    )
    return out.astype(array.dtype).reshape(*batch, *out.shape[1:])
