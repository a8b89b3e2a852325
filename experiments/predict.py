r"""Applies a trained model to new data, and writes one JSON object a line.

  python -m experiments.predict --workdir=runs/pydoc --input=new.txt \
    --output=scores.jsonl

The input has the format of the training data, without labels. What a line of
the output contains depends on the experiment: for the language model, each line
of the text and its negative log-probability in nats.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

from experiments import config as config_lib
from experiments import runner
from recurrent.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Config(config_lib.Checked):
  """Flags of the prediction.

  Args:
    input: path of the file to read.
    output: path of the file to write. It is replaced once all is written.
  """

  input: str = ""
  output: str = ""

  def check(self):
    """Raises ConfigError if a value is wrong."""
    super().check()
    for name in ("input", "output"):
      if not getattr(self, name):
        raise ConfigError(f"--{name} is missing", f"add --{name}=FILE")


def run(config: Config) -> dict[str, Any]:
  """Writes the predictions; returns their number.

  Raises:
    UserError: if a value is wrong, the workdir has no model, or the input
      cannot be read.
  """
  config.check()
  experiment = runner.find_experiment(
    config.workdir, "predict", "has no predictions"
  )
  output = pathlib.Path(config.output).expanduser()
  partial = output.with_name(output.name + ".incomplete")
  count = 0
  try:
    with partial.open("w", encoding="utf-8") as file:
      for row in experiment.predict(config.workdir, config.input):
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        count += 1
    os.replace(partial, output)
  except OSError as error:
    raise ConfigError(
      f"cannot write --output={config.output}: {error.strerror}",
      "choose a file that you may write to",
    ) from error
  finally:
    partial.unlink(missing_ok=True)
  return {"rows": count, "output": str(output)}


if __name__ == "__main__":
  runner.main(run, Config)
