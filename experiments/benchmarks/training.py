"""Processes that share out a train step of the language model, on request.

Each is `python -m experiments.benchmarks.training [flags]`; it joins the others,
and for each line "DEVICES STEPS" answers with the seconds that they took.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from launch import local
from recurrent.errors import UserError


class Crew:
  """Processes of this machine, alive until the `with` ends.

  Args:
    processes: how many.
    devices: CPU devices of each.
    flags: of the language model, the same for all.
  """

  def __init__(self, processes: int, devices: int, flags: Sequence[str]):
    module = "experiments.benchmarks.training"
    commands = [[sys.executable, "-m", module, *flags]]
    if processes > 1:
      commands = local.commands([module, *flags], processes, local.free_port())
    environment = {
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": str(devices),
    }
    self._said = tempfile.TemporaryFile("w+")
    self._members = [
      subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=self._said,
        text=True,
      )
      for command in commands
    ]

  def __enter__(self) -> "Crew":
    return self

  def __exit__(self, *_) -> None:
    # All are told before any is waited for: each waits for the others to end.
    for member in self._members:
      if sys.exc_info()[0] is not None:
        member.kill()
      if member.stdin:
        with contextlib.suppress(BrokenPipeError):
          member.stdin.close()
    for member in self._members:
      member.wait()
      if member.stdout:
        member.stdout.close()
    self._said.close()

  def seconds(self, devices: int, steps: int) -> float:
    """Seconds of some steps over so many devices, by the slowest member.

    Args:
      devices: how many, of all processes together.
      steps: to take; the first time, another goes before to compile.

    Raises:
      UserError: if a member died.
    """
    for member in self._members:
      with contextlib.suppress(BrokenPipeError):
        print(devices, steps, file=member.stdin, flush=True)
    answers = [x.stdout.readline() for x in self._members if x.stdout]
    if not all(answers):
      self._said.seek(0)
      lines = self._said.read().strip().splitlines() or ["nothing"]
      raise UserError(
        f"a process of {len(self._members)} ended, and said: "
        + "; ".join(lines[-2:]),
        "see whether the language model trains in as many processes",
      )
    return max(map(json.loads, answers))


def main() -> None:
  """Answers requests until there are no more."""
  # What libraries print must not get between the answers.
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  from experiments import config, language_model, runner  # noqa: PLC0415

  argv = [*sys.argv, "--workdir=unused"]
  trained = config.parse(language_model.Config, argv)
  runner.join_processes(trained)
  made: dict[int, Step] = {}
  for line in sys.stdin:
    devices, steps = map(int, line.split())
    if devices not in made:
      made[devices] = Step(trained, devices)
    print(json.dumps(made[devices].seconds(steps)), file=answers, flush=True)


class Step:
  """The train step of a language model on a mesh, and its state.

  Args:
    config: of the language model.
    devices: how many share its batch out.
  """

  def __init__(self, config, devices: int):
    import jax  # noqa: PLC0415

    from experiments import language_model, runner  # noqa: PLC0415
    from recurrent import optim, sharding  # noqa: PLC0415
    from recurrent.training import step  # noqa: PLC0415

    mesh = sharding.make_mesh(devices)
    optimizer = optim.make_optimizer(config, config.steps)
    task = language_model.make_task(config)
    init, graphdef = runner.initialiser(config, task, optimizer)
    self._step = step.make_train_step(
      graphdef, task.loss, optimizer, mesh, seed=0, ema_decay=config.ema
    )
    self._state = jax.jit(init, out_shardings=step.state_sharding(mesh))()
    self._batch = sharding.put(task.batches[0], sharding.split_batch(mesh))
    self._wait = jax.block_until_ready
    self.seconds(1)  # to compile

  def seconds(self, steps: int) -> float:
    """Seconds of so many steps."""
    begun = time.perf_counter()
    for _ in range(steps):
      self._state, status = self._step(self._state, self._batch)
    self._wait((self._state, status))
    return time.perf_counter() - begun


if __name__ == "__main__":
  main()
