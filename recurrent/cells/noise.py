"""Wrappers that add noise to a gated cell: zoneout, dropout, DropConnect.

A wrapper is itself a gated cell, so wrappers nest, and run by the methods of
gated cells. Their masks are drawn once, outside the loop, by `perturb`.
`nn.Recurrent` calls it with the key of a training step; without `nn.Recurrent`,
call it before `unroll`:

  params, inputs = cell.perturb(params, inputs, key)
  carry, outputs = recurrent.unroll(cell, params, carry, inputs)

Without `perturb`, or with the key None, the cell runs as in evaluation.

Where the noise is wholly in the parameters (`WeightDrop`, `WeightNorm`), or
where there is none (`UpdateDropout` and `RecurrentDropout` in evaluation),
`unroll` runs the wrapped cell in place of the wrapper (`unwrapped`), so that
loops written for one cell, such as those in C++, run here too.
"""

import abc
import dataclasses
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from recurrent import rows
from recurrent.cells import base
from recurrent.types import Array, Float, Params, PRNGKey


class Masked(NamedTuple):
  """Inputs, or their projection, with noise masks for every time step."""

  inputs: Any
  keep: Any  # Boolean, [*batch, H] each


@dataclasses.dataclass(frozen=True)
class Wrapper(base.GatedCell):
  """Base class of gated cells that wrap another gated cell.

  By default every method calls that of the wrapped cell.

  Args:
    features: width H, taken from the wrapped cell.
    cell: the wrapped cell.
  """

  features: int = dataclasses.field(init=False)
  cell: base.GatedCell

  def __post_init__(self):
    if not isinstance(self.cell, base.GatedCell):
      raise ValueError(
        f"{type(self).__name__} takes a GatedCell, got {self.cell!r}"
      )
    object.__setattr__(self, "features", self.cell.features)

  @property
  def channelwise(self):
    """Same as the wrapped cell."""
    return self.cell.channelwise

  @property
  def undecayed(self):
    """Same as the wrapped cell."""
    return self.cell.undecayed

  def in_time_step(self, noise: bool) -> str:
    """Returns what the wrapper adds to a time step of the wrapped cell.

    Args:
      noise: whether noise was drawn, as in training.

    Returns:
      The end of "it ..."; empty if the wrapped cell, with `inner_params`,
      computes the same.
    """
    del noise
    return ""

  def is_noisy(self, params: Params, inputs: Any) -> bool:
    """Returns whether this wrapper's own noise is in its arguments."""
    del params, inputs
    return False

  def inner_params(self, params: Params) -> Params:
    """Returns the parameters of the wrapped cell."""
    return params

  def init(self, key, in_features):
    """Draws the wrapped cell's parameters."""
    return self.cell.init(key, in_features)

  def initial_carry(self, params, batch_shape):
    """Returns the wrapped cell's initial carry."""
    return self.cell.initial_carry(params, batch_shape)

  def check_inputs(self, params, inputs):
    """Same as the wrapped cell."""
    self.cell.check_inputs(params, inputs)

  def input_width(self, inputs):
    """Same as the wrapped cell."""
    return self.cell.input_width(inputs)

  def narrow(self, params, dtype):
    """Same as the wrapped cell."""
    return self.cell.narrow(params, dtype)

  def project(self, params, inputs):
    """Same as the wrapped cell."""
    return self.cell.project(params, inputs)

  def recur(self, params, carry):
    """Same as the wrapped cell."""
    return self.cell.recur(params, carry)

  def gate(self, params, carry, projected, mixed):
    """Same as the wrapped cell."""
    return self.cell.gate(params, carry, projected, mixed)

  def perturb(self, params, inputs, key):
    """Applies the wrapped cell's noise, then this cell's own."""
    if key is None:
      return params, inputs
    ours, theirs = jax.random.split(key)
    params, inputs = self.cell.perturb(params, inputs, theirs)
    return self._draw(params, inputs, ours)

  @abc.abstractmethod
  def _draw(self, params, inputs, key):
    """Draws this cell's own noise."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class TimeStepWrapper(Wrapper):
  """A wrapper that passes a mask for each time step along with the inputs."""

  def is_noisy(self, params, inputs):
    """Whether the inputs have masks."""
    del params
    return isinstance(inputs, Masked)

  def check_inputs(self, params, inputs):
    """Same as the wrapped cell, without the mask."""
    self.cell.check_inputs(params, _plain(inputs))

  def input_width(self, inputs):
    """Same as the wrapped cell, without the mask."""
    return self.cell.input_width(_plain(inputs))

  def project(self, params, inputs):
    """Projects the inputs as the wrapped cell does, and keeps the masks."""
    if isinstance(inputs, Masked):
      return Masked(self.cell.project(params, inputs.inputs), inputs.keep)
    return self.cell.project(params, inputs)


@dataclasses.dataclass(frozen=True)
class Zoneout(TimeStepWrapper):
  """Units that keep their previous value, at random: h' = d h + (1 - d) step.

  In evaluation d is its expectation, the rate.

  Args:
    cell: a gated cell whose carry has the field `hidden`, or `hidden` and
      `cell`.
    rate: probability that a unit of the hidden state keeps its value.
    memory_rate: the same for `cell`, the memory of an LSTM.

  Raises:
    ValueError: if a rate is outside [0, 1), if the carry has other fields, or
      if `memory_rate` is given for a carry without `cell`.

  Reference:
    Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden
    activations", 2017.
  """

  rate: float = 0.1
  memory_rate: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    _check_rate("rate", self.rate)
    _check_rate("memory_rate", self.memory_rate)
    fields = self._fields()
    if not set(fields) <= {"hidden", "cell"}:
      raise ValueError(
        f"Zoneout knows the carries (hidden) and (hidden, cell), got {fields}"
      )
    if self.memory_rate and "cell" not in fields:
      raise ValueError(f"memory_rate needs a carry with a cell, got {fields}")

  def in_time_step(self, noise):
    """In evaluation it mixes the values, by the rates."""
    how = "chooses between" if noise else "averages"
    return f"{how} old and new values of each unit"

  def gate(self, params, carry, projected, mixed):
    """Runs the wrapped cell's `gate`; some units keep their old values."""
    keeps = (self.rate, self.memory_rate)
    inner, keep = projected, None
    if isinstance(projected, Masked):
      inner, keep = projected
    stepped, outputs = self.cell.gate(params, carry, inner, mixed)

    def mix(index, old, new):
      if keep is None:
        return keeps[index] * old + (1 - keeps[index]) * new
      return jnp.where(keep[index], old, new)

    stepped = type(stepped)(
      *(
        mix(index, *pair)
        for index, pair in enumerate(zip(carry, stepped, strict=True))
      )
    )
    return stepped, stepped.hidden.astype(outputs.dtype)

  def _draw(self, params, inputs, key):
    batch, time = jax.tree.leaves(inputs)[0].shape[:2]
    carry = jax.eval_shape(lambda p: self.cell.initial_carry(p, ()), params)
    keep = tuple(
      rows.bernoulli(k, rate, (batch, time, *leaf.shape), inputs)
      for k, rate, leaf in zip(
        jax.random.split(key),
        (self.rate, self.memory_rate),
        carry,
        strict=False,  # a carry of one leaf takes one mask
      )
    )
    return params, Masked(inputs, keep)

  def _fields(self):
    params = base.param_shapes(self.cell, 1)
    carry = jax.eval_shape(lambda p: self.cell.initial_carry(p, ()), params)
    return getattr(carry, "_fields", ())


