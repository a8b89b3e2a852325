"""An encoder-decoder of torch.nn.LSTM with attention, and its train step."""

import time

import torch
from torch import nn


class Translator(nn.Module):
  """The network of `benchmarks.sequences.make_model`, written with torch."""

  def __init__(self, shape):
    super().__init__()
    width = shape.features
    self.source = nn.Embedding(shape.vocab, shape.embedding)
    self.target = nn.Embedding(shape.vocab, shape.embedding)
    self.encoder = nn.LSTM(
      shape.embedding, width, bidirectional=True, batch_first=True
    )
    self.decoder = nn.LSTM(shape.embedding, width, batch_first=True)
    self.bridge = nn.ModuleList([nn.Linear(2 * width, width) for _ in range(2)])
    self.key = nn.Linear(2 * width, width, bias=False)
    self.combine = nn.Linear(3 * width, width)
    self.output = nn.Linear(width, shape.vocab)

  def forward(self, source, inputs):
    """Returns the logits [batch, T, V]."""
    encoded, (hidden, _) = self.encoder(self.source(source))
    summary = torch.cat([hidden[0], hidden[1]], dim=-1)
    carry = tuple(torch.tanh(x(summary))[None] for x in self.bridge)
    outputs, _ = self.decoder(self.target(inputs), carry)
    weights = torch.softmax(outputs @ self.key(encoded).mT, dim=-1)
    both = torch.cat([outputs, weights @ encoded], dim=-1)
    return self.output(torch.tanh(self.combine(both)))


_state: dict = {}


def prepare(shape) -> None:
  """Makes the network, its optimiser and a batch in this process."""
  model = Translator(shape)
  optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
  batch = {k: torch.tensor(x).long() for k, x in shape.draw().items()}
  _state.update(model=model, optimizer=optimizer, batch=batch)


def count() -> int:
  """The number of parameters."""
  return sum(x.numel() for x in _state["model"].parameters())


def train(steps: int) -> float:
  """Makes some train steps; returns the seconds."""
  model, batch = _state["model"], _state["batch"]
  begun = time.perf_counter()
  for _ in range(steps):
    _state["optimizer"].zero_grad()
    logits = model(batch["source"], batch["inputs"])
    loss = nn.functional.cross_entropy(
      logits.flatten(0, 1), batch["targets"].flatten()
    )
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    _state["optimizer"].step()
  return time.perf_counter() - begun
