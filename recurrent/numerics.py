"""Arithmetic that cells and layers share: products and sums in wide dtypes.

Parameters are cast to the dtype to compute in, which may be bfloat16. A product
sums in float32 at least, in both passes, and so does the gradient of whatever
is broadcast: both are sums over all time steps of a batch.
"""

import jax
import jax.numpy as jnp

from recurrent.types import Array, Carry, Params


def wide_dtype(dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
  """The dtype to sum in: float32 at least."""
  dtype = jnp.dtype(dtype)
  return jnp.float32 if dtype.itemsize < 4 else dtype


def widen(array: Array) -> Array:
  """The array in float32 at least."""
  return array.astype(wide_dtype(array.dtype))


def cast(params: Params, dtype: jax.typing.DTypeLike) -> Params:
  """Parameters in the dtype to compute in; done once, outside every loop."""
  return jax.tree.map(lambda x: x.astype(dtype), params)


def zeros(params: Params, batch_shape: tuple[int, ...], *widths: int) -> Array:
  """Zeros [*batch, *widths]: float64 for float64 params, else float32."""
  wide = any(x.dtype == jnp.float64 for x in jax.tree.leaves(params))
  dtype = jnp.float64 if wide else jnp.float32
  return jnp.zeros((*batch_shape, *widths), dtype)


def like(array: Array, other: Array) -> Array:
  """The array [H] in the shape [*batch, H] and dtype of another."""
  wide = array.astype(wide_dtype(other.dtype))
  return spread(wide, other.shape).astype(other.dtype)


def spread(array: Array, shape: tuple[int, ...]) -> Array:
  """`jnp.broadcast_to` whose gradient is summed in float32 at least.

  A broadcast's gradient is a sum over what it repeats, which may be all
  positions of a batch. A sum of ones that is kept in bfloat16 stops at 256.
  """
  return jnp.broadcast_to(widen(array), shape).astype(array.dtype)


def product(inputs: Array, kernel: Array) -> Array:
  """`inputs @ kernel`, summed in float32 at least, in both passes.

  A weight gradient is a sum over all time steps. Not every backend sums a
  product of bfloat16 in float32 unless told so; the pullback inherits what is
  said here.

  Raises:
    ValueError: if the inputs are not as wide as the kernel is high.
  """
  check_width("inputs", inputs, kernel.shape[0])
  return einsum("...d,dh->...h", inputs, kernel)


def affine(inputs: Array, kernel: Array, bias: Array) -> Array:
  """`inputs @ kernel + bias`, the bias broadcast over the batch in words."""
  return add_bias(product(inputs, kernel), bias)


def add_bias(array: Array, bias: Array) -> Array:
  """`array + bias` for array [*batch, H] and bias [H]."""
  wide = widen(array)
  return (wide + like(bias, wide)).astype(array.dtype)


def einsum(formula: str, inputs: Array, kernel: Array) -> Array:
  """`jnp.einsum` of two arrays, summed as in `product`."""
  wide = wide_dtype(inputs.dtype)
  out = jnp.einsum(formula, inputs, kernel, preferred_element_type=wide)
  return out.astype(inputs.dtype)


def hidden_product(hidden: Array, recurrent: Array) -> Array:
  """`hidden @ recurrent` in the dtype of the weights (the compute dtype)."""
  check_width("carry.hidden", hidden, recurrent.shape[0])
  return product(hidden.astype(recurrent.dtype), recurrent)


def complex_product(inputs: Array, kernel: Array) -> Array:
  """`inputs @ (kernel[0] + i kernel[1])`, complex64 at least."""
  return jax.lax.complex(
    widen(product(inputs, kernel[0])), widen(product(inputs, kernel[1]))
  )


def real_product(state: Array, kernel: Array) -> Array:
  """The real part of `state @ (kernel[0] + i kernel[1])`, in its dtype."""
  real, imaginary = (x.astype(kernel.dtype) for x in (state.real, state.imag))
  return product(real, kernel[0]) - product(imaginary, kernel[1])


def layer_norm(array: Array, scale: Array, blocks: int = 1) -> Array:
  """Each block of [*batch, blocks * H] to mean 0, variance 1, times scale.

  Reference:
    Ba, Kiros & Hinton, "Layer normalization", 2016.
  """
  wide = widen(array).reshape(*array.shape[:-1], blocks, -1)
  centred = wide - wide.mean(axis=-1, keepdims=True)
  variance = jnp.square(centred).mean(axis=-1, keepdims=True)
  normal = (centred * jax.lax.rsqrt(variance + 1e-5)).reshape(array.shape)
  return (normal * like(scale, normal)).astype(array.dtype)


def split_gates(array: Array, gates: int) -> list[Array]:
  """Cuts [*batch, G*H] into G arrays [*batch, H]."""
  return jnp.split(array, gates, axis=-1)


def as_carry(array: Array, carry: Carry) -> Array:
  """Casts [*batch, ...] to the dtype of the carry for `gate`'s arithmetic."""
  return array.astype(jax.tree.leaves(carry)[0].dtype)


def check_features(features: int) -> int:
  """The width of a cell, if it is one.

  Raises:
    ValueError: if it is not a positive integer.
  """
  if type(features) is not int or features < 1:
    raise ValueError(f"features must be a positive integer, got {features!r}")
  return features


def check_width(name: str, array: Array, width: int) -> None:
  """Raises ValueError unless what params multiply is an array that wide."""
  got = array.shape[-1] if hasattr(array, "shape") else type(array).__name__
  if got != width:
    raise ValueError(
      f"{name} must be {width} wide, as params are for, got {got}"
    )
