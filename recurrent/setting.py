"""The context in which a program is compiled: devices and dtypes.

Everything that chooses between several implementations chooses by a `Setting`:
the method of `recurrent.unroll`, the loop of `kernels.linear_scan`, and the
layout of packed matrices. `Setting.here()` returns the present one.
"""

import math
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# JAX calls the backend of a GPU "gpu", but the platforms to lower for "cuda"
# and "rocm".
_SAME = {"cuda": "gpu", "rocm": "gpu"}

# The platform and the number of devices that `compile_for` sets, or None. JAX
# includes the value in the keys of its caches of traced programs.
_target = jax.make_user_context(None)


class Setting(NamedTuple):
  """The dtypes and the devices for which an implementation is chosen.

  Attributes:
    dtype: the dtype to compute in.
    carry_dtype: the dtype of the carry.
    platform: "cpu", "gpu", "tpu", or the name of another backend of JAX.
    devices: the number of devices over which an array may be sharded.
  """

  dtype: Any
  carry_dtype: Any
  platform: str
  devices: int

  @property
  def widths(self) -> str:
    """Both dtypes as text, for messages."""
    return f"{self.dtype} with a carry of {self.carry_dtype}"

  @classmethod
  def here(cls, dtype: Any = jnp.float32, carry_dtype: Any = None) -> "Setting":
    """Returns the present setting, with the given dtypes.

    Platform and devices are those of the first of these that is set:
    `compile_for` (its platform only, in `jax.shard_map`); the mesh of
    `jax.set_mesh` or `jax.shard_map`; the option `jax_default_device` of JAX;
    JAX's default backend.

    Args:
      dtype: the dtype to compute in.
      carry_dtype: the dtype of the carry; None: `dtype`, or float32 if that is
        wider.
    """
    dtype = jnp.dtype(dtype)
    if carry_dtype is None:
      carry_dtype = dtype if dtype.itemsize > 4 else jnp.float32
    return cls(dtype, jnp.dtype(carry_dtype), *_place())


def compile_for(
  platform: str, devices: int = 1
) -> AbstractContextManager[None]:
  """Chooses implementations for a platform that this process does not have.

  Within the context, `method="auto"`, `kernels.linear_scan` and
  `decoding.pack_step` choose as they would on that platform:

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import recurrent
    >>> cell = recurrent.cells.LSTM(4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> run = jax.jit(lambda x: recurrent.unroll(cell, params, None, x)[1])
    >>> with recurrent.compile_for("tpu", devices=4):
    ...   traced = run.trace(jnp.ones((2, 5, 3)))
    >>> lowered = traced.lower(lowering_platforms=("tpu",))

  The choice is made when a function is traced. JAX traces a jitted function
  again in another context. A program that was traced in one context and is
  lowered for another platform is correct, since each kernel has a plain form
  for other platforms, but it may be slow there. That also holds for a program
  that is exported for several platforms at once: it has one choice.

  The context holds for one thread. It does not change where a program runs.

  Args:
    platform: "cpu", "gpu" (or "cuda", "rocm") or "tpu".
    devices: the number of devices over which arrays are sharded. Within
      `jax.shard_map` it is that of the axes that are not manual.

  Returns:
    A context manager.

  Raises:
    ValueError: if `platform` is not a name, or `devices` is less than 1.
  """
  if not isinstance(platform, str) or not platform:
    raise ValueError(f'platform must be a name such as "tpu", got {platform!r}')
  if type(devices) is not int or devices < 1:
    raise ValueError(f"devices must be at least 1, got {devices!r}")
  return _target((_SAME.get(platform, platform), devices))


def _place() -> tuple[str, int]:
  """Returns the present platform and the number of devices."""
  mesh = jax.sharding.get_abstract_mesh()
  # Along a manual axis (`jax.shard_map`) each device runs its own program.
  shared = set(mesh.axis_names) - set(mesh.manual_axes)
  devices = math.prod(mesh.shape[axis] for axis in shared)
  if _target.value is not None:
    platform, asked = _target.value
    return platform, devices if mesh.manual_axes else asked
  config: Any = jax.config
  default = config.jax_default_device
  platform = getattr(default, "platform", default) or jax.default_backend()
  platform = _SAME.get(platform, platform)
  if not mesh.empty:
    device = mesh.abstract_device
    return device.platform if device else platform, devices
  if default is None or isinstance(default, str):
    return platform, jax.device_count(default)
  return platform, 1
