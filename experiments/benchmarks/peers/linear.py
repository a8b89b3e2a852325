"""h_t = decay_t h_{t-1} + drive_t; the option is how."""

import jax
import jax.numpy as jnp

from experiments.benchmarks import networks as entries
from experiments.benchmarks import problems
from recurrent import kernels


def make(problem, drawn, dtype, option):
  """Time-major arrays on every side; gradients by decay and drive."""
  del problem
  scan = HOW[option]
  decay = jnp.asarray(drawn.more["decay"], dtype)
  drive = jnp.asarray(drawn.inputs, dtype)
  weights = jnp.asarray(drawn.weights)

  def loss(decay, drive):
    return jnp.mean(scan(decay, drive).astype(jnp.float32) * weights)

  forward, backward = jax.jit(scan), jax.jit(jax.grad(loss, (0, 1)))

  def values():
    d_decay, d_drive = backward(decay, drive)
    found = {
      "states": forward(decay, drive),
      "gradient of decay": d_decay,
      "gradient of drive": d_drive,
    }
    return {name: jnp.asarray(x, jnp.float32) for name, x in found.items()}

  works = {
    problems.FORWARD: lambda: jax.block_until_ready(forward(decay, drive)),
    problems.BACKWARD: lambda: jax.block_until_ready(backward(decay, drive)),
  }
  return entries.Entry(works, values)


def _kernel(decay, drive):
  return kernels.linear_scan(decay, drive, jnp.zeros_like(drive[0]))


def _mosaic_gpu(decay, drive):
  start = jnp.zeros_like(drive[0])
  return kernels.mosaic_gpu.linear_scan(decay, drive, start)


def _associative(decay, drive):
  def compose(early, late):
    return late[0] * early[0], late[0] * early[1] + late[1]

  return jax.lax.associative_scan(compose, (decay, drive))[1]


def _scan(decay, drive):
  def tick(state, now):
    state = now[0] * state + now[1]
    return state, state

  return jax.lax.scan(tick, jnp.zeros_like(drive[0]), (decay, drive))[1]


HOW = {
  "kernel": _kernel,
  "mosaic_gpu": _mosaic_gpu,
  "associative": _associative,
  "scan": _scan,
}
