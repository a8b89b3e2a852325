"""The network that the flags of an experiment describe: its cells and layers.

An experiment's `Config` extends `NetworkConfig`, and its model takes the stack
of layers that `make_stack` returns. Every cell and every flag of a cell then
works in every experiment.
"""

import contextlib
import dataclasses
import functools
import math
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from flax import nnx

from experiments import runner
from recurrent import cells, nn
from recurrent.cells import structures
from recurrent.errors import ConfigError
from recurrent.executors import Setting
from recurrent.unroll import METHODS, check_method, check_remat, resolve_method

TRANSFORMER = "transformer"
ATTENTIONS = (
  "none",
  "dot",
  "general",
  "additive",
  "multi_head",
  "local_m",
  "local_p",
)


@dataclasses.dataclass(frozen=True)
class NetworkConfig(runner.TrainConfig):
  """Flags of the layers of a network, in addition to those of its training.

  Args:
    cell: name of the recurrent cell, such as lstm or gru; or transformer, for
      layers of attention.
    layers: number of layers.
    features: width of every layer; in bidirectional networks, of each
      direction.
    structure: structure of the recurrent weights: dense, heads:N, diagonal or
      low_rank:R; empty: that of the cell.
    heads: number of attention heads of a transformer.
    context: number of time steps that a time step of a causal transformer
      attends to.
    residual: add the inputs of a layer to its outputs.
    mlp_features: adds a residual MLP that is this wide inside after each
      recurrent layer, so that a stack of linear cells is not linear; 0: none.
    t_max: initialises the cell for memories of up to this many time steps: the
      biases of the gates (chrono; lstm, gru and variants), or the decays (lru,
      rg_lru); 0: the cell's default.
    dropout: dropout rate between layers, with a new mask at each time step; in
      a transformer, on the outputs of attention and MLP.
    recurrent_dropout: dropout rate of the hidden state in the recurrent
      product, with one mask for a whole window.
    weight_drop: dropout rate of the recurrent weights (DropConnect), with one
      mask for a whole window.
    update_dropout: dropout rate of the candidate of an LSTM or GRU.
    zoneout: probability that a hidden unit keeps its previous value at a time
      step.
    memory_zoneout: probability that a cell unit of an LSTM keeps its previous
      value at a time step.
    dtype: dtype in which the network computes, float32 or bfloat16.
    method: method that computes the recurrence, such as auto or scan; see
      recurrent.unroll.
    remat: saves memory by recomputation in the backward pass. A number N keeps
      the carry of every N-th time step only; gates keeps all carries and
      recomputes the gates; 0 keeps everything. See recurrent.unroll.
  """

  cell: str = "lstm"
  layers: int = 1
  features: int = 256
  structure: str = ""
  heads: int = 8
  context: int = 256
  residual: bool = False
  mlp_features: int = 0
  t_max: int = 0
  dropout: float = 0.0
  recurrent_dropout: float = 0.0
  weight_drop: float = 0.0
  update_dropout: float = 0.0
  zoneout: float = 0.0
  memory_zoneout: float = 0.0
  dtype: str = "float32"
  method: str = "auto"
  remat: int | typing.Literal["gates"] = 0

  POSITIVE: typing.ClassVar[frozenset[str]] = frozenset(
    "layers features heads context".split()
  )
  BELOW_ONE: typing.ClassVar[frozenset[str]] = frozenset(
    "dropout recurrent_dropout weight_drop update_dropout zoneout"
    " memory_zoneout".split()
  )
  CHOICES: typing.ClassVar[dict[str, Sequence[str]]] = {
    "cell": (*cells.vector_cells(), TRANSFORMER),
    "dtype": ("float32", "bfloat16"),
    "method": METHODS,
  }
  SMOKE: typing.ClassVar[dict[str, Any]] = {"features": 16}
  NEEDS: typing.ClassVar[dict[str, tuple[str, Sequence[Any]]]] = {
    "heads": ("cell", (TRANSFORMER,)),
    "context": ("cell", (TRANSFORMER,)),
    **dict.fromkeys(
      "structure residual mlp_features t_max recurrent_dropout weight_drop"
      " update_dropout zoneout memory_zoneout method remat".split(),
      ("cell", cells.vector_cells()),
    ),
  }

  def check(self):
    """Raises ConfigError if a value is wrong."""
    super().check()
    if self.cell == TRANSFORMER:
      if self.features % (2 * self.heads):
        raise ConfigError(
          f"--features={self.features} is no even multiple of"
          f" --heads={self.heads}",
          "change one of the two",
        )
      return
    with _as_bad_flag(
      f"cell={self.cell}", "choose another cell, or leave that out"
    ):
      cell = make_cell(self)
    with _as_bad_flag(f"method={self.method}"):
      check_method(cell, self.method)
    with _as_bad_flag(f"remat={self.remat}"):
      check_remat(cell, self.method, self.remat or None)

  def check_device(self) -> None:
    """Raises ConfigError if `method` cannot run on the devices at hand.

    It is apart from `check`, since it starts JAX's back end, which must not
    happen before `jax.distributed` is initialised.
    """
    if self.cell != TRANSFORMER:
      with _as_bad_flag(f"method={self.method}"):
        resolve_method(make_cell(self), self.method, Setting.here(self.dtype))