@dataclasses.dataclass(frozen=True)
class UpdateDropout(TimeStepWrapper):
  """Dropout of the candidate: c' = f c + i d(g), and so for the GRU's n.

  The memory itself is never dropped, so it survives long sequences.

  Args:
    cell: an LSTM or a GRU of any kind that is a `GatedCell`.
    rate: probability of a zero.
    locked: one mask for all time steps of a row instead of a fresh one for
      each.

  Raises:
    ValueError: on a rate outside [0, 1), or a cell without a candidate.

  Reference:
    Semeniuta, Severyn & Barth, "Recurrent dropout without memory loss", 2016.
  """

  rate: float = 0.1
  locked: bool = False

  def __post_init__(self):
    super().__post_init__()
    _check_rate("rate", self.rate)
    if "candidate" not in inspect.signature(self.cell.gate).parameters:
      raise ValueError(
        f"UpdateDropout needs a cell whose gate takes `candidate`, an LSTM or"
        f" a GRU; got {self.cell!r}"
      )

  def in_time_step(self, noise):
    """Without noise the wrapped cell remains."""
    return "drops units of the candidate" if noise else ""

  def gate(self, params, carry, projected, mixed):
    """Computes the wrapped cell's `gate` with dropout of the candidate."""
    if not isinstance(projected, Masked):
      return self.cell.gate(params, carry, projected, mixed)
    inner, keep = projected
    return self.cell.gate(
      params,
      carry,
      inner,
      mixed,
      candidate=lambda sums: _drop(jnp.tanh(sums), keep, self.rate),
    )

  def _draw(self, params, inputs, key):
    batch, time = jax.tree.leaves(inputs)[0].shape[:2]
    carry = jax.eval_shape(lambda p: self.cell.initial_carry(p, ()), params)
    # The last leaf of the carry is as wide as the candidate.
    width = carry[-1].shape[-1]
    shape = (batch, 1 if self.locked else time, width)
    keep = rows.bernoulli(key, 1 - self.rate, shape, inputs)
    return params, Masked(inputs, jnp.broadcast_to(keep, (batch, time, width)))


