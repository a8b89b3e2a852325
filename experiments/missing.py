"""The flag of missing values, for every experiment that reads real numbers."""

import dataclasses
import typing
from collections.abc import Sequence

from experiments import config as config_lib
from recurrent.data.missing import STRATEGIES


@dataclasses.dataclass(frozen=True)
class MissingConfig(config_lib.Checked):
  """Flags of missing values.

  Args:
    missing: what replaces missing inputs. drop leaves out the time steps that
      have one; mean, median, max and mode are those of the variable in the
      train split; forward repeats the last observed value; linear interpolates
      between the observed values before and after; model lets the network
      predict its own missing inputs; decay gives a GRU-D, as the first layer,
      the mask and the time since the last observation.
  """

  missing: str = "mean"

  CHOICES: typing.ClassVar[dict[str, Sequence[str]]] = {"missing": STRATEGIES}
