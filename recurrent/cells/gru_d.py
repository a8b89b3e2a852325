"""GRU-D: a GRU for series with missing values (Che et al., 2018)."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from recurrent import initializers, numerics
from recurrent.cells import base
from recurrent.types import Array, Bool, Float


class Observations(NamedTuple):
  """Inputs of `GRUD`, each [*batch, D].

  Attributes:
    value: the variables. Entries that are not observed are ignored, even if
      they are NaN.
    observed: True where a variable is observed.
    elapsed: time since a variable was last observed, in any one unit; see
      `elapsed_since_observed`. All entries are read, observed or not.
  """

  value: Float[Array, "*B D"]
  observed: Bool[Array, "*B D"]
  elapsed: Float[Array, "*B D"]


class GRUDParams(NamedTuple):
  """Parameters of `GRUD`; columns of the gates in the order r, z, n."""

  kernel: Float[Array, "D 3*H"]  # W, of the variables
  observed_kernel: Float[Array, "D 3*H"]  # V, of `observed`
  recurrent: Float[Array, "H 3*H"]
  bias: Float[Array, "3*H"]
  input_decay: Float[Array, "D"]
  input_decay_bias: Float[Array, "D"]
  hidden_decay: Float[Array, "D H"]
  hidden_decay_bias: Float[Array, "H"]
  mean: Float[Array, "D"]


class GRUDCarry(NamedTuple):
  """Carry of `GRUD`."""

  hidden: Float[Array, "*B H"]
  last: Float[Array, "*B D"]  # value of each variable when last observed


class _Projected(NamedTuple):
  """The values that `project` computes from the inputs."""

  observed: Array
  value: Array
  input_decay: Array
  hidden_decay: Array
  gates: Array


@dataclasses.dataclass(frozen=True)
class GRUD(base.Cell):
  """The GRU of x', m and d h: x' = x if m else d' last + (1 - d') mean.

  m is 1 where a variable is observed, `last` its last observed value. After a
  time t, d' = exp(-max(0, w t + b')) for each variable by itself, and
  d = exp(-max(0, t W' + b'')). The GRU is r, z = sigmoid(x' W + m V + d h R +
  b), n = tanh(x' W + m V + (r d h) R + b), h' = (1 - z) n + z d h.

  Inputs are `Observations`. Before a variable is first observed, its last
  value is the mean. The mean is a parameter, which `init` sets to zero: write
  the one of the training data into it, `params._replace(mean=...)`, if the
  data are not centred; to keep it there, leave it out of the optimiser.

  Args:
    features: width H.

  Reference:
    Che, Purushotham, Cho, Sontag & Liu, "Recurrent neural networks for
    multivariate time series with missing values", 2018; with z in the role of
    1 - z there, as for `GRUResetBefore`.
  """

  takes_vectors: ClassVar[bool] = False

  def init(self, key, in_features):
    """Draws `GRUDParams`: LeCun kernels, orthogonal recurrent blocks.

    The rates of decay are drawn positive. With a negative rate and a bias of
    zero, nothing would decay and the rate would have no gradient, since times
    are positive.
    """
    keys = jax.random.split(key, 4)
    d, h = in_features, self.features
    # The paper's [x', m] is one vector of 2 D.
    kernel = initializers.lecun_uniform(keys[0], (2 * d, 3 * h))
    return GRUDParams(
      kernel=kernel[:d],
      observed_kernel=kernel[d:],
      recurrent=initializers.orthogonal_blocks(keys[1], h, 3),
      bias=jnp.zeros((3 * h,), jnp.float32),
      input_decay=initializers.uniform(keys[2], (d,), 0.0, 1.0),
      input_decay_bias=jnp.zeros((d,), jnp.float32),
      hidden_decay=initializers.uniform(keys[3], (d, h), 0.0, 1.0 / d),
      hidden_decay_bias=jnp.zeros((h,), jnp.float32),
      mean=jnp.zeros((d,), jnp.float32),
    )

  def initial_carry(self, params, batch_shape):
    """Zeros, and the mean as the last value."""
    hidden = numerics.zeros(params, batch_shape, self.features)
    last = numerics.zeros(params, batch_shape, len(params.mean))
    return GRUDCarry(hidden, numerics.like(params.mean, last))

  def input_width(self, inputs):
    """Returns the number of variables D."""
    known = isinstance(inputs, Observations) and inputs.value.ndim > 0
    return inputs.value.shape[-1] if known else None

  def check_inputs(self, params, inputs):
    """Raises ValueError unless they are `Observations` of [batch, time, D]."""
    if not isinstance(inputs, Observations):
      raise ValueError(f"inputs must be Observations, got {type(inputs)}")
    for name, array in inputs._asdict().items():
      base.check_time_steps(f"inputs.{name}", array, len(params.mean))
      boolean = name == "observed"
      if not jnp.issubdtype(
        array.dtype, jnp.bool_ if boolean else jnp.floating
      ):
        raise ValueError(
          f"inputs.{name} must be"
          f" {'Boolean' if boolean else 'floating-point'}, got {array.dtype}"
        )

  def project(self, params, inputs):
    """Computes both decays and the part of the gates' sums without x' and h."""
    dtype = params.kernel.dtype
    observed = inputs.observed
    value, elapsed = (x.astype(dtype) for x in (inputs.value, inputs.elapsed))
    by_input = numerics.add_bias(
      elapsed * numerics.like(params.input_decay, elapsed),
      params.input_decay_bias,
    )
    by_hidden = numerics.affine(
      elapsed, params.hidden_decay, params.hidden_decay_bias
    )
    decay = lambda rate: jnp.exp(-jax.nn.relu(numerics.widen(rate)))
    gates = numerics.affine(
      observed.astype(dtype), params.observed_kernel, params.bias
    )
    return _Projected(observed, value, decay(by_input), decay(by_hidden), gates)

  def step(self, params, carry, projected):
    """Fills in missing values, decays the hidden state, then runs the GRU."""
    h = self.features
    observed, *reals = projected
    value, d_input, d_hidden, gates = (
      numerics.as_carry(x, carry) for x in reals
    )
    # `value` may be NaN where it is not observed: `where` comes before any
    # arithmetic on it.
    last = jnp.where(observed, value, carry.last)
    stale = d_input * carry.last + (1 - d_input) * numerics.like(
      params.mean, last
    )
    filled = jnp.where(observed, value, stale)
    hidden = d_hidden * carry.hidden

    mixed = lambda array, kernel: numerics.as_carry(
      numerics.hidden_product(array, kernel), carry
    )
    gates = gates + mixed(filled, params.kernel)
    by_h, by_rh = jnp.split(params.recurrent, [2 * h], axis=-1)
    x_rz, x_n = jnp.split(gates, [2 * h], axis=-1)
    r, z = numerics.split_gates(jax.nn.sigmoid(x_rz + mixed(hidden, by_h)), 2)
    n = jnp.tanh(x_n + mixed(r * hidden, by_rh))
    hidden = (1 - z) * n + z * hidden
    return GRUDCarry(hidden, last), hidden.astype(projected.gates.dtype)


def elapsed_since_observed(
  times: Float[Array, "B T"], observed: Bool[Array, "B T D"]
) -> Float[Array, "B T D"]:
  """The paper's delta: time since each variable was last observed before.

  delta_1 = 0; delta_t = s_t - s_{t-1}, plus delta_{t-1} if the variable was not
  observed at t - 1. Before its first observation, a variable's time counts from
  the first time step.

  Args:
    times: [batch, time], the time s_t of each time step, in the unit of the
      result. Differences of large float32 numbers lose digits, so the times of
      a row should begin near zero.
    observed: [batch, time, D], True where a variable is observed; False at
      time steps that are not real.

  Returns:
    [batch, time, D] in the dtype of `times`.

  Raises:
    ValueError: if an argument has another shape or dtype.
  """
  times, observed = jnp.asarray(times), jnp.asarray(observed)
  if times.ndim != 2 or not jnp.issubdtype(times.dtype, jnp.floating):
    raise ValueError(
      "times must be [batch, time] and floating-point,"
      f" got {times.shape} {times.dtype}"
    )
  if observed.shape[:-1] != times.shape or observed.dtype != jnp.bool_:
    raise ValueError(
      f"observed must be {(*times.shape, 'D')} and Boolean,"
      f" got {observed.shape} {observed.dtype}"
    )
  time_steps = jnp.arange(times.shape[1], dtype=jnp.int32)[:, None]
  time_steps = jnp.broadcast_to(time_steps, observed.shape)
  seen = jnp.where(observed, time_steps, jnp.zeros_like(time_steps))
  before = jnp.pad(seen, ((0, 0), (1, 0), (0, 0)))[:, :-1]
  before = jax.lax.cummax(before, axis=1)
  times = jnp.broadcast_to(times[..., None], observed.shape)
  return times - jnp.take_along_axis(times, before, axis=1)
