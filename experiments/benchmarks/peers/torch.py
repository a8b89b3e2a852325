"""torch.nn.RNN, LSTM and GRU, batch first, by autograd."""

import os

import numpy as np
import torch

from experiments.benchmarks import networks
from experiments.benchmarks.problems import BACKWARD, FORWARD, STEP
from recurrent import converters


def device():
  """Where torch runs: where JAX does, as far as torch can."""
  on_host = os.environ.get("JAX_PLATFORMS") == "cpu"
  free = torch.cuda.is_available() and not on_host
  return torch.device("cuda" if free else "cpu")


def recurrent_layers(problem, drawn):
  """One module for all layers, in float32."""
  module = getattr(torch.nn, problem.kind.upper())(
    problem.in_features,
    problem.features,
    num_layers=problem.layers,
    bidirectional=problem.bidirectional,
    batch_first=True,
  )
  state = converters.to_torch(drawn.layers)
  module.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
  return module


def make(problem, drawn, dtype, option):
  """The parameters are in `dtype`."""
  del option
  module = recurrent_layers(problem, drawn)
  module.to(device(), getattr(torch, dtype))
  names, params = zip(*module.named_parameters(), strict=True)
  optimizer = torch.optim.Adam(
    params, lr=networks.RATE, eps=networks.EPSILON, fused=True
  )

  def name_gradients(gradients):
    # Two biases that are only added have one gradient; the converter adds it.
    named = {
      name: np.zeros(g.shape) if "bias_hh" in name else g
      for name, g in zip(names, gradients, strict=True)
    }
    return networks.name_layers(converters.from_torch(named, problem.kind))

  return from_torch(
    lambda inputs: module(inputs)[0],
    params,
    lambda gradients: optimizer.step(),
    name_gradients,
    drawn,
    dtype,
  )


def from_torch(forward, params, update, name_gradients, drawn, dtype):
  """The calls of whatever computes with torch's tensors.

  Args:
    forward: from the inputs to the outputs of all time steps.
    params: all that is learned.
    update: one step of the optimiser, given the gradients, which are in
      `params` too.
    name_gradients: from NumPy gradients by `params` to arrays by name.
    drawn: the arrays.
    dtype: what to compute in.
  """
  inputs = torch.tensor(drawn.inputs).to(device(), getattr(torch, dtype))
  inputs.requires_grad_()
  weights = torch.tensor(drawn.weights).to(device())
  start = [x.detach().clone() for x in params]
  wait = torch.cuda.synchronize if device().type == "cuda" else lambda: None

  @torch.no_grad()
  def only_forward():
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
    named = name_gradients(gradients)
    return networks.as_values(numpy(only_forward()), d_inputs, named)

  works = {FORWARD: only_forward, BACKWARD: backward, STEP: train}
  return networks.Calls(works, values)