def make_cell(config: NetworkConfig) -> cells.Cell:
  """Makes the cell that the flags describe, with its dropout and zoneout.

  Raises:
    ValueError: if the cell does not support one of them.
  """
  cell: Any = cells.get(config.cell)(config.features)
  if config.structure:
    if not hasattr(cell, "structure"):
      raise ValueError("its recurrent weights have no choice of a --structure")
    structure = structures.parse(config.structure)
    cell = dataclasses.replace(cell, structure=structure)
  if config.t_max:
    cell = dataclasses.replace(cell, **_long_memory(cell, config.t_max))
  return cells.noisy(
    cell,
    update_dropout=config.update_dropout,
    weight_drop=config.weight_drop,
    recurrent_dropout=config.recurrent_dropout,
    zoneout=config.zoneout,
    memory_zoneout=config.memory_zoneout,
  )


def _long_memory(cell, t_max: int) -> dict[str, Any]:
  """The fields of a cell by which it remembers about `t_max` time steps."""
  if t_max < 3:
    raise ValueError(f"--t_max must be at least 3 time steps, got {t_max}")
  if hasattr(cell, "t_max"):
    return {"t_max": t_max}
  if hasattr(cell, "ring"):
    # After t_max time steps, between 1/e and 0.9 of a state is left.
    return {"ring": (math.exp(-1 / t_max), math.exp(-0.1 / t_max))}
  raise ValueError("it has no initialisation by --t_max")


def make_stack(
  config: NetworkConfig,
  in_features: int,
  *,
  causal: bool = True,
  observed: bool = False,
  rngs: nnx.Rngs,
) -> nn.Stack:
  """Makes the layers that the flags describe.

  Args:
    config: the flags.
    in_features: width of the inputs.
    causal: whether outputs depend on earlier inputs only. If not, the layers
      are bidirectional, and twice `features` wide where they are recurrent.
    observed: whether the inputs are `cells.Observations`. The first layer is
      then a GRU-D, which is causal.
    rngs: source of the keys that draw the parameters.

  Returns:
    The layers: `Recurrent`, `Bidirectional`, `TransformerBlock` or
    `TransformerEncoderBlock`. Transformers begin with an affine map to
    `features` if the inputs have another width, and end with a normalisation,
    since their blocks normalise only their inputs.
  """
  layers: list[nn.Layer] = []
  if observed:
    layers.append(
      nn.Recurrent(cells.GRUD(config.features), in_features, rngs=rngs)
    )
  if config.cell == TRANSFORMER:
    block = (
      functools.partial(nn.TransformerBlock, context=config.context)
      if causal
      else nn.TransformerEncoderBlock
    )
    width = config.features if observed else in_features
    count = config.layers - len(layers)
    layers += _transformer(config, width, block, count, rngs)
    return nn.Stack(layers)
  kind = nn.Recurrent if causal else nn.Bidirectional
  for _ in range(config.layers - len(layers)):
    layer = kind(
      make_cell(config),
      layers[-1].features if layers else in_features,
      method=config.method,
      remat=config.remat or None,
      rngs=rngs,
    )
    layers.append(layer)
    if config.mlp_features:
      mlp = nn.FeedForward(layer.features, config.mlp_features, rngs=rngs)
      # With --residual, the stack adds the inputs of every layer.
      layers.append(mlp if config.residual else nn.Residual(mlp))
  return nn.Stack(layers, dropout=config.dropout, residual=config.residual)


