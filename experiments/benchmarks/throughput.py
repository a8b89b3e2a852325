"""The suites loop and generation: throughput, measured in this process."""

import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments import language_model, runner
from experiments.benchmarks import problems, report, timing, training
from experiments.benchmarks.peers import decoding
from recurrent.training import loop
from recurrent.training.checkpoint import Checkpoints
from recurrent.training.preemption import Preemption
from recurrent.training.progress import Progress
from recurrent.training.writers import MetricsWriter


def _measure(
  works: Mapping[str, Callable[[], Any]], units: int, repeats: int
) -> dict[str, float]:
  """Times works in turn; returns units per second, and ratios to the first."""
  times = timing.in_turn(
    {
      name: lambda work=work: timing.timed(work) for name, work in works.items()
    },
    repeats,
  )
  first, *others = times
  found = {
    f"{name}_per_second": units / statistics.median(taken)
    for name, taken in times.items()
  }
  for name in others:
    found[f"{first}_over_{name}"] = timing.ratio(times[name], times[first])
  print(report.table(("measured", "value"), found.items()))
  return found


def measure_loop(config: Any, machine: Any) -> dict[str, float]:
  """Compares the whole training loop with the bare compiled step."""
  with tempfile.TemporaryDirectory() as folder:
    made = training.make_step(
      language_model.Config(workdir=folder, batch_size=16)
    )
    unit, count = made.task.units
    bare, state = training.repeated(made), [made.start()]
    checkpoints = Checkpoints(Path(folder) / "checkpoints", "benchmark")
    outcome = loop.Outcome()
    hooks = loop.Hooks(
      put=made.put,
      evaluate=lambda params, stop: {"valid_bpc": 1.0},
      on_evaluation=lambda at_step, params: "",
      describe=lambda means, at_step: runner.describe_training(
        made.task, means
      ),
      units=count,
    )

    def in_loop():
      done = int(state[0].step)
      last = done + config.steps
      state[0], _ = loop.fit(
        state[0],
        made.run,
        made.task.batches,
        hooks,
        loop.Schedule(steps=last, log_every=10, eval_every=last),
        objective="valid_bpc",
        outcome=outcome,
        checkpoints=checkpoints,
        writer=writer,
        progress=Progress(done, last, unit),
        preemption=Preemption(),
      )
      checkpoints.wait()

    with MetricsWriter(Path(folder), 0) as writer:
      works = {"loop": in_loop, "bare_step": lambda: bare(config.steps)}
      units = config.steps * count(made.task.batches[0])
      found = _measure(works, units, config.repeats)
    checkpoints.close()
  return found


def measure_generation(config: Any, machine: Any) -> dict[str, float]:
  """Compares decoding blocks on the device with one call per token."""
  problem = problems.Problem(
    "decode", "lstm", 1, config.tokens, 128, config.features
  )
  drawn = problems.draw(problem)
  options = {
    "on_device": "float32",
    "a_call_a_token": "call",
    "a_step_a_token": "step",
  }
  works = {
    name: decoding.make(problem, drawn, "float32", option).works["tokens"]
    for name, option in options.items()
  }
  return _measure(works, config.tokens, config.repeats)
