"""Decoding as one writes it in torch: a loop over ticks of nn.LSTM."""

import numpy as np
import torch

from experiments.benchmarks import networks as entries
from experiments.benchmarks import problems
from experiments.benchmarks.peers.decoding import COMPARED
from experiments.benchmarks.peers.torch import device
from recurrent import converters


def make(problem, drawn, dtype, option):
  """Embedding, LSTM, linear, softmax, multinomial, a token at a time."""
  del option
  kind = getattr(torch, dtype)
  e, h, v = problem.in_features, problem.features, problems.VOCABULARY
  embedding, output = torch.nn.Embedding(v, e), torch.nn.Linear(h, v)
  lstm = torch.nn.LSTM(e, h, problem.layers, batch_first=True)
  more = {k: torch.tensor(x) for k, x in drawn.more.items()}
  state = converters.to_torch(drawn.layers)
  lstm.load_state_dict({k: torch.tensor(x) for k, x in state.items()})
  embedding.load_state_dict({"weight": more["embedding"]})
  output.load_state_dict({"weight": more["kernel"].T, "bias": more["bias"]})
  for module in (embedding, lstm, output):
    module.to(device(), kind)
  prompt = torch.tensor(drawn.inputs, dtype=torch.int64).to(device())

  @torch.no_grad()
  def draw(tokens, greedy=False):
    outputs, carry = lstm(embedding(prompt))
    text, scores = [], []
    for _ in range(tokens):
      logits = output(outputs[:, -1]).float()
      if greedy:
        token = logits.argmax(-1, keepdim=True)
        scores.append(logits.log_softmax(-1).gather(1, token))
      else:
        token = torch.multinomial(logits.softmax(-1), 1)
      text.append(token.tolist())
      outputs, carry = lstm(embedding(token), carry)
    return text, scores

  def values():
    text, scores = draw(COMPARED, greedy=True)
    return {
      "tokens": np.concatenate(text, axis=1).astype(np.int32),
      "scores": torch.cat(scores, dim=1).cpu().numpy(),
    }

  return entries.Entry({"tokens": lambda: draw(problem.time)}, values)
