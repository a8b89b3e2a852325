"""Decoding in torch by a Python loop over tokens, with nn.LSTM."""

import numpy as np
import torch

from experiments.benchmarks import networks, problems
from experiments.benchmarks.peers.torch import device, recurrent_layers


def make(problem, drawn, dtype, option):
  """Makes a model of embedding, LSTM and linear layer, and a sampling loop."""
  del option
  e, h, v = problem.in_features, problem.features, problems.VOCABULARY
  embedding, output = torch.nn.Embedding(v, e), torch.nn.Linear(h, v)
  lstm = recurrent_layers(problem, drawn)
  more = {k: torch.tensor(x) for k, x in drawn.more.items()}
  embedding.load_state_dict({"weight": more["embedding"]})
  output.load_state_dict({"weight": more["kernel"].T, "bias": more["bias"]})
  for module in (embedding, lstm, output):
    module.to(device(), getattr(torch, dtype))
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
    text, scores = draw(problems.COMPARED, greedy=True)
    return {
      "tokens": np.concatenate(text, axis=1).astype(np.int32),
      "scores": torch.cat(scores, dim=1).cpu().numpy(),
    }

  return networks.Calls({"tokens": lambda: draw(problem.time)}, values)
