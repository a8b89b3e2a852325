"""Products, sums and norms that accumulate in float32 or wider.

Cells and layers compute in the dtype of their inputs, which may be bfloat16.
Products accumulate in at least float32, in the forward and in the reverse pass.
So do the gradients of broadcast arrays, since they are sums over all time steps
of a batch.
"""

import jax
import jax.numpy as jnp

from recurrent.checks import check_width
from recurrent.types import Array, Carry, Params


def wide_dtype(dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
  """Returns the dtype to accumulate in: float32, or `dtype` if it is wider."""
  dtype = jnp.dtype(dtype)
  return jnp.float32 if dtype.itemsize < 4 else dtype


def widen(array: Array) -> Array:
  """Casts an array to `wide_dtype`, which is at least float32."""
  return array.astype(wide_dtype(array.dtype))


def cast(params: Params, dtype: jax.typing.DTypeLike) -> Params:
  """Casts all parameters to the dtype to compute in."""
  return jax.tree.map(lambda x: x.astype(dtype), params)


def zeros(params: Params, batch_shape: tuple[int, ...], *widths: int) -> Array:
  """Zeros [*batch, *widths]: float64 for float64 params, else float32."""
  wide = any(x.dtype == jnp.float64 for x in jax.tree.leaves(params))
  dtype = jnp.float64 if wide else jnp.float32
  return jnp.zeros((*batch_shape, *widths), dtype)


def like(array: Array, other: Array) -> Array:
  """Broadcasts an array [H] to the shape [*batch, H] and dtype of another."""
  wide = array.astype(wide_dtype(other.dtype))
  return spread(wide, other.shape).astype(other.dtype)


def spread(array: Array, shape: tuple[int, ...]) -> Array:
  """Computes `jnp.broadcast_to`, with its gradient summed in float32 or wider.

  The gradient of a broadcast is a sum over the repeated axes, which may be all
  time steps of a batch. In bfloat16 such a sum is wrong: a sum of ones stops at
  256.
  """
  return jnp.broadcast_to(widen(array), shape).astype(array.dtype)


def product(inputs: Array, kernel: Array) -> Array:
  """Computes `inputs @ kernel`, accumulated in float32 or wider.

  A weight gradient is a sum over all time steps. Some backends accumulate
  products of bfloat16 in bfloat16 unless `preferred_element_type` is given; the
  reverse pass inherits that argument.

  Args:
    inputs: [..., D].
    kernel: [D, H].

  Returns:
    [..., H], in the dtype of the inputs.

  Raises:
    ValueError: if the last axis of the inputs does not have length D.
  """
  check_width("inputs", inputs, kernel.shape[0])
  return einsum("...d,dh->...h", inputs, kernel)


def affine(inputs: Array, kernel: Array, bias: Array) -> Array:
  """Computes `inputs @ kernel + bias`, for a bias [H]."""
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
  """The real part of `state @ (kernel[0] + i kernel[1])`, in kernel's dtype."""
  real, imaginary = (x.astype(kernel.dtype) for x in (state.real, state.imag))
  return product(real, kernel[0]) - product(imaginary, kernel[1])


def layer_norm(array: Array, scale: Array, blocks: int = 1) -> Array:
  """Normalises each block to mean 0 and variance 1, then multiplies by scale.

  Args:
    array: [*batch, blocks * H].
    scale: [blocks * H].
    blocks: number of blocks of the last axis that are normalised separately.

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
  """Casts an array to the dtype of the carry, in which `gate` computes."""
  return array.astype(jax.tree.leaves(carry)[0].dtype)