class RecurrentDropoutParams(NamedTuple):
  """Parameters of the wrapped cell, and the dropout mask of a window."""

  cell: Any
  keep: Float[Array, "B H"] | None = None


@dataclasses.dataclass(frozen=True)
class RecurrentDropout(Wrapper):
  """Dropout of h before its product, one mask for all time steps: (d h) R.

  Args:
    cell: a gated cell whose carry has `hidden`.
    rate: probability of a zero.

  Raises:
    ValueError: on a rate outside [0, 1).

  Reference:
    Gal & Ghahramani, "A theoretically grounded application of dropout in
    recurrent neural networks", 2016.
  """

  rate: float = 0.1

  def __post_init__(self):
    super().__post_init__()
    _check_rate("rate", self.rate)

  def in_time_step(self, noise):
    """Without noise the wrapped cell remains."""
    return "drops units of each row's hidden state" if noise else ""

  def is_noisy(self, params, inputs):
    """Whether the parameters have a mask."""
    del inputs
    return params.keep is not None

  def inner_params(self, params):
    """Returns the parameters of the wrapped cell."""
    return params.cell

  def init(self, key, in_features):
    """Draws the wrapped cell's parameters."""
    return RecurrentDropoutParams(self.cell.init(key, in_features))

  def initial_carry(self, params, batch_shape):
    """Returns the wrapped cell's initial carry."""
    return self.cell.initial_carry(params.cell, batch_shape)

  def check_inputs(self, params, inputs):
    """Same as the wrapped cell."""
    self.cell.check_inputs(params.cell, inputs)

  def narrow(self, params, dtype):
    """Same as the wrapped cell."""
    keep = params.keep
    keep = None if keep is None else keep.astype(dtype)
    return RecurrentDropoutParams(self.cell.narrow(params.cell, dtype), keep)

  def project(self, params, inputs):
    """Same as the wrapped cell."""
    return self.cell.project(params.cell, inputs)

  def recur(self, params, carry):
    """Calls the wrapped cell's `recur` with the masked hidden state."""
    if params.keep is not None:
      # The mask has no time axis, the carry has one in the bulk product.
      shape = jnp.broadcast_shapes(params.keep.shape, carry.hidden.shape)
      hidden, keep = (
        jnp.broadcast_to(x, shape) for x in (carry.hidden, params.keep)
      )
      carry = carry._replace(hidden=hidden * keep.astype(hidden.dtype))
    return self.cell.recur(params.cell, carry)

  def gate(self, params, carry, projected, mixed):
    """Same as the wrapped cell."""
    return self.cell.gate(params.cell, carry, projected, mixed)

  def perturb(self, params, inputs, key):
    """Draws a mask [batch, H] and stores it in the parameters."""
    if key is None:
      return params, inputs
    ours, theirs = jax.random.split(key)
    inner, inputs = self.cell.perturb(params.cell, inputs, theirs)
    return self._draw(RecurrentDropoutParams(inner), inputs, ours)

  def _draw(self, params, inputs, key):
    batch = jax.tree.leaves(inputs)[0].shape[0]
    ones = jnp.ones((batch, self.features), jnp.float32)
    keep = rows.bernoulli(key, 1 - self.rate, ones.shape, inputs)
    return params._replace(keep=_drop(ones, keep, self.rate)), inputs


