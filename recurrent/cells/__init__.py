"""The cells. To add one: a file here, a row in `CELLS` (docs/add_a_cell.md)."""

import difflib
from collections.abc import Callable

from recurrent.cells.base import Cell, GatedCell
from recurrent.cells.gru import GRU, GRUCarry, GRUParams, GRUResetBefore
from recurrent.cells.lstm import LSTM, LSTMCarry, LSTMParams
from recurrent.cells.rnn import RNN, RNNCarry, RNNParams

CELLS: dict[str, Callable[[int], Cell]] = {
  "rnn": RNN,
  "rnn_relu": lambda features: RNN(features, activation="relu"),
  "rnn_sigmoid": lambda features: RNN(features, activation="sigmoid"),
  "lstm": LSTM,
  "gru": GRU,
  "gru_reset_before": GRUResetBefore,
}


def get(name: str) -> Callable[[int], Cell]:
  """The entry of `CELLS` called `name`.

  Args:
    name: a key of `CELLS`.

  Returns:
    What builds the cell from its width, with its defaults.

  Raises:
    ValueError: if there is none, with the nearest names.
  """
  if name not in CELLS:
    near = difflib.get_close_matches(name, CELLS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"no cell {name!r}{hint} Known: {', '.join(CELLS)}")
  return CELLS[name]


__all__ = [
  "CELLS",
  "GRU",
  "LSTM",
  "RNN",
  "Cell",
  "GRUCarry",
  "GRUParams",
  "GRUResetBefore",
  "GatedCell",
  "LSTMCarry",
  "LSTMParams",
  "RNNCarry",
  "RNNParams",
  "get",
]
