"""torch.nn.RNN, LSTM and GRU, batch first, with gradients by autograd."""

import os

import numpy as np
import torch

from experiments.benchmarks import networks
from experiments.benchmarks.problems import BACKWARD, FORWARD, STEP
from recurrent import converters


def device():
  """The device of torch: a GPU if there is one, unless JAX runs on the CPU."""
  on_host = os.environ.get("JAX_PLATFORMS") == "cpu"
  free = torch.cuda.is_available() and not on_host
  return torch.device("cuda" if free else "cpu")


def recurrent_layers(problem, drawn):
  """Makes one module with all layers, in float32."""
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
  """Makes a module with parameters of `dtype`, and Adam."""
  del option
  module = recurrent_layers(problem, drawn)
  module.to(device(), getattr(torch, dtype))
  names, params = zip(*module.named_parameters(), strict=True)
  optimizer = torch.optim.Adam(
    params, lr=networks.RATE, eps=networks.EPSILON, fused=True
  )

  def name_gradients(gradients):
    # Two biases that are only added have the same gradient. The converter adds
    # them, so one is set to zero.
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
  """Makes the calls of a network of torch tensors.

  Args:
    forward: `forward(inputs)` returns the outputs of all time steps.
    params: the trained tensors.
    update: `update(gradients)` makes one step of the optimiser; the gradients
      are also in the `grad` of each tensor of `params`.
    name_gradients: converts NumPy gradients with respect to `params` to arrays
      by name.
    drawn: the arrays of the problem.
    dtype: dtype of the computation.
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
    mean = (forward(inputs).float() * weights).mean()
    return mean * networks.loss_scale(drawn, dtype)

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
  return networks.Calls(works, values, {"device": device().type})