@dataclasses.dataclass(frozen=True)
class WeightDrop(Wrapper):
  """DropConnect on the recurrent matrix: `weight_drop` at each window.

  Args:
    cell: a gated cell whose parameters have `recurrent`.
    rate: probability of a zero.

  Raises:
    ValueError: on a rate outside [0, 1), or other parameters.

  Reference:
    Merity, Keskar & Socher, "Regularizing and optimizing LSTM language models"
    (AWD-LSTM), 2018.
  """

  rate: float = 0.5

  def __post_init__(self):
    super().__post_init__()
    _check_rate("rate", self.rate)
    _check_recurrent(base.param_shapes(self.cell, 1))

  def _draw(self, params, inputs, key):
    return weight_drop(key, params, self.rate), inputs


class WeightNormParams(NamedTuple):
  """Parameters of the wrapped cell, and the gains of its weights' columns."""

  cell: Any
  gain: Any  # as `recurrent`, with one row


@dataclasses.dataclass(frozen=True)
class WeightNorm(Wrapper):
  """The recurrent weights as directions v times gains g: R = g v / |v|.

  The norm |v| of a column is over its H rows.

  Args:
    cell: a gated cell whose `recurrent` is one matrix [H, ...].

  Raises:
    ValueError: on other parameters.

  Reference:
    Salimans & Kingma, "Weight normalization", 2016.
  """

  def __post_init__(self):
    super().__post_init__()
    shapes = base.param_shapes(self.cell, 1)
    _check_recurrent(shapes)
    if getattr(shapes.recurrent, "ndim", 0) != 2 or self.channelwise:
      raise ValueError(f"WeightNorm needs a dense matrix, got {self.cell!r}")

  def inner_params(self, params):
    """Returns the wrapped cell's parameters, with R computed from v and g."""
    return _normed(params)

  def init(self, key, in_features):
    """Draws the wrapped cell's parameters; the gains start at the norms |v|."""
    params = self.cell.init(key, in_features)
    return WeightNormParams(params, _norm(params.recurrent))

  def initial_carry(self, params, batch_shape):
    """Returns the wrapped cell's initial carry."""
    return self.cell.initial_carry(params.cell, batch_shape)

  def check_inputs(self, params, inputs):
    """Same as the wrapped cell."""
    self.cell.check_inputs(params.cell, inputs)

  def narrow(self, params, dtype):
    """Casts the wrapped cell's parameters, with R computed from v and g.

    With R in the parameters, `recur` need not compute it again.
    """
    return self.cell.narrow(_normed(params), dtype)

  def project(self, params, inputs):
    """Same as the wrapped cell."""
    return self.cell.project(_normed(params), inputs)

  def recur(self, params, carry):
    """Same as the wrapped cell."""
    return self.cell.recur(_normed(params), carry)

  def gate(self, params, carry, projected, mixed):
    """Same as the wrapped cell."""
    return self.cell.gate(_normed(params), carry, projected, mixed)

  def perturb(self, params, inputs, key):
    """Applies the wrapped cell's noise to its parameters, with v for R."""
    inner, inputs = self.cell.perturb(params.cell, inputs, key)
    return params._replace(cell=inner), inputs

  def _draw(self, params, inputs, key):
    del key
    return params, inputs


