"""h_t = decay_t h_{t-1} + drive_t, time-major; the option names the method."""

import jax
import jax.numpy as jnp

from experiments.benchmarks import networks
from recurrent import kernels


def make(problem, drawn, dtype, option):
  """Makes a network whose parameter is the decay; its input is the drive."""
  del problem
  network = networks.Network(
    jnp.asarray(drawn.more["decay"], dtype),
    HOW[option],
    lambda gradient: {"decay": gradient},
  )
  return networks.from_jax(network, drawn, dtype)


def _kernel(decay, drive):
  return kernels.linear_scan(decay, drive, jnp.zeros_like(drive[0]))


def _gpu_kernel(decay, drive):
  start = jnp.zeros_like(drive[0])
  return kernels.gpu.linear_scan(decay, drive, start)


def _associative(decay, drive):
  def compose(early, late):
    return late[0] * early[0], late[0] * early[1] + late[1]

  return jax.lax.associative_scan(compose, (decay, drive))[1]


def _scan(decay, drive):
  def step(state, now):
    state = now[0] * state + now[1]
    return state, state

  return jax.lax.scan(step, jnp.zeros_like(drive[0]), (decay, drive))[1]


HOW = {
  "kernel": _kernel,
  "gpu_kernel": _gpu_kernel,
  "associative": _associative,
  "scan": _scan,
}
