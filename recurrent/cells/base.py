"""Base classes of cells: `Cell`, `GatedCell`, `LinearCell`, `MatrixCell`.

A cell is a frozen dataclass that holds static options; its methods are pure
functions. Parameters and carry are NamedTuples of arrays that are passed as
arguments. The order is always *params, carry, inputs -> carry,
outputs*, so `functools.partial(cell.step, params)` is a `jax.lax.scan` body.

Every `Cell` has a `step` and can run by a plain scan. A `GatedCell` splits its
step into a matrix product and elementwise arithmetic, and a `LinearCell`
returns the terms of a linear recurrence. Faster executors make use of this.

The methods of a cell have no time axis of their own: their arrays are [*batch,
features] with any batch axes. `unroll` runs a cell over time. Parameters are
float32. `unroll` casts them to the dtype of the inputs, in which `project` and
`recur` multiply. The carry and the arithmetic of `gate` stay float32 (float64
if the parameters are).
"""

import abc
import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from recurrent.checks import check_features
from recurrent.numerics import cast, zeros
from recurrent.types import Array, Carry, Params, PRNGKey


@dataclasses.dataclass(frozen=True)
class Cell(abc.ABC):
  """Base class of recurrent cells.

  A subclass implements `init`, `initial_carry`, `project` and `step`.

  Args:
    features: width H of the outputs.

  Raises:
    ValueError: if `features` is not a positive integer.
  """

  features: int

  # Whether inputs are one array [*batch, D]. If not, a cell describes its
  # inputs in its docstring and checks them in `check_inputs`.
  takes_vectors: ClassVar[bool] = True

  def __post_init__(self):
    check_features(self.features)

  @property
  def undecayed(self) -> tuple[str, ...]:
    """Names of parameters that are excluded from weight decay.

    Parameters with one axis, and those whose name ends with an entry of
    `optim.NO_MATRIX`, such as `bias`, are always excluded. A cell returns the
    names of other parameters that multiply elementwise, such as rates and
    decays.
    """
    return ()

  @abc.abstractmethod
  def init(self, key: PRNGKey, in_features: int) -> Params:
    """Draws float32 parameters for inputs of width `in_features`."""

  @abc.abstractmethod
  def initial_carry(
    self, params: Params, batch_shape: tuple[int, ...]
  ) -> Carry:
    """Returns the carry before the first time step, [*batch, ...]."""

  def check_inputs(self, params: Params, inputs: Any) -> None:
    """Raises ValueError if inputs do not have the form that the cell takes.

    By default it checks that an array is [batch, time, D]; `check_params`
    checks the width D. A cell whose inputs are a pytree overrides it.

    Args:
      params: the cell's parameters.
      inputs: as `unroll` takes them.
    """
    del params
    if jax.tree_util.all_leaves([inputs]):
      check_time_steps("inputs", inputs, "features")

  def input_width(self, inputs: Any) -> int | None:
    """Returns the width D of inputs, the `in_features` of `init`.

    Args:
      inputs: as `unroll` takes them, not checked yet.

    Returns:
      D, or None if it is unknown; `check_params` then checks no shapes. A cell
      whose inputs are a pytree may override this to return its D.
    """
    return inputs.shape[-1] if jax.tree_util.all_leaves([inputs]) else None

  @abc.abstractmethod
  def project(self, params: Params, inputs: Array) -> Any:
    """Computes the part of the step that depends on the inputs only.

    `unroll` calls it once for many time steps, so that it is one large product.

    Args:
      params: the cell's parameters.
      inputs: [*batch, D], or the pytree that the cell takes. In `unroll` time
        is one of the batch axes.

    Returns:
      The argument `projected` of `step`, [*batch, ...].
    """

  @abc.abstractmethod
  def step(
    self, params: Params, carry: Carry, projected: Any
  ) -> tuple[Carry, Array]:
    """Computes one time step.

    Args:
      params: the cell's parameters.
      carry: [*batch, ...], from the time step before.
      projected: [*batch, ...], from `project`.

    Returns:
      The next carry, and outputs [*batch, ..., H].
    """

  def narrow(self, params: Params, dtype: jax.typing.DTypeLike) -> Params:
    """Casts the parameters to the dtype to compute in.

    A cell overrides this to leave unchanged parameters that must not be
    rounded, such as decays close to one.
    """
    return cast(params, dtype)

  def perturb(
    self, params: Params, inputs: Any, key: PRNGKey | None
  ) -> tuple[Params, Any]:
    """Draws a cell's noise, such as dropout masks, for one training window.

    Args:
      params: the cell's parameters.
      inputs: [batch, time, ...], as `unroll` takes them.
      key: PRNG key, or None in evaluation, which adds no noise.

    Returns:
      The parameters and inputs to pass to `unroll`. A cell without noise
      returns its arguments unchanged.
    """
    del key
    return params, inputs


