"""A recurrent forecaster: a window of a series in, its future out."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from recurrent import cells, losses, nn, numerics
from recurrent.types import Array, Bool, Float, Int, Mask, PRNGKey

HEADS = ("point", "quantiles", "gaussian", "student_t")
POINT_LOSSES = ("mae", "mse", "huber")
DECODINGS = ("direct", "parallel", "recursive", "encoder_decoder")
NORMALIZATIONS = ("none", "last", "instance")


@dataclasses.dataclass(frozen=True)
class Head:
  """What is forecast for a time step: a number, or a distribution.

  - "point": one number, trained with `loss`: mae, mse or huber.
  - "quantiles": one number for each of `levels`, in ascending order, trained
    with the pinball loss.
  - "gaussian": mean and standard deviation, trained with the likelihood.
  - "student_t": location, scale and degrees of freedom (above 2), trained with
    the likelihood.

  Args:
    kind: one of `HEADS`.
    levels: levels of the quantiles, ascending; 0.5 must be among them.
    loss: loss of a point.
  """

  kind: str = "quantiles"
  levels: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
  loss: str = "mae"

  @property
  def size(self) -> int:
    """Number of parameters P of a time step's forecast."""
    sizes = {"point": 1, "quantiles": len(self.levels), "gaussian": 2}
    return sizes.get(self.kind, 3)

  def constrain(self, raw: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
    """Parameters of the forecast from any real numbers."""
    if self.kind == "quantiles":
      # Sorted quantiles do not cross, and have no larger pinball loss
      # (Chernozhukov, Fernandez-Val & Galichon, 2010).
      return jnp.sort(raw, axis=-1)
    if self.kind == "point":
      return raw
    location, scale, *rest = jnp.split(raw, self.size, axis=-1)
    scale = jax.nn.softplus(scale) + 1e-4
    rest = [jax.nn.softplus(freedom) + 2.0 for freedom in rest]
    return jnp.concatenate([location, scale, *rest], axis=-1)

  def move(self, params: Array, shift: Array, scale: Array) -> Array:
    """The parameters for `scale * y + shift` from those for y."""
    if self.kind in ("point", "quantiles"):
      return params * scale + shift
    location, spread, *rest = jnp.split(params, self.size, axis=-1)
    moved = [location * scale + shift, spread * scale, *rest]
    return jnp.concatenate(moved, axis=-1)

  def point(self, params: Any) -> Any:
    """The median of the forecast, without the axis of the parameters."""
    middle = self.kind == "quantiles" and self.levels.index(0.5)
    return params[..., int(middle)]

  def losses(self, params: Array, targets: Array) -> Array:
    """The loss of each time step, without the axis of the parameters."""
    if self.kind == "quantiles":
      return losses.pinball(params, targets, self.levels).mean(axis=-1) * 2
    if self.kind == "gaussian":
      return losses.gaussian_nll(params[..., 0], params[..., 1], targets)
    if self.kind == "student_t":
      location, scale, freedom = (params[..., i] for i in range(3))
      return losses.student_t_nll(freedom, location, scale, targets)
    error = jnp.abs(params[..., 0] - targets)
    if self.loss == "mae":
      return error
    if self.loss == "mse":
      return jnp.square(error)
    return jnp.where(error < 1, jnp.square(error) / 2, error - 0.5)

  def quantiles(self, params: np.ndarray) -> np.ndarray | None:
    """The quantiles [*batch, Q] of `levels`, in NumPy; None for a point."""
    from scipy import stats

    params, levels = np.asarray(params, np.float64), np.array(self.levels)
    if self.kind == "point":
      return None
    if self.kind == "quantiles":
      return params
    location, scale = params[..., :1], params[..., 1:2]
    if self.kind == "gaussian":
      return location + scale * stats.norm.ppf(levels)
    return location + scale * stats.t.ppf(levels, params[..., 2:])


class Window(NamedTuple):
  """Inputs of a `Forecaster`: the window of a series before its forecast.

  L is the number of time steps of the window, H the horizon, D the number of
  variables, of which the first is the one to forecast, K that of the covariates
  whose future is known.

  Attributes:
    values: [batch, L, D], finite.
    observed: [batch, L, D], True where a value is observed.
    mask: [batch, L], True where a time step is read.
    known: [batch, L + H, K].
    times: [batch, L], the time of each time step, in time steps.
    series: [batch], the number of the series, 0 for an unknown one.
  """

  values: Float[Array, "B L D"]
  observed: Bool[Array, "B L D"]
  mask: Mask
  known: Float[Array, "B LH K"]
  times: Float[Array, "B L"]
  series: Int[Array, "B"]


class Forecast(NamedTuple):
  """Result of a `Forecaster`.

  Attributes:
    params: [batch, H, P] parameters of the head, in float32.
    imputation: [batch, L, D] squared error of the predicted inputs; None
      without an imputer.
  """

  params: Float[Array, "B H P"]
  imputation: Float[Array, "B L D"] | None


class Forecaster(nnx.Module):
  """A stack that reads a window in segments, and forecasts in segments.

  The window is cut into segments of S time steps, of which each is mapped to
  one input of the stack. The horizon is cut likewise, and there are four ways
  to forecast its segments:

  - "direct": an affine map of the last output gives all of them at once.
  - "parallel": for each segment on its own, the stack takes one more step from
    its last carry, on an embedding of the segment's position (SegRNN).
  - "recursive": the stack goes on step by step; the forecast (its median) of a
    segment is the input of the next step, in training as well.
  - "encoder_decoder": the same with a second stack, which begins with the carry
    of the first.

  A window is normalised before it is read, and its forecast is mapped back:
  "last" subtracts the last observed value; "instance" subtracts the mean of the
  window and divides by its standard deviation, followed by a learnt affine map
  (RevIN).

  Example:
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from recurrent import cells, nn
    >>> from recurrent.models import forecaster
    >>> rngs = nnx.Rngs(0)
    >>> stack = nn.Stack([nn.Recurrent(cells.GRU(16), 16, rngs=rngs)])
    >>> model = forecaster.Forecaster(
    ...   stack, horizon=6, segment=3, decoding="parallel", rngs=rngs)
    >>> ones = jnp.ones((2, 12, 1))
    >>> window = forecaster.Window(
    ...   ones, ones > 0, ones[..., 0] > 0, jnp.ones((2, 18, 0)),
    ...   ones[..., 0], jnp.zeros(2, int))
    >>> model(window).params.shape
    (2, 6, 9)

  Args:
    stack: the causal layers.
    horizon: number of time steps H to forecast.
    head: what is forecast for each of them.
    decoding: one of `DECODINGS`.
    segment: time steps S of a segment; it divides the window.
    normalization: one of `NORMALIZATIONS`.
    variables: number D of variables.
    known: number K of covariates whose future is known.
    series: number of series; 0: there is no embedding of the series.
    shows_gaps: whether the stack reads which values are observed.
    decoder: the second stack of "encoder_decoder", with layers like the first.
    imputer: predicts missing inputs; None: they are read as they are.
    gap_layer: a layer of `cells.GRUD` with `variables` inputs, below the stack;
      None: there is none. S must be 1 with it.
    dropout: dropout rate of what the output layer reads.
    dtype: dtype to compute in; parameters are float32.
    rngs: source of the keys that draw the parameters.

  Raises:
    ValueError: if an argument is unknown, or does not fit the others.

  Reference:
    Lin et al., "SegRNN: segment recurrent neural network for long-term time
    series forecasting", 2023; Kim et al., "Reversible instance normalization
    for accurate time-series forecasting against distribution shift", 2022;
    Sutskever, Vinyals & Le, "Sequence to sequence learning with neural
    networks", 2014.
  """

  def __init__(
    self,
    stack: nn.Stack,
    *,
    horizon: int,
    head: Head = Head(),
    decoding: str = "direct",
    segment: int = 1,
    normalization: str = "none",
    variables: int = 1,
    known: int = 0,
    series: int = 0,
    shows_gaps: bool = False,
    decoder: nn.Stack | None = None,
    imputer: nn.Imputer | None = None,
    gap_layer: nn.Recurrent | None = None,
    dropout: float = 0.0,
    dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    for name, value, choices in (
      ("head.kind", head.kind, HEADS),
      ("decoding", decoding, DECODINGS),
      ("normalization", normalization, NORMALIZATIONS),
    ):
      if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")
    if gap_layer is not None and segment != 1:
      raise ValueError(f"segment must be 1 with a gap_layer, got {segment}")
    if (decoder is not None) != (decoding == "encoder_decoder"):
      raise ValueError('decoder must be given for "encoder_decoder", and only')
    self.stack, self.decoder = stack, decoder
    self.imputer, self.gap_layer = imputer, gap_layer
    self.horizon, self.segment, self.head = horizon, segment, head
    self.decoding, self.normalization = decoding, normalization
    self.shows_gaps, self.dropout, self.dtype = shows_gaps, dropout, dtype
    self.variables = variables
    width = stack.in_features
    steps = -(-horizon // segment)
    affine = lambda d, h: nn.Affine(d, h, rngs=rngs)
    value_width = segment * variables * (1 + shows_gaps)
    read = value_width if gap_layer is None else gap_layer.features
    self.embedding = affine(read + segment * known, width)
    if gap_layer is not None and decoding in ("recursive", "encoder_decoder"):
      self.feedback = affine(value_width + known, width)
    if series:
      table = 0.1 * jax.random.normal(rngs.params(), (series + 1, width))
      self.series = nnx.Param(table)
    if decoding == "parallel":
      positions = jax.random.normal(rngs.params(), (steps, width))
      self.positions = nnx.Param(positions)
    each = segment * head.size
    self.output = affine(
      stack.features, each * (steps if decoding == "direct" else 1)
    )
    if known:
      self.known = affine(segment * known, each)
      if decoding == "parallel":
        self.query = affine(segment * known, width)
    if normalization == "instance":
      self.gain = nnx.Param(jnp.ones((variables,)))
      self.offset = nnx.Param(jnp.zeros((variables,)))

  def __call__(self, window: Window, *, key: PRNGKey | None = None) -> Forecast:
    """Forecasts the horizon.

    Args:
      window: the inputs.
      key: draws the dropout masks and the noise of the cells; None for
        evaluation.
    """
    keys = [None] * 4 if key is None else jax.random.split(key, 4)
    values, shift, scale = self._normalise(window)
    observed, mask = window.observed, window.mask
    imputation = None
    if self.imputer is not None:
      values, imputation = self.imputer(
        values, observed, mask=mask, key=keys[0]
      )
    batch, length = mask.shape
    known = window.known.astype(self.dtype)
    seen = self._segments(known[:, :length])
    ahead = known[:, length:]
    spare = -self.horizon % self.segment
    ahead = self._segments(jnp.pad(ahead, ((0, 0), (0, spare), (0, 0))))
    values = values.astype(self.dtype)
    if self.gap_layer is None:
      read = self._segments(self._shown(values, observed))
      segment_mask = self._segments(mask[..., None]).any(axis=-1)
    else:
      elapsed = cells.elapsed_since_observed(window.times, observed)
      gaps: Any = cells.Observations(
        values, observed, elapsed.astype(self.dtype)
      )
      _, read = self.gap_layer(None, gaps, mask=mask, key=keys[1])
      segment_mask = mask
    inputs = self._embed(self.embedding, read, seen)
    static = jnp.zeros((batch, 1, self.stack.in_features), self.dtype)
    if hasattr(self, "series"):
      static = self.series[...][window.series][:, None].astype(self.dtype)
      inputs = inputs + jnp.broadcast_to(static, inputs.shape)
    carry, outputs = self.stack(None, inputs, mask=segment_mask, key=keys[2])
    last = nn.pool_last(outputs, segment_mask)
    raw = self._decode(carry, last, ahead, static, keys[2:])
    raw = raw.reshape(batch, -1, self.head.size)[:, : self.horizon]
    params = self.head.constrain(numerics.widen(raw))
    params = self.head.move(params, *self._back(shift, scale, params.shape))
    return Forecast(params, imputation)

  def _decode(self, carry, last, ahead, static, keys) -> Array:
    """The raw forecast [batch, steps, segment * P]."""
    batch, steps = ahead.shape[:2]
    drop = lambda x: nn.dropout(keys[1], x, self.dropout)
    extra = jnp.zeros((batch, steps, 1), last.dtype)
    if hasattr(self, "known"):
      extra = self.known.project(ahead)
    if self.decoding == "direct":
      return self.output.project(drop(last)).reshape(batch, steps, -1) + extra
    if self.decoding == "parallel":
      places = self.positions[...].astype(self.dtype)[None]
      queries = jnp.broadcast_to(places, (batch, *places.shape[1:])) + static
      if hasattr(self, "known"):
        queries = queries + self.query.project(ahead)
      each = lambda x: jnp.repeat(x, steps, axis=0)
      queries = queries.reshape(batch * steps, 1, -1)
      _, outputs = self.stack(jax.tree.map(each, carry), queries, key=keys[0])
      outputs = drop(outputs).reshape(batch, steps, -1)
      return self.output.project(outputs) + extra
    stack = self.stack if self.decoder is None else self.decoder
    embedding = getattr(self, "feedback", self.embedding)
    first = self.output.project(drop(last))
    first = first + extra[:, 0]
    if steps == 1:
      return first[:, None]

    def step(state, covariates):
      carry, raw = state
      known, extra = covariates
      inputs = self._embed(embedding, self._fed(raw), known[:, None])
      carry, outputs = stack(carry, inputs + static, key=keys[0])
      raw = self.output.project(drop(outputs[:, 0])) + extra
      return (carry, raw), raw

    by_step = lambda x: jnp.moveaxis(x, 1, 0)
    _, rest = jax.lax.scan(
      step, (carry, first), (by_step(ahead[:, :-1]), by_step(extra[:, 1:]))
    )
    return jnp.concatenate([first[:, None], jnp.moveaxis(rest, 0, 1)], axis=1)

  def _fed(self, raw):
    """The input of a step, [batch, 1, D'], from the forecast before it."""
    each = numerics.widen(raw).reshape(len(raw), self.segment, -1)
    point = self.head.point(self.head.constrain(each))[..., None]
    # Only the first variable is forecast; the others are not observed.
    others = ((0, 0), (0, 0), (0, self.variables - 1))
    shown = self._shown(
      jnp.pad(point.astype(self.dtype), others),
      jnp.pad(jnp.ones(point.shape, bool), others),
    )
    return self._segments(shown)

  def _shown(self, values, observed):
    if not self.shows_gaps:
      return values
    return jnp.concatenate([values, observed.astype(values.dtype)], axis=-1)

  def _segments(self, array):
    """[batch, steps * S, D] to [batch, steps, S * D]."""
    batch, length, width = array.shape
    return array.reshape(batch, length // self.segment, self.segment * width)

  def _embed(self, embedding, read, known):
    inputs = embedding.project(jnp.concatenate([read, known], axis=-1))
    # A segment is read by a nonlinear map, as in SegRNN.
    return jax.nn.relu(inputs) if self.segment > 1 else inputs

  def _normalise(self, window):
    """The normalised values, and what maps them back, [batch, 1, D]."""
    values = numerics.widen(window.values)
    zero = jnp.zeros_like(values[:, :1])
    shift, scale = zero, jnp.ones_like(zero)
    seen = window.observed & window.mask[..., None]
    if self.normalization == "last":
      place = jnp.argmax(seen[:, ::-1], axis=1)[:, None]
      place = values.shape[1] - 1 - place
      shift = jnp.take_along_axis(values, place, axis=1)
      shift = jnp.where(seen.any(axis=1, keepdims=True), shift, 0.0)
    elif self.normalization == "instance":
      count = jnp.maximum(seen.sum(axis=1, keepdims=True), 1)
      mean = lambda x: (
        jnp.where(seen, x, 0.0).sum(axis=1, keepdims=True)
        / count.astype(x.dtype)
      )
      spread = lambda x: jnp.broadcast_to(x, values.shape)
      shift = mean(values)
      variance = mean(jnp.square(values - spread(shift)))
      scale = jnp.sqrt(variance + 1e-5)
    values = (values - shift) / scale
    if self.normalization == "instance":
      values = values * self._row(self.gain) + self._row(self.offset)
    return values, shift, scale

  @staticmethod
  def _row(param):
    return param[...][None, None]

  def _back(self, shift, scale, shape):
    """Shift and scale that map a forecast of the first variable back."""
    shift, scale = shift[..., :1], scale[..., :1]
    if self.normalization == "instance":
      gain = self._row(self.gain)[..., :1]
      gain = jnp.where(jnp.abs(gain) < 1e-3, 1e-3, gain)
      shift = shift - scale * self._row(self.offset)[..., :1] / gain
      scale = scale / gain
    width = (*shape[:-1], 1)
    return jnp.broadcast_to(shift, width), jnp.broadcast_to(scale, width)
