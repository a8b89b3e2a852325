"""Measures this machine: contestants in turn, medians and ratios.

  python -m experiments.benchmark --suite=loop,generation

loop: training throughput against the bare compiled step on one batch.
generation: decoding on the device against one compiled call a token, with the
  choice of the token in it, and against a compiled step and a choice outside.
"""

import dataclasses
import platform
import statistics
import tempfile
import time
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments import config as config_lib
from experiments import generate, language_model, runner
from recurrent import decoding, optim, sharding
from recurrent.errors import ConfigError
from recurrent.models import LanguageModel
from recurrent.training import loop, step
from recurrent.training.checkpoint import Checkpoints
from recurrent.training.preemption import Preemption
from recurrent.training.progress import Progress
from recurrent.training.writers import MetricsWriter


@dataclasses.dataclass(frozen=True)
class Config(config_lib.Checked):
  """Flags of benchmark.

  Args:
    suite: what to measure, separated by commas: loop, generation.
    rounds: turns of each contestant.
    steps: training steps a turn, in the suite loop.
    tokens: tokens a turn, in the suite generation.
    features: width of the model in the suite generation.
  """

  suite: str = "loop,generation"
  rounds: int = 5
  steps: int = 40
  tokens: int = 1024
  features: int = 256

  NEEDS_WORKDIR: typing.ClassVar[bool] = False
  POSITIVE: typing.ClassVar[frozenset[str]] = frozenset(
    "rounds steps tokens features".split()
  )


def run(config: Config) -> dict[str, Any]:
  """Runs the suites; returns their medians and ratios."""
  suites = config.suite.split(",")
  for name in suites:
    if name not in SUITES:
      raise ConfigError(
        f"--suite={name} is unknown", f"use some of {', '.join(SUITES)}"
      )
  results: dict[str, Any] = {
    "device": jax.devices()[0].device_kind,
    "jax": jax.__version__,
    "python": platform.python_version(),
  }
  for name in suites:
    results[name] = SUITES[name](config)
  return results


def measure(
  contestants: dict[str, Callable[[], None]], units: int, rounds: int
) -> dict[str, Any]:
  """Times contestants in turn, so that all meet the same noise.

  Args:
    contestants: by name, each does its work and waits for it.
    units: of work that each does in a call.
    rounds: timed calls of each, after one that is not.

  Returns:
    Median units a second of each contestant, and the ratio of the first to
    the others as the median over rounds.
  """
  seconds: dict[str, list[float]] = {name: [] for name in contestants}
  for turn in range(rounds + 1):
    for name, work in contestants.items():
      begun = time.perf_counter()
      work()
      if turn:
        seconds[name].append(time.perf_counter() - begun)
  first, *others = contestants
  found: dict[str, Any] = {
    f"{name}_per_second": units / statistics.median(times)
    for name, times in seconds.items()
  }
  for name in others:
    found[f"{first}_over_{name}"] = statistics.median(
      b / a for a, b in zip(seconds[first], seconds[name], strict=True)
    )
  for key, value in found.items():
    print(f"{key:36s}{value:14.4g}")
  return found


def measure_loop(config: Config) -> dict[str, Any]:
  """The training loop, with its rows and checkpoints, against its step."""
  mesh = sharding.make_mesh()
  where = sharding.split_batch(mesh)
  with tempfile.TemporaryDirectory() as folder:
    trained = language_model.Config(workdir=folder, batch_size=16)
    optimizer = optim.make_optimizer(trained, trained.steps)
    task = language_model.make_task(trained)
    init, graphdef = runner.initialiser(trained, task, optimizer)
    train_step = step.make_train_step(
      graphdef, task.loss, optimizer, mesh, seed=0, ema_decay=trained.ema
    )
    start = jax.jit(init, out_shardings=step.state_sharding(mesh))
    states = {"loop": start(), "bare_step": start()}
    batch = sharding.put(task.batches[0], where)
    checkpoints = Checkpoints(Path(folder) / "checkpoints", "benchmark")
    writer = MetricsWriter(Path(folder), 0)
    outcome = loop.Outcome()

    def in_loop():
      done = int(states["loop"].step)
      steps = done + config.steps
      states["loop"], _ = loop.fit(
        states["loop"],
        train_step,
        task.batches,
        loop.Hooks(
          put=lambda batch: sharding.put(batch, where),
          evaluate=lambda params, stop: {"valid_bpc": 1.0},
          on_evaluation=lambda at_step, params: "",
          describe=lambda means, at_step: task.describe(means),
        ),
        loop.Schedule(steps=steps, log_every=10, eval_every=steps),
        objective="valid_bpc",
        outcome=outcome,
        checkpoints=checkpoints,
        writer=writer,
        progress=Progress(done, steps, *task.units),
        preemption=Preemption(),
      )
      checkpoints.wait()

    def bare():
      for _ in range(config.steps):
        states["bare_step"], status = train_step(states["bare_step"], batch)
      jax.block_until_ready(status)

    found = measure(
      {"loop": in_loop, "bare_step": bare},
      config.steps * task.units[1],
      config.rounds,
    )
    writer.close()
    checkpoints.close()
  return found


def measure_generation(config: Config) -> dict[str, Any]:
  """Blocks of tokens on the device against compiled calls for each token."""
  model = LanguageModel(103, features=config.features, rngs=nnx.Rngs(0))
  graphdef, variables = nnx.split(model)
  params = nnx.as_pure(variables)
  key = jax.random.key(0)
  prompt = np.zeros((1, 8), np.int32)
  stream = generate.Stream(graphdef, params, decoding.Sampler())

  def on_device():
    for _ in stream(prompt, key, config.tokens):
      pass

  @jax.jit
  def one_token(params, carry, logits, key):
    key, now = jax.random.split(key)
    token = jax.random.categorical(now, logits)
    model = nnx.merge(graphdef, params)
    carry, logits = model(carry, token[:, None])
    return carry, logits[:, -1], token, key

  @jax.jit
  def prefill(params, tokens):
    carry, logits = nnx.merge(graphdef, params)(None, tokens)
    return carry, logits[:, -1]

  def a_call_a_token():
    carry, logits = prefill(params, prompt)
    text, now = [], key
    for _ in range(config.tokens):
      carry, logits, token, now = one_token(params, carry, logits, now)
      text.append(int(token[0]))

  @jax.jit
  def one_step(params, carry, token):
    carry, logits = nnx.merge(graphdef, params)(carry, token[:, None])
    return carry, logits[:, -1]

  def a_step_a_token():
    carry, logits = prefill(params, prompt)
    text = []
    for number in range(config.tokens):
      now = jax.random.fold_in(key, number)
      token = jax.random.categorical(now, logits)
      text.append(int(token[0]))
      carry, logits = one_step(params, carry, token)

  return measure(
    {
      "on_device": on_device,
      "a_call_a_token": a_call_a_token,
      "a_step_a_token": a_step_a_token,
    },
    config.tokens,
    config.rounds,
  )


SUITES = {"loop": measure_loop, "generation": measure_generation}


if __name__ == "__main__":
  runner.main(run, Config)
