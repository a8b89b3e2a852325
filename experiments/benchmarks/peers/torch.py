"""torch.nn.RNN, LSTM and GRU, batch first, by autograd."""

import os

import numpy as np
import torch

from experiments.benchmarks import networks as entries
from experiments.benchmarks import problems
from recurrent import converters


def device():
  """Where torch runs: where JAX does, as far as torch can."""
  on_host = os.environ.get("JAX_PLATFORMS") == "cpu"
  free = torch.cuda.is_available() and not on_host
  return torch.device("cuda" if free else "cpu")


def make(problem, drawn, dtype, option):
  """One module for all layers; its parameters are in `dtype`."""
  del option
  module = getattr(torch.nn, problem.kind.upper())(
    problem.in_features,
    problem.features,
    num_layers=problem.layers,
    bidirectional=problem.bidirectional,
    batch_first=True,
  )
  state = converters.to_torch(drawn.layers)
  module.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
  module.to(device(), getattr(torch, dtype))
  names, params = zip(*module.named_parameters(), strict=True)
  optimizer = torch.optim.Adam(
    params, lr=entries.RATE, eps=entries.EPSILON, fused=True
  )

  def to_params(gradients):
    # Two biases that are only added have one gradient; the converter adds it.
    named = {
      name: np.zeros(g.shape) if "bias_hh" in name else g
      for name, g in zip(names, gradients, strict=True)
    }
    return converters.from_torch(named, problem.kind)

  return from_torch(
    lambda inputs: module(inputs)[0],
    params,
    lambda gradients: optimizer.step(),
    to_params,
    drawn,
    dtype,
  )


def from_torch(forward, params, update, to_params, drawn, dtype):
  """The entry of whatever computes with torch's tensors.

  Args:
    forward: from the inputs to the outputs of all ticks.
    params: all that is learned.
    update: one step of the optimiser, given the gradients, which are in
      `params` too.
    to_params: from NumPy gradients by `params` to [layer][direction].
    drawn: the arrays.
    dtype: what to compute in.
  """
  inputs = torch.tensor(drawn.inputs).to(device(), getattr(torch, dtype))
  inputs.requires_grad_()
  weights = torch.tensor(drawn.weights).to(device())
  start = [x.detach().clone() for x in params]
  wait = torch.cuda.synchronize if device().type == "cuda" else lambda: None

  def only_forward():
    with torch.no_grad():
      outputs = forward(inputs)
    wait()
    return outputs

  def loss():
    return (forward(inputs).float() * weights).mean()

  def backward():
    gradients = torch.autograd.grad(loss(), [*params, inputs])
    wait()
    return gradients

  def train():
    for x in (*params, inputs):
      x.grad = None
    loss().backward()
    update([x.grad for x in params])
    wait()

  def values():
    with torch.no_grad():  # as before any training step
      for x, before in zip(params, start, strict=True):
        x.copy_(before)
    numpy = lambda x: x.detach().float().cpu().numpy()
    *gradients, d_inputs = map(numpy, backward())
    outputs = numpy(only_forward())
    return entries.named_values(outputs, d_inputs, to_params(gradients))

  works = {
    problems.FORWARD: only_forward,
    problems.BACKWARD: backward,
    problems.STEP: train,
  }
  return entries.Entry(works, values)
