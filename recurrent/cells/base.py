"""What a cell is: static choices as a value, mathematics as pure functions.

A cell is a frozen dataclass. Parameters and carry are NamedTuples of arrays
that are passed in. The order is always *params, carry, inputs -> carry,
outputs*, so `functools.partial(cell.step, params)` is a `jax.lax.scan` body.

Three kinds. A `Cell` has a step and runs by a plain scan. A `GatedCell` gives
its step in two halves, a `LinearCell` as the terms of a linear recurrence;
each so earns faster executors.

Cells see no time: arrays are [*batch, features] with any batch axes. `unroll`
runs a cell over time. Parameters are float32; `unroll` casts them once to the
dtype of the inputs, in which `project` and `recur` multiply; the carry, and
with it `gate`'s arithmetic, stays float32 (float64 if the parameters are).
"""

import abc
import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from recurrent.numerics import cast, check_features, zeros
from recurrent.types import Array, Carry, Params, PRNGKey


@dataclasses.dataclass(frozen=True)
class Cell(abc.ABC):
  """A recurrent cell: `features` wide, otherwise anything that has a step.

  Args:
    features: width H of the outputs.

  Raises:
    ValueError: if `features` is not a positive integer.
  """

  features: int

  # Whether inputs are one array [*batch, D]. A cell of which this is not true
  # says what they are in its docstring and in `check_inputs`.
  takes_vectors: ClassVar[bool] = True

  def __post_init__(self):
    check_features(self.features)

  @property
  def undecayed(self) -> tuple[str, ...]:
    """Names of parameters that weight decay is to leave alone.

    Parameters of one axis, and those whose names end as `optim.NO_MATRIX` has
    it, such as `bias`, are left alone anyway. To be named here: arrays of more
    axes that multiply elementwise, such as rates and decays.
    """
    return ()

  @abc.abstractmethod
  def init(self, key: PRNGKey, in_features: int) -> Params:
    """Draws float32 parameters for inputs of width `in_features`."""

  @abc.abstractmethod
  def initial_carry(
    self, params: Params, batch_shape: tuple[int, ...]
  ) -> Carry:
    """The carry before the first time step, [*batch, ...]; it needs no key."""

  def check_inputs(self, params: Params, inputs: Any) -> None:
    """Raises ValueError unless the cell takes such inputs [batch, time, ...].

    Here that an array is [batch, time, D]; `check_params` sees to the width.
    What a pytree has to be only the cell knows that takes one.

    Args:
      params: the cell's parameters.
      inputs: as `unroll` takes them.
    """
    del params
    if jax.tree_util.all_leaves([inputs]):
      check_time_steps("inputs", inputs, "features")

  def input_width(self, inputs: Any) -> int | None:
    """The width D of inputs, which is the `in_features` of their `init`.

    Args:
      inputs: as `unroll` takes them, not checked yet.

    Returns:
      D, or None if it cannot be told: `check_params` then checks no shape. A
      cell that takes a pytree may say here what D is.
    """
    return inputs.shape[-1] if jax.tree_util.all_leaves([inputs]) else None

  @abc.abstractmethod
  def project(self, params: Params, inputs: Array) -> Any:
    """All that needs inputs only; one bulk product for all times.

    Args:
      params: the cell's parameters.
      inputs: [*batch, D], or what the cell takes; under `unroll` time is one
        of the batch axes.

    Returns:
      What `step` consumes, [*batch, ...].
    """

  @abc.abstractmethod
  def step(
    self, params: Params, carry: Carry, projected: Any
  ) -> tuple[Carry, Array]:
    """One time step.

    Args:
      params: the cell's parameters.
      carry: [*batch, ...], from the time step before.
      projected: [*batch, ...], from `project`.

    Returns:
      The next carry, and outputs [*batch, ..., H].
    """

  def narrow(self, params: Params, dtype: jax.typing.DTypeLike) -> Params:
    """Parameters in the dtype to compute in.

    A cell that has parameters which must not be rounded, such as decays close
    to one, keeps those as they are.
    """
    return cast(params, dtype)

  def perturb(
    self, params: Params, inputs: Any, key: PRNGKey | None
  ) -> tuple[Params, Any]:
    """Parameters and inputs of one window of training, with its noise drawn.

    Args:
      params: the cell's parameters.
      inputs: [batch, time, ...], as `unroll` takes them.
      key: PRNG key, or None in evaluation: both come back as they are.

    Returns:
      What to give `unroll`; a cell without noise returns what it was given.
    """
    del key
    return params, inputs