@dataclasses.dataclass(frozen=True)
class GatedCell(Cell):
  """A cell whose step is a matrix product (`recur`), then `gate`.

  Since the two are separate, `unroll` can compute weight gradients outside the
  reverse loop (`method="fused"`), and kernels can keep the weights on chip.
  """

  @property
  def channelwise(self) -> bool:
    """Whether each unit depends on its own carry only (diagonal Jacobians)."""
    return False

  @abc.abstractmethod
  def recur(self, params: Params, carry: Carry) -> Array:
    """Returns the product with the previous hidden state, [*batch, ...]."""

  @abc.abstractmethod
  def gate(
    self, params: Params, carry: Carry, projected: Array, mixed: Array
  ) -> tuple[Carry, Array]:
    """Computes the rest of the time step from the result `mixed` of `recur`.

    Its operations are elementwise or within a row. It uses no weight matrices.
    """

  def step(self, params, carry, projected):
    """Computes one time step: `recur`, then `gate`."""
    return self.gate(params, carry, projected, self.recur(params, carry))


class Linear(NamedTuple):
  """The terms of the recurrence of a `LinearCell`, from its inputs.

  Attributes:
    decay: [*batch, ...], broadcastable to the state; float32 at least.
    drive: [*batch, ...], of the state's shape; float32 at least.
    skip: other values that `readout` computes outputs from, or None.
  """

  decay: Array
  drive: Array
  skip: Any


class LinearCarry(NamedTuple):
  """Carry of most linear cells."""

  hidden: Array


@dataclasses.dataclass(frozen=True)
class LinearCell(Cell):
  """A cell with the recurrence state' = decay * state + drive, elementwise.

  Decay and drive depend on the inputs only. They are computed in bulk, and the
  recurrence is solved in parallel over time (`method="associative"`,
  `"linear_scan"`).

  Reference:
    Martin & Cundy, "Parallelizing linear recurrent neural nets over sequence
    length", 2018.
  """

  @abc.abstractmethod
  def project(self, params: Params, inputs: Array) -> Any:
    """Computes decay, drive and skip (`Linear`) of all time steps in bulk."""

  def terms(self, projected: Any) -> Linear:
    """Converts the result of `project` to a `Linear`.

    A cell overrides this if its `project` returns another, smaller form.
    """
    return projected

  @abc.abstractmethod
  def readout(self, params: Params, state: Array, skip: Any) -> Array:
    """Computes outputs [*batch, H] from states [*batch, ...], in bulk."""

  def initial_carry(self, params, batch_shape):
    """Zeros."""
    return LinearCarry(zeros(params, batch_shape, self.features))

  def pack(self, carry: Carry) -> Array:
    """Converts a carry to the state, one array."""
    return carry.hidden

  def unpack(self, state: Array) -> Carry:
    """Converts a state to a carry."""
    return LinearCarry(state)

  def step(self, params, carry, projected):
    """One time step of the recurrence."""
    state = self.pack(carry)
    decay, drive, skip = self.terms(projected)
    decay, drive = (
      jnp.broadcast_to(x.astype(state.dtype), state.shape)
      for x in (decay, drive)
    )
    state = decay * state + drive
    return self.unpack(state), self.readout(params, state, skip)


class Outer(NamedTuple):
  """The terms of the recurrence of a `MatrixCell` with N heads.

  Attributes:
    log_decay: [*batch, N]. All arrays except skip are float32 at least.
    key: [*batch, N, K].
    value: [*batch, N, V].
    query: [*batch, N, K].
    skip: other values that `read` computes outputs from.
  """

  log_decay: Array
  key: Array
  value: Array
  query: Array
  skip: Any


@dataclasses.dataclass(frozen=True)
class MatrixCell(LinearCell):
  """A linear cell whose state is a matrix [K, V] for each of N heads.

  The recurrence is state' = decay * state + key value^T, and a time step reads
  query state' from it. Within a segment of time steps this is a form of
  attention, so the states within the segment need not be stored
  (`method="chunkwise"`).

  Reference:
    Katharopoulos et al., "Transformers are RNNs: fast autoregressive
    transformers with linear attention", 2020.
  """

  @abc.abstractmethod
  def project(self, params: Params, inputs: Array) -> Outer:
    """Computes decays, keys, values and queries of all time steps in bulk."""

  @abc.abstractmethod
  def read(self, params: Params, found: Array, skip: Any) -> Array:
    """Computes outputs [*batch, H] from query state', [*batch, N, V]."""

  def terms(self, projected):
    """Computes decay and drive, which is an outer product for each head."""
    log_decay, key, value, query, skip = projected
    drive = key[..., :, None] * value[..., None, :]
    decay = jnp.broadcast_to(jnp.exp(log_decay)[..., None, None], drive.shape)
    return Linear(decay, drive, (query, skip))

  def readout(self, params, state, skip):
    """Computes query state, then the outputs by `read`."""
    query, skip = skip
    found = jnp.einsum("...k,...kv->...v", query, state.astype(query.dtype))
    return self.read(params, found, skip)


