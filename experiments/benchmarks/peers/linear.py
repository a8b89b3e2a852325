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
    about={"method": option},
  )
  return networks.from_jax(network, drawn, dtype)


def _linear_scan(decay, drive):
  return kernels.linear_scan(decay, drive, jnp.zeros_like(drive[0]))


def _on(device):
  """The linear scan of `kernels.gpu` or `kernels.tpu`, imported when called."""

  def run(decay, drive):
    scan = getattr(kernels, device).linear_scan
    return scan(decay, drive, jnp.zeros_like(drive[0]))

  return run


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
  "linear_scan": _linear_scan,
  "gpu_kernel": _on("gpu"),
  "tpu_kernel": _on("tpu"),
  "associative": _associative,
  "scan": _scan,
}
