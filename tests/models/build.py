"""Builds a language model from the name of a cell."""

from flax import nnx

from recurrent import cells, nn
from recurrent.models import LanguageModel


def language_model(
  vocab_size,
  *,
  cell="lstm",
  layers=1,
  features=256,
  embedding_features=128,
  tied=False,
  residual=False,
  dropout=0.0,
  method="auto",
  remat=None,
  rngs: nnx.Rngs,
  **options,
):
  """A `LanguageModel` of recurrent layers, all of one width."""
  build = cells.get(cell) if isinstance(cell, str) else cell
  width = features if tied else embedding_features
  stack = nn.Stack(
    [
      nn.Recurrent(
        build(features),
        features if n else width,
        method=method,
        remat=remat,
        rngs=rngs,
      )
      for n in range(layers)
    ],
    dropout=dropout,
    residual=residual,
  )
  return LanguageModel(vocab_size, stack, tied=tied, rngs=rngs, **options)