def noisy(
  cell: base.Cell,
  *,
  update_dropout: float = 0.0,
  weight_drop: float = 0.0,
  recurrent_dropout: float = 0.0,
  zoneout: float = 0.0,
  memory_zoneout: float = 0.0,
) -> base.Cell:
  """Wraps a cell in each kind of noise whose rate is not zero.

  The first argument below is the innermost wrapper, the last the outermost.

  Args:
    cell: any cell if all rates are zero, else one that the wrappers accept.
    update_dropout: see `UpdateDropout`.
    weight_drop: see `WeightDrop`.
    recurrent_dropout: see `RecurrentDropout`.
    zoneout: `rate` of `Zoneout`.
    memory_zoneout: `memory_rate` of `Zoneout`.

  Returns:
    The wrapped cell; `cell` itself if all rates are zero.

  Raises:
    ValueError: if a wrapper does not accept the cell.
  """
  found: Any = cell  # the wrappers check that it is gated
  if update_dropout:
    found = UpdateDropout(found, update_dropout)
  if weight_drop:
    found = WeightDrop(found, weight_drop)
  if recurrent_dropout:
    found = RecurrentDropout(found, recurrent_dropout)
  if zoneout or memory_zoneout:
    found = Zoneout(found, zoneout, memory_zoneout)
  return found


def unwrapped(
  cell: base.Cell, params: Params, inputs: Any
) -> tuple[base.Cell, Params]:
  """Removes the outer wrappers that add nothing to a time step.

  Args:
    cell: any cell.
    params: its parameters, with the noise of `perturb` if there is any.
    inputs: its inputs, with the noise of `perturb` if there is any.

  Returns:
    A cell and parameters that compute the same from these inputs.
  """
  while isinstance(cell, Wrapper):
    if cell.in_time_step(cell.is_noisy(params, inputs)):
      break
    params = cell.inner_params(params)
    cell = cell.cell
  return cell, params


def unwrapped_cell(cell: base.Cell, noise: bool) -> base.Cell:
  """Returns the cell that `unwrapped` returns.

  Args:
    cell: any cell.
    noise: whether noise is drawn, as in training.
  """
  while isinstance(cell, Wrapper) and not cell.in_time_step(noise):
    cell = cell.cell
  return cell


def weight_drop(key: PRNGKey | None, params: Params, rate: float) -> Params:
  """Zeroes recurrent weights with probability `rate`, scales the rest up.

  Args:
    key: PRNG key, or None in evaluation, which changes nothing.
    params: parameters of a cell, with a field `recurrent`.
    rate: probability of a zero, in [0, 1).

  Returns:
    Parameters of the same structure.

  Raises:
    ValueError: if the rate is out of range, or there is no such field.
  """
  _check_rate("rate", rate)
  _check_recurrent(params)
  if key is None:
    return params
  leaves, structure = jax.tree.flatten(params.recurrent)
  dropped = [
    _drop(x, jax.random.bernoulli(k, 1 - rate, x.shape), rate)
    for k, x in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
  ]
  return params._replace(recurrent=jax.tree.unflatten(structure, dropped))


def _plain(inputs):
  """The inputs without masks."""
  return inputs.inputs if isinstance(inputs, Masked) else inputs


def _normed(params):
  """Computes the wrapped cell's parameters, unless `narrow` already has."""
  if not isinstance(params, WeightNormParams):
    return params
  recurrent = params.cell.recurrent
  scale = params.gain / _norm(recurrent)
  return params.cell._replace(
    recurrent=recurrent * jnp.broadcast_to(scale, recurrent.shape)
  )


def _norm(weights):
  return jnp.linalg.norm(weights, axis=0, keepdims=True)


def _drop(array, keep, rate):
  return jnp.where(keep, array / (1 - rate), jnp.zeros_like(array))


def _check_rate(name, rate):
  if not 0 <= rate < 1:
    raise ValueError(f"{name} must be in [0, 1), got {rate}")


def _check_recurrent(params):
  if not hasattr(params, "recurrent"):
    raise ValueError(
      f"parameters must have a field `recurrent`, got {type(params).__name__}"
    )
