"""Recurrent cells. docs/add_a_cell.md shows how to add one to `CELLS`."""

import difflib
from collections.abc import Callable

from recurrent.cells.base import Cell, GatedCell, LinearCell
from recurrent.cells.conv_lstm import ConvLSTM, ConvLSTMParams
from recurrent.cells.gru import (
  GRU,
  GRUCarry,
  GRUParams,
  GRUResetBefore,
  LayerNormGRU,
)
from recurrent.cells.gru_d import (
  GRUD,
  GRUDCarry,
  GRUDParams,
  Observations,
  elapsed_since_observed,
)
from recurrent.cells.lru import LRU
from recurrent.cells.lstm import LSTM, LSTMCarry, LSTMParams
from recurrent.cells.lstm_variants import LSTMVariant
from recurrent.cells.mgu import MGU, GRUComplement
from recurrent.cells.minimal import MinGRU, MinLSTM
from recurrent.cells.mlstm import MLSTM
from recurrent.cells.mogrifier import Mogrifier
from recurrent.cells.noise import (
  RecurrentDropout,
  UpdateDropout,
  WeightDrop,
  WeightNorm,
  Zoneout,
  noisy,
  weight_drop,
)
from recurrent.cells.qrnn import QRNN, SRU
from recurrent.cells.rg_lru import RGLRU
from recurrent.cells.rhn import RHN
from recurrent.cells.rnn import RNN, RNNCarry, RNNParams
from recurrent.cells.s5 import S5
from recurrent.cells.slstm import SLSTM
from recurrent.cells.structures import (
  Dense,
  Diagonal,
  Heads,
  LowRank,
  Structure,
  parameter_budget,
)
from recurrent.checks import check_features

CELLS: dict[str, Callable[[int], Cell]] = {
  # Gated cells, with the methods "scan", "fused", "newton".
  "rnn": RNN,
  "rnn_relu": lambda h: RNN(h, activation="relu"),
  "rnn_sigmoid": lambda h: RNN(h, activation="sigmoid"),
  "indrnn": lambda h: RNN(h, activation="relu", structure=Diagonal()),
  "lstm": LSTM,
  "lstm_peephole": lambda h: LSTMVariant(h, peepholes=True),
  "lstm_coupled": lambda h: LSTMVariant(h, coupled=True),
  "lstm_projected": lambda h: LSTMVariant(h, memory=2 * check_features(h)),
  "lstm_layer_norm": lambda h: LSTMVariant(h, layer_norm=True),
  "slstm": SLSTM,
  "gru": GRU,
  "gru_layer_norm": LayerNormGRU,
  "conv_lstm": lambda h: ConvLSTM(h, spatial=(3, 4)),  # tiny images
  # Cells that are neither gated nor linear, with the method "scan" only.
  "gru_reset_before": GRUResetBefore,
  "gru_complement": GRUComplement,
  "mgu": MGU,
  "mogrifier": Mogrifier,
  "rhn": RHN,
  "gru_d": GRUD,  # takes `Observations`
  # Linear cells, with the methods "scan", "associative", "linear_scan".
  "lru": LRU,
  "s5": S5,
  "rg_lru": RGLRU,
  "min_gru": MinGRU,
  "min_lstm": MinLSTM,
  "qrnn": QRNN,
  "sru": SRU,
  "mlstm": lambda h: MLSTM(h, heads=1 if check_features(h) % 8 else 8),
}


def get(name: str) -> Callable[[int], Cell]:
  """Returns the function that builds the cell called `name`.

  Args:
    name: a key of `CELLS`.

  Returns:
    A function that takes the width H and returns a cell with default options.

  Raises:
    ValueError: if there is no such name; the message suggests the nearest one.
  """
  if name not in CELLS:
    near = difflib.get_close_matches(name, CELLS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"no cell {name!r}{hint} Known: {', '.join(CELLS)}")
  return CELLS[name]


def vector_cells() -> tuple[str, ...]:
  """Returns the names in `CELLS` of cells whose inputs are [batch, time, D]."""
  return tuple(n for n, build in CELLS.items() if build(8).takes_vectors)


__all__ = [
  "CELLS",
  "Cell",
  "ConvLSTM",
  "ConvLSTMParams",
  "Dense",
  "Diagonal",
  "GRU",
  "GRUCarry",
  "GRUComplement",
  "GRUD",
  "GRUDCarry",
  "GRUDParams",
  "GRUParams",
  "GRUResetBefore",
  "GatedCell",
  "Heads",
  "LRU",
  "LSTM",
  "LSTMCarry",
  "LSTMParams",
  "LSTMVariant",
  "LayerNormGRU",
  "LinearCell",
  "LowRank",
  "MGU",
  "MLSTM",
  "MinGRU",
  "MinLSTM",
  "Mogrifier",
  "Observations",
  "QRNN",
  "RGLRU",
  "RHN",
  "RNN",
  "RNNCarry",
  "RNNParams",
  "RecurrentDropout",
  "S5",
  "SLSTM",
  "SRU",
  "Structure",
  "UpdateDropout",
  "WeightDrop",
  "WeightNorm",
  "Zoneout",
  "elapsed_since_observed",
  "get",
  "noisy",
  "parameter_budget",
  "weight_drop",
  "vector_cells",
]