def make_decoder(
  config: NetworkConfig,
  in_features: int,
  encoded_features: int,
  *,
  rngs: nnx.Rngs,
) -> nn.Stack:
  """Makes the causal layers of a decoder, for `models.EncoderDecoder`.

  Args:
    config: the flags.
    in_features: width of the inputs.
    encoded_features: width of the encoded sequence, to which the layers of a
      Transformer attend.
    rngs: source of the keys that draw the parameters.
  """
  if config.cell != TRANSFORMER:
    return make_stack(config, in_features, rngs=rngs)
  block = functools.partial(
    nn.TransformerDecoderBlock,
    context=config.context,
    encoded_features=encoded_features,
  )
  return nn.Stack(_transformer(config, in_features, block, config.layers, rngs))


def make_imputer(
  config: NetworkConfig, variables: int, *, rngs: nnx.Rngs
) -> nn.Imputer:
  """Makes the imputer of inputs of some width, with one of the layers."""
  one = dataclasses.replace(config, layers=1)
  layer = make_stack(one, 2 * variables, rngs=rngs)
  return nn.Imputer(layer, variables, rngs=rngs)


def make_attention(
  kind: str,
  query_features: int,
  encoded_features: int,
  *,
  features: int,
  heads: int,
  window: int,
  coverage: bool,
  rngs: nnx.Rngs,
) -> nn.Attention | None:
  """Makes attention of a kind in `ATTENTIONS`; None for "none".

  Args:
    kind: the kind.
    query_features: width of the queries.
    encoded_features: width of the encoded sequence.
    features: width inside additive attention.
    heads: number of heads of multi_head.
    window: largest distance of local_m and local_p from their centre.
    coverage: whether additive attention knows what it has attended to.
    rngs: source of the keys that draw the parameters.
  """
  widths = query_features, encoded_features
  if kind == "none":
    return None
  if kind == "additive":
    return nn.AdditiveAttention(*widths, features, coverage=coverage, rngs=rngs)
  if kind == "multi_head":
    return nn.MultiHeadAttention(
      *widths, query_features, heads=heads, rngs=rngs
    )
  if kind.startswith("local"):
    return nn.LocalAttention(
      *widths, window=window, predicted=kind == "local_p", rngs=rngs
    )
  return nn.MultiplicativeAttention(*widths, score=kind, rngs=rngs)


def _transformer(config, in_features, block, count, rngs) -> list[nn.Layer]:
  width = config.features
  layers: list[nn.Layer] = []
  if in_features != width:
    layers.append(nn.Affine(in_features, width, rngs=rngs))
  for _ in range(count):
    layers.append(
      block(width, heads=config.heads, dropout=config.dropout, rngs=rngs)
    )
  return [*layers, nn.Norm(width)]


@contextlib.contextmanager
def _as_bad_flag(flag: str, remedy: str = "") -> Iterator[None]:
  """Turns a ValueError into a ConfigError about a flag, as `name=value`."""
  try:
    yield
  except ValueError as error:
    raise ConfigError(
      f"--{flag}: {error}",
      remedy or f"or leave --{flag.partition('=')[0]} out",
    ) from error
