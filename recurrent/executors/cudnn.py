"""`"cudnn"` runs the LSTM with cuDNN, through `jax.experimental.rnn`.

One call computes a whole layer, including the product with the inputs, in
float32 (with TF32 factors unless `jax_default_matmul_precision` is set
otherwise). cuDNN has no resets. Instead of masks it takes sequence lengths, and
whether a traced mask can be written as lengths is not known at compile time.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import rnn

from recurrent.executors.cpu_kernel import kind
from recurrent.executors.fused import run as loop_run
from recurrent.kernels import transforms
from recurrent.masking import TimeSteps


def cudnn(cell, reverse, params, initial, carry, time_steps):
  """Runs the LSTM; `time_steps.projected` holds the plain inputs."""
  del initial
  for name in ("mask", "resets"):
    if getattr(time_steps, name) is not None:
      raise ValueError(
        f'method="cudnn" takes no {name}: cuDNN has none;'
        f' leave {name} out, or use method="fused"'
      )
  args = params(), carry, time_steps.projected
  return transforms.call(CUDNN, (cell, reverse), *args)


def _run(cell, reverse, params, carry, inputs):
  inputs = jnp.swapaxes(inputs, 0, 1)
  inputs = inputs[:, ::-1] if reverse else inputs
  batch, time, width = inputs.shape
  # cuDNN has the gates in the order of `LSTMParams`, and adds two biases.
  parts = (params.kernel.T, params.recurrent.T, params.bias)
  parts = (*parts, jnp.zeros_like(params.bias))
  outputs, hidden, memory = rnn.lstm(
    inputs,
    carry.hidden[None],
    carry.cell[None],
    jnp.concatenate([x.ravel() for x in parts]),
    jnp.full((batch,), time, jnp.int32),
    width,
    cell.features,
    1,
    0.0,
    False,
  )
  outputs = outputs[:, ::-1] if reverse else outputs
  return type(carry)(hidden[0], memory[0]), jnp.swapaxes(outputs, 0, 1)


def _forward(cell, reverse, *args):
  args = transforms.kernel(_same, _no_second_derivative, (), *args)
  out, pull = jax.vjp(functools.partial(_run, cell, reverse), *args)
  return out, (args, pull)


def _same(*args):
  return args


def _no_second_derivative(*args):
  raise ValueError(
    'method="cudnn" has no second derivative: cuDNN has none;'
    ' use method="fused" or "scan"'
  )


def _tangent(cell, reverse, kept, d_args):
  """Forward derivatives, by the plain loop."""

  def loop(params, carry, inputs):
    time_steps = TimeSteps(cell.project(params, inputs), None, None)
    return loop_run(cell, reverse, False, params, carry, carry, time_steps)

  return jax.jvp(loop, kept[0], d_args)[1]


def _backward(cell, reverse, kept, cotangents):
  del cell, reverse
  return kept[1](cotangents)


CUDNN = transforms.Passes(_run, _forward, _tangent, _backward)


def why_not(cell) -> str:
  """Returns why cuDNN cannot run a cell; empty if it can."""
  return "" if kind(cell) == "lstm" else "is not the LSTM, all that JAX binds"


def why_not_here(setting) -> str:
  """Returns why cuDNN cannot run in a setting; empty if it can."""
  if setting.platform != "gpu":
    return f"is for NVIDIA GPUs, not for {setting.platform}"
  if setting.dtype != jnp.float32 or setting.carry_dtype != jnp.float32:
    return f"computes in float32, carry and all, not in {setting.widths}"
  return ""