class ComplexCarry(NamedTuple):
  """Carry of a linear cell with complex states, as two real arrays."""

  real: Array
  imaginary: Array


@dataclasses.dataclass(frozen=True)
class ComplexLinearCell(LinearCell):
  """A linear cell whose states are complex.

  Its carry and parameters are real, since optimisers, checkpoints and TPUs
  take real arrays.

  Args:
    features: width H of the outputs.
    states: number of complex states N; 0 stands for H.
  """

  states: int = 0

  @property
  def width(self) -> int:
    """Number of complex states."""
    return self.states or self.features

  def initial_carry(self, params, batch_shape):
    """Zeros."""
    start = zeros(params, batch_shape, self.width)
    return ComplexCarry(start, start)

  def pack(self, carry):
    """The carry as one complex array."""
    return jax.lax.complex(carry.real, carry.imaginary)

  def unpack(self, state):
    """A complex array as the carry."""
    return ComplexCarry(state.real, state.imag)


def check_time_steps(name: str, array: Array, *axes: int | str) -> None:
  """Raises ValueError unless an array is [batch, time, *axes].

  Args:
    name: what to call it.
    array: any array.
    *axes: lengths of the other axes; a name accepts any length.
  """
  want = ("batch", "time", *axes)
  if array.ndim != len(want) or any(
    isinstance(axis, int) and axis != length
    for axis, length in zip(want, array.shape, strict=True)
  ):
    raise ValueError(
      f"{name} must be [{', '.join(map(str, want))}], got {array.shape};"
      " mend the axes, or use vmap"
    )


@functools.lru_cache(maxsize=1024)
def param_shapes(cell: Cell, in_features: int) -> Params:
  """Returns shapes and dtypes of a cell's parameters, without drawing them."""
  shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), in_features))
  # The shapes are stored without a sharding, since the cached result may be
  # used under another mesh.
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)


def check_params(cell: Cell, params: Params, inputs: Any) -> None:
  """Raises ValueError unless parameters have the shapes that `init` gives.

  Dtypes are not checked. Neither are fields that `init` sets to None, such as a
  dropout mask that `perturb` draws.

  Args:
    cell: any cell.
    params: its parameters.
    inputs: as `unroll` takes them, not checked yet.
  """
  width = cell.input_width(inputs)
  if width is None:
    return
  if width == 0:
    raise ValueError(f"inputs must have at least one feature, got {width}")
  wants, structure = _shapes(cell, width)
  try:
    leaves = structure.flatten_up_to(params)
  except ValueError:
    got = jax.tree.structure(params)
    raise ValueError(
      f"params must be {structure}, as {cell} draws them, got {got}"
    ) from None
  gots = [np.shape(x) if x is not None else None for x in leaves]
  wrong = [
    (name, got, want)
    for (name, want), got in zip(wants, gots, strict=True)
    if want not in (None, got)
  ]
  if not wrong:
    return
  fitting = _fitting_width(cell, width, wants, gots)
  if fitting is not None:
    raise ValueError(
      f"inputs must be {fitting} wide, as params are for, got {width}"
    )
  name, got, want = wrong[0]
  raise ValueError(
    f"params{name} must be {want} for {cell} and inputs {width} wide, got {got}"
  )


@functools.lru_cache(maxsize=1024)
def _shapes(cell, in_features):
  """Names and shapes of the parameters, None where `init` gives none."""
  leaves, structure = jax.tree_util.tree_flatten_with_path(
    param_shapes(cell, in_features), is_leaf=lambda x: x is None
  )
  shape = lambda leaf: None if leaf is None else leaf.shape
  names = jax.tree_util.keystr
  return [(names(path), shape(leaf)) for path, leaf in leaves], structure


def _fitting_width(cell, width, wants, gots) -> int | None:
  """Returns the width of inputs that the parameters fit, or None."""
  wider = _shapes(cell, width + 1)[0]
  for (_, want), (_, other), got in zip(wants, wider, gots, strict=True):
    if want == other or got is None or len(got) != len(want):
      continue
    for a, b, found in zip(want, other, got, strict=True):
      # The length of this axis is linear in the width of the inputs.
      fitting = width + (found - a) // (b - a) if a != b else 0
      if fitting > 0:
        shapes = [want for _, want in _shapes(cell, fitting)[0]]
        same = zip(shapes, gots, strict=True)
        return fitting if all(w in (None, g) for w, g in same) else None
  return None
