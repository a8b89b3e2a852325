"""A train step of the language model, in this process or in several."""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from experiments import config as config_lib
from experiments import language_model, programs, runner
from experiments.benchmarks import processes, timing
from launch import local
from recurrent import optim, sharding
from recurrent.errors import UserError
from recurrent.training import step


class TrainStep(NamedTuple):
  """A compiled train step on a mesh.

  Attributes:
    task: the task, with its loss and batches.
    run: `(state, batch) -> (state, status)`.
    start: makes an initial state.
    put: moves a batch to the devices.
  """

  task: runner.Task
  run: Callable[..., tuple[Any, Any]]
  start: Callable[[], Any]
  put: Callable[[Any], Any]


def make_step(config: language_model.Config, devices: int = 0) -> TrainStep:
  """Makes the train step of a language model; `devices=0` uses all devices."""
  mesh = sharding.make_mesh(devices)
  optimizer = optim.make_optimizer(config, config.steps)
  task = language_model.make_task(config)
  init, graphdef = runner.initialiser(config, task, optimizer)
  return TrainStep(
    task,
    step.make_train_step(
      graphdef, task.loss, optimizer, mesh, seed=0, ema_decay=config.ema
    ),
    jax.jit(
      init, out_shardings=step.state_sharding(mesh, jax.eval_shape(init))
    ),
    lambda batch: sharding.put(batch, sharding.split_batch(mesh)),
  )


def repeated(made: TrainStep) -> Callable[[int], None]:
  """Makes a function that repeats the step on one batch, and waits for it."""
  state, batch = [made.start()], made.put(made.task.batches[0])

  def steps(number):
    for _ in range(number):
      state[0], status = made.run(state[0], batch)
    jax.block_until_ready((state[0], status))

  return steps


class Workers:
  """Processes that compute one train step together, until the `with` ends.

  Args:
    number: number of processes.
    devices: number of CPU devices of each process.
    flags: flags of the language model, the same for all processes.
    one_core: whether each process runs on a core of its own.

  Raises:
    UserError: if there are fewer cores than processes that need one.
  """

  def __init__(
    self,
    number: int,
    devices: int,
    flags: Sequence[str],
    *,
    one_core: bool = False,
  ):
    cores = sorted(os.sched_getaffinity(0)) if one_core else []
    if one_core and len(cores) < number:
      raise UserError(
        f"{number} processes, but {len(cores)} cores", "use fewer processes"
      )
    argv = ["", *flags, "--workdir=unused"]
    config = config_lib.parse(language_model.Config, argv)
    address = f"127.0.0.1:{local.free_port()}" if number > 1 else ""
    environment = {
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": str(devices),
    }
    self._workers = [
      (
        processes.start(environment),
        dataclasses.replace(
          config, coordinator=address, processes=number, process=process
        ),
      )
      for process in range(number)
    ]
    if one_core:
      # Before XLA starts its threads, of which it has one for each core.
      for (pool, _), core in zip(self._workers, cores, strict=False):
        processes.submit(pool, os.sched_setaffinity, 0, {core}).result()

  def __enter__(self) -> "Workers":
    return self

  def __exit__(self, exception, *_) -> None:
    if exception is not None:  # they would wait for each other for ever
      for child in multiprocessing.active_children():
        child.kill()
    # Shut all down before waiting for any: each waits for the others to end.
    for wait in (False, True):
      for pool, _ in self._workers:
        pool.shutdown(wait)

  def seconds(self, devices: int, steps: int) -> float:
    """Times some train steps; returns the seconds of the slowest process.

    Args:
      devices: number of devices, of all processes together.
      steps: number of steps. The first call makes one more before, to compile.

    Raises:
      UserError: if a process fails.
    """
    return max(self._ask(_seconds, devices, steps))

  def bytes_reduced(self, devices: int) -> int:
    """The bytes that each device gives to all-reduces in a step.

    Args:
      devices: number of devices, of all processes together.

    Raises:
      UserError: if a process fails.
    """
    return self._ask(_bytes_reduced, devices)[0]

  def _ask(self, function, *args):
    """Calls a function in all processes; returns their results."""
    futures = [
      processes.submit(pool, function, config, *args)
      for pool, config in self._workers
    ]
    # If one process fails, the others wait for ever.
    when = concurrent.futures.FIRST_EXCEPTION
    done, _ = concurrent.futures.wait(futures, return_when=when)
    for error in filter(None, (future.exception() for future in done)):
      raise UserError(
        f"a process of {len(self._workers)} failed: {error}",
        "see whether the language model trains in as many processes",
      ) from error
    return [future.result() for future in futures]


def _seconds(config, devices, steps):
  call = _compiled(config, devices)
  return timing.timed(lambda: call(steps))


def _bytes_reduced(config, devices):
  _join(config)
  made = make_step(config, devices)
  lowered = made.run.lower(made.start(), made.put(made.task.batches[0]))
  found = programs.collectives(lowered.compile().as_text())
  return sum(int(x.bytes) for x in found if x.kind == "all-reduce")


@functools.cache
def _compiled(config, devices):
  _join(config)
  call = repeated(make_step(config, devices))
  call(1)
  return call


_join = functools.cache(runner.join_processes)