@dataclasses.dataclass(frozen=True)
class GatedCell(Cell):
  """A cell whose step splits in a matrix product and cheap arithmetic.

  With the halves apart `unroll` can keep weight gradients out of the reverse
  loop (`method="fused"`), and kernels can hold the weights on chip.
  """

  @property
  def channelwise(self) -> bool:
    """Whether no unit sees another's carry: Jacobians are diagonal then."""
    return False

  @abc.abstractmethod
  def recur(self, params: Params, carry: Carry) -> Array:
    """The product with the previous hidden state: `mixed`, [*batch, ...]."""

  @abc.abstractmethod
  def gate(
    self, params: Params, carry: Carry, projected: Array, mixed: Array
  ) -> tuple[Carry, Array]:
    """The rest of the time step: elementwise or per row, no weight matrix."""

  def step(self, params, carry, projected):
    """One time step: `gate` after `recur`."""
    return self.gate(params, carry, projected, self.recur(params, carry))


class Linear(NamedTuple):
  """What a `LinearCell` projects its inputs to.

  Attributes:
    decay: [*batch, ...], broadcastable to the state; float32 at least.
    drive: [*batch, ...], of the state's shape; float32 at least.
    skip: whatever else `readout` wants to know of the inputs.
  """

  decay: Array
  drive: Array
  skip: Any


class LinearCarry(NamedTuple):
  """Carry of most linear cells."""

  hidden: Array


@dataclasses.dataclass(frozen=True)
class LinearCell(Cell):
  """A cell whose state is decay * state + drive, elementwise.

  Decay and drive come from the inputs alone, so they are bulk products, and
  the recurrence runs in parallel over time (`method="associative"`,
  `"linear_scan"`).

  Reference:
    Martin & Cundy, "Parallelizing linear recurrent neural nets over sequence
    length", 2018.
  """

  @abc.abstractmethod
  def project(self, params: Params, inputs: Array) -> Any:
    """Decay, drive and skip (`Linear`); one bulk computation for all times."""

  def terms(self, projected: Any) -> Linear:
    """What `project` returned as a `Linear`, if it is something smaller."""
    return projected

  @abc.abstractmethod
  def readout(self, params: Params, state: Array, skip: Any) -> Array:
    """Outputs [*batch, H] from states [*batch, ...], in bulk as well."""

  def initial_carry(self, params, batch_shape):
    """Zeros."""
    return LinearCarry(zeros(params, batch_shape, self.features))

  def pack(self, carry: Carry) -> Array:
    """The carry as the array that decays."""
    return carry.hidden

  def unpack(self, state: Array) -> Carry:
    """That array as the carry."""
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
  """What a `MatrixCell` projects its inputs to, for N heads.

  Attributes:
    log_decay: [*batch, N]; float32 at least, like all but skip.
    key: [*batch, N, K].
    value: [*batch, N, V].
    query: [*batch, N, K].
    skip: whatever else `readout` wants to know of the inputs.
  """

  log_decay: Array
  key: Array
  value: Array
  query: Array
  skip: Any


@dataclasses.dataclass(frozen=True)
class MatrixCell(LinearCell):
  """A linear cell whose state is a matrix a head, [N, K, V], read by queries.

  state' = decay * state + key value^T; what is found is query state'. Within a
  stretch of time steps that is an attention, so the matrices between need not
  be written down (`method="chunkwise"`).

  Reference:
    Katharopoulos et al., "Transformers are RNNs: fast autoregressive
    transformers with linear attention", 2020.
  """

  @abc.abstractmethod
  def project(self, params: Params, inputs: Array) -> Outer:
    """Decays, keys, values, queries; one bulk computation for all times."""

  @abc.abstractmethod
  def read(self, params: Params, found: Array, skip: Any) -> Array:
    """Outputs [*batch, H] from what was found, [*batch, N, V]."""

  def terms(self, projected):
    """The outer products, written down."""
    log_decay, key, value, query, skip = projected
    drive = key[..., :, None] * value[..., None, :]
    decay = jnp.broadcast_to(jnp.exp(log_decay)[..., None, None], drive.shape)
    return Linear(decay, drive, (query, skip))

  def readout(self, params, state, skip):
    """What the queries find in a state."""
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
    states: number of complex states N; 0: H.
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
    *axes: lengths, or names where any length will do.
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
  """Shapes and dtypes of a cell's parameters; nothing is drawn."""
  shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), in_features))
  # Plain ones: the mesh of this call is not that of the next.
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)


def check_params(cell: Cell, params: Params, inputs: Any) -> None:
  """Raises ValueError unless parameters have the shapes that `init` gives.

  Their dtypes may be others. What `init` leaves None, such as a dropout mask
  that `perturb` draws, may be anything.

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
  """The width of inputs that the parameters are for, if there is one."""
  wider = _shapes(cell, width + 1)[0]
  for (_, want), (_, other), got in zip(wants, wider, gots, strict=True):
    if want == other or got is None or len(got) != len(want):
      continue
    for a, b, found in zip(want, other, got, strict=True):
      # An axis that grows with the width by a constant.
      fitting = width + (found - a) // (b - a) if a != b else 0
      if fitting > 0:
        shapes = [want for _, want in _shapes(cell, fitting)[0]]
        same = zip(shapes, gots, strict=True)
        return fitting if all(w in (None, g) for w, g in same) else None
  return None
