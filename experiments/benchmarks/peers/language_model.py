"""A train step of the language model; the option is the method of `unroll`.

It is the whole step of `experiments.language_model`: embedding, layers, logits,
loss, gradients, clipping, Adam, and the moving average of the parameters. The
text is random and lies in a file, so that no dataset is needed.
"""

import tempfile
from pathlib import Path

import jax
import numpy as np

from experiments import language_model
from experiments.benchmarks import networks, training
from experiments.benchmarks.problems import STEP, VOCABULARY

LETTERS = np.array([chr(0x100 + i) for i in range(VOCABULARY)])


def make(problem, drawn, dtype, option):
  """Makes the step of a model with the cell and the sizes of the problem."""
  with tempfile.TemporaryDirectory() as folder:
    text = Path(folder) / "text"
    text.write_text("".join(LETTERS[drawn.inputs.ravel()]), encoding="utf-8")
    made = training.make_step(
      language_model.Config(
        workdir=folder,
        text_file=str(text),
        cell=problem.kind,
        layers=problem.layers,
        features=problem.features,
        embedding_features=problem.in_features,
        batch_size=problem.batch,
        seq_len=problem.time,
        dtype=dtype,
        method=option,
        output_dropout=0.0,
      )
    )
  step = training.repeated(made)

  def values():
    state, status = made.run(made.start(), made.put(made.task.batches[0]))
    del state
    return {"loss": np.asarray(jax.device_get(status.loss), np.float32)}

  return networks.Calls({STEP: lambda: step(1)}, values)
