"""Runs training scripts, from the command line to the final metrics.

A script defines a `Task`: its data, model, loss and evaluation. The runner adds
what all scripts share: the device mesh, the workdir, resuming from checkpoints,
the training loop and the exit codes.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import json
import logging
import os
import re
import shlex
import sys
import time
import traceback
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from experiments import config as config_lib
from experiments import figures
from recurrent import files, memory, optim, sharding
from recurrent.data import OwnRows
from recurrent.errors import (
  CheckpointError,
  ConfigError,
  PeerError,
  Preempted,
  UserError,
)
from recurrent.training import digest, evaluation, loop, profiling, step
from recurrent.training import state as state_lib
from recurrent.training import workdir as workdir_lib
from recurrent.training.object_store import is_url
from recurrent.training.preemption import Preemption
from recurrent.training.watchdog import Watchdog
from recurrent.training.workdir import Workdir
from recurrent.types import Carry, PyTree

# Imported at run time only in the functions that use them, since they import
# Orbax, tqdm and tensorboardX, which is slow, and not all scripts need them.
if TYPE_CHECKING:
  from recurrent.training.checkpoint import Checkpoints

LOG = logging.getLogger("recurrent")

RESULT = "result.json"

# Seconds without a sign of life after which a process counts as dead.
PEER_TIMEOUT = 30
# Seconds in which all processes have to start.
JOINING = 300
# Seconds that process 0 waits after an error before it ends.
LAST_WORDS = 2.0
# Errors of collectives and of the coordination service without the other side.
_PEER = re.compile(
  "closed by peer|Gloo|NCCL|oordination|eartbeat|Barrier|barrier|UNAVAILABLE"
  "|DEADLINE_EXCEEDED"
)

Interrupted = Callable[[], bool]


@dataclasses.dataclass(frozen=True)
class TrainConfig(config_lib.RunConfig, optim.OptimizerConfig):
  """Flags of every training script: those of a run and of an optimiser."""

  POSITIVE: typing.ClassVar[frozenset[str]] = frozenset(
    "accumulate plateau_patience plateau_window".split()
  )
  BELOW_ONE: typing.ClassVar[frozenset[str]] = frozenset(
    "b1 b2 plateau_factor plateau_min".split()
  )
  CHOICES: typing.ClassVar[dict[str, Sequence[str]]] = {
    "schedule": optim.SCHEDULES
  }
  NEEDS: typing.ClassVar[dict[str, tuple[str, Sequence[Any]]]] = {
    "final_learning_rate": ("schedule", ("cosine",)),
    "plateau_factor": ("schedule", ("plateau",)),
    "plateau_patience": ("schedule", ("plateau",)),
    "plateau_window": ("schedule", ("plateau",)),
    "plateau_min": ("schedule", ("plateau",)),
  }


class Task(NamedTuple):
  """An experiment, as the functions and values that the runner needs.

  Attributes:
    name: name of the experiment's module, by which `evaluate`, `generate` and
      `predict` find it.
    make_model: `make_model(rngs) -> model`; initialises a new model.
    loss: `loss(model, carry, batch, key) -> (loss, (carry, metrics))`; `key` is
      None in evaluation. `step.loss_of` makes it for batches without a carry.
    batches: `batches[step]` is the global batch of a training step, a dict of
      NumPy arrays [batch, ...].
    splits: the batches of each split to score, such as `data.EvalBatches`. The
      splits of `scored` are needed.
    objective: name of the metric of the valid split to minimise.
    data_sha256: hash of the training data, so that a run is not resumed with
      other data; empty for data that is drawn.
    make_carry: `make_carry(model, batch_size) -> carry`, the initial carry of a
      batch; by default empty.
    units: what the speed is measured in: a name, and a function that counts
      these units in a batch; by default the examples, that is the rows.
    predict: `predict(model, batch) -> arrays [batch, ...]` by name, from which
      `describe` computes metrics that are no means, such as F1; by default
      nothing.
    describe: `describe(split, scores) -> values` of a row of metrics, from the
      `evaluation.Scores` of a split. In training the split is "train", the
      means are those of the last steps, and there are no predictions. By
      default the means, each named `<split>_<metric>`. A value may be a number,
      or any other JSON value. The runner adds the loss that is minimised, as
      `train_loss`, and the norm of its gradient, as `grad_norm`.
    make_sample: `make_sample(graphdef) -> sample`, where `sample(params, step)`
      returns a text that shows what the model does; by default no text.
      `nnx.merge(graphdef, params)` is the model in evaluation mode.
    report: `report(split, scores, folder, model) -> text`; draws figures of a
      split into the folder, and returns a text to show, such as a table. The
      model is in evaluation mode, with its parameters on one device. It is
      called after the test split is scored at the end, and by `evaluate`. By
      default an empty text.
    scored: names of the splits to score at the end.
    save: `save(path)`; saves files that belong to the data, such as a
      tokenizer, in the workdir.
    modes: other ways to score a split, by name: `(graphdef, params, split,
      *options) -> metrics`. `evaluate` uses "dynamic", whose options are a
      learning rate and a decay, and "packed", whose option is the dtype of the
      weights in decoding.
    next_command: module and flags of the command to suggest after the run.
  """

  name: str
  make_model: Callable[[nnx.Rngs], nnx.Module]
  loss: step.Loss
  batches: loop.Batches
  splits: Mapping[str, Iterable[Any]]
  objective: str
  data_sha256: str = ""
  make_carry: Callable[[Any, int], Carry] = lambda model, batch_size: ()
  units: tuple[str, Callable[[Any], int]] = (
    "examples",
    lambda batch: len(jax.tree.leaves(batch)[0]),
  )
  predict: evaluation.Predict | None = None
  describe: Callable[[str, evaluation.Scores], dict[str, Any]] = (
    lambda split, scores: {f"{split}_{k}": v for k, v in scores.means.items()}
  )
  make_sample: Callable[[nnx.GraphDef], Callable[[PyTree, int], str]] = (
    lambda graphdef: lambda params, step: ""
  )
  report: Callable[[str, evaluation.Scores, Path, Any], str] = (
    lambda split, scores, folder, model: ""
  )
  scored: tuple[str, ...] = ("valid", "test")
  save: Callable[[Path], None] = lambda path: None
  modes: Mapping[str, Callable[..., dict[str, float]]] = MappingProxyType({})
  next_command: str = "experiments.evaluate"


def main(run: Callable[[Any], dict[str, Any]], config_class: type) -> None:
  """Runs a script: parses its flags, prints its result as JSON, and exits.

  A `UserError` is printed as its cause and remedy, and exits with its code.

  Args:
    run: `run(config) -> metrics`.
    config_class: dataclass of the configuration.
  """
  LOG.handlers = [logging.StreamHandler()]
  LOG.setLevel(logging.INFO)
  LOG.propagate = False
  memory.keep_freed()
  try:
    result = run(config_lib.parse(config_class, sys.argv))
    if jax.process_index() == 0:
      print(files.to_json(result), flush=True)
  except UserError as error:
    _leave(error, config_class)
  except BrokenPipeError:
    # The reader of stdout has closed it, as `head` does. Python would flush
    # stdout again at its exit and fail.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)
  except Exception as error:
    if not jax.distributed.is_initialized():
      raise
    if isinstance(error, jax.errors.JaxRuntimeError) and _PEER.search(
      str(error)
    ):
      lost = PeerError(
        f"another process has ended or does not answer: {_first_line(error)}",
        "see what the others say, then run the same command again",
      )
      _leave(lost, config_class)
    traceback.print_exc()
    _end_alone(1)


def _leave(error: UserError, config_class: type) -> NoReturn:
  """Prints a user's error and ends the process with its exit code."""
  print(config_lib.as_flags(str(error), config_class), file=sys.stderr)
  if jax.distributed.is_initialized() and not isinstance(error, Preempted):
    _end_alone(error.exit_code)
  sys.stdout.flush()
  sys.stderr.flush()
  sys.exit(error.exit_code)


def _end_alone(code: int) -> NoReturn:
  """Ends a process of several at once, and so the others that wait for it.

  At its usual end a process of JAX waits minutes for all others. They learn
  that it is gone when a collective fails, or after `PEER_TIMEOUT`.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  if jax.process_index() == 0:
    # Without process 0 JAX aborts the others, which may still have to print
    # the same error.
    time.sleep(LAST_WORDS)
  os._exit(code)


def _first_line(error: Exception) -> str:
  return str(error).splitlines()[0]


def train(
  config: TrainConfig, make_task: Callable[[Any], Task]
) -> dict[str, Any]:
  """Trains a task to its end, and resumes it if the workdir has checkpoints.

  Args:
    config: flags of the script.
    make_task: `make_task(config) -> task`. It is called before the workdir is
      created, so that errors in the data leave no workdir.

  Returns:
    The final metrics, which are also the last line of stdout.

  Raises:
    UserError: one of `recurrent.errors`, each with its cause and its remedy.
  """
  from recurrent.training.checkpoint import Checkpoints

  config.check()
  _show_log()
  profiling.parse(config.profile)  # Refuses a bad value early.
  if config.compilation_cache:
    jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
  hang = (
    None
    if is_url(config.workdir)
    else Path(config.workdir) / f"hang.{config.process}.txt"
  )
  with (
    Watchdog(config.heartbeat_seconds, hang) as watchdog,
    Preemption(watchdog) as preemption,
  ):
    join_processes(config)
    if jax.process_count() > 1:
      preemption.hold()  # The processes have to end together.
    watchdog.beat("reading the data")
    mesh = sharding.make_mesh(config.devices, config.model_parallel)
    sharding.check_batch_size("batch_size", config.batch_size, mesh)
    optim.make_optimizer(config, config.steps)  # Refuses bad flags early.
    if config.init_from and workdir_lib.read_config(config.workdir) is None:
      find_source(config.init_from)
    task = make_task(config)
    _check_name(task, make_task)
    shapes = nnx.eval_shape(lambda: task.make_model(nnx.Rngs(config.seed)))
    optimizer = optim.make_optimizer(
      config, config.steps, optim.decayed(shapes)
    )
    with (
      workdir_lib.full_disks(config.workdir),
      Workdir(config.workdir) as workdir,
    ):
      identity = {
        "experiment": task.name,
        **config.identity(),
        "data_sha256": task.data_sha256,
      }
      workdir.claim(identity, _about(config, task))
      if jax.process_index() == 0:
        task.save(workdir.path)
      result = _finished(workdir, config.steps)
      if result is not None:
        LOG.info("%s is finished: nothing to do.", workdir.name)
        return result
      with Checkpoints(
        workdir.checkpoints,
        workdir_lib.fingerprint(identity),
        workdir.publish,
      ) as checkpoints:
        result = _fit(
          config,
          task,
          mesh,
          optimizer,
          workdir,
          checkpoints,
          preemption,
          watchdog,
        )
      watchdog.beat("drawing the figures")
      if jax.process_index() == 0:
        _conclude(config, task, workdir, result)
      return result


def _show_log() -> None:
  """Shows the log where logging is not configured, as in a notebook."""
  if not LOG.hasHandlers():
    LOG.addHandler(_LastResort())
  if LOG.level == logging.NOTSET:
    LOG.setLevel(logging.INFO)


class _LastResort(logging.StreamHandler):
  """Writes to the current `sys.stderr`, unless the root logger has handlers."""

  def emit(self, record):
    """Writes a record."""
    if not logging.getLogger().handlers:
      self.stream = sys.stderr
      super().emit(record)


def _check_name(task, make_task):
  """Raises ConfigError if a task's name is not that of its module."""
  module = getattr(make_task, "func", make_task).__module__
  if module == "__main__":
    spec = getattr(sys.modules[module], "__spec__", None)
    module = getattr(spec, "name", module)
  package, _, name = module.rpartition(".")
  if package == "experiments" and name != task.name:
    raise ConfigError(
      f"Task.name is {task.name!r}, but its module is {module}",
      f"name it {name!r}: evaluate, generate and predict find it by that",
    )


def join_processes(config):
  """Initialises `jax.distributed` if the run has several processes."""
  if not config.coordinator:
    return
  # `Preemption` handles SIGTERM, so JAX's own preemption service is not needed.
  # Orbax would poll it with step numbers of its own, and it answers only once.
  jax.config.update("jax_enable_preemption_service", False)
  known = (
    {}
    if config.coordinator == "auto"
    else {
      "coordinator_address": config.coordinator,
      "num_processes": config.processes,
      "process_id": config.process,
    }
  )
  try:
    jax.distributed.initialize(
      **known,
      heartbeat_timeout_seconds=PEER_TIMEOUT,
      initialization_timeout=JOINING,
    )
  except (RuntimeError, ValueError) as error:
    raise PeerError(
      f"cannot join the other processes: {_first_line(error)}",
      f"start all of them within {JOINING} s, with a --coordinator that they"
      " can reach, the same --processes, and each its own --process",
    ) from error


def _fit(
  config, task, mesh, optimizer, workdir, checkpoints, preemption, watchdog
):
  """Restores or initialises the state, trains, and scores the best step."""
  from recurrent.training.progress import Progress
  from recurrent.training.writers import MetricsWriter

  init, graphdef = initialiser(config, task, optimizer)
  unit, count = task.units
  shapes = jax.eval_shape(init)
  shardings = step.state_sharding(mesh, shapes, zero=config.zero)
  template = jax.tree.map(_placed, shapes, shardings)
  train_step = step.make_train_step(
    graphdef,
    task.loss,
    optimizer,
    mesh,
    seed=config.seed,
    ema_decay=config.ema,
    learning_rate=optim.make_learning_rate(config, config.steps),
    zero=config.zero,
  )
  watchdog.beat("restoring or initialising")
  restored = checkpoints.restore_latest(template)
  if restored is None:
    state, outcome = jax.jit(init, out_shardings=shardings)(), loop.Outcome()
    if config.init_from:
      state = _fine_tuned(config.init_from, state)
  else:
    state, outcome = restored.state, loop.Outcome(**restored.progress)
    LOG.info("Resuming at step %d.", restored.step)
  LOG.info(
    "%s parameters on %d %s device(s), %s %s a step.",
    f"{_size(state.params):,}",
    mesh.size,
    jax.devices()[0].platform,
    f"{count(task.batches[0]):,}",
    unit,
  )
  to_evaluate = _evaluated_graphdef(config, task.make_model)
  score = make_evaluate(task, to_evaluate, mesh)
  sample = task.make_sample(to_evaluate)
  as_evaluated = sharding.columns(shapes.evaluated, mesh)
  place = lambda params, where: (
    params
    if config.model_parallel == 1 and not config.zero
    else jax.jit(lambda tree: tree, out_shardings=where)(params)
  )

  def evaluate(params, *args):
    return score(place(params, as_evaluated), *args)

  def show(at_step, params):
    return sample(place(params, sharding.replicated(mesh)), at_step)

  def is_before(row):
    """Whether a row was written before the checkpoint was saved."""
    return row["step"] <= (
      outcome.evaluated_step if task.objective in row else outcome.logged_step
    )

  watchdog.beat("training")
  batches, put, shares = _read_own_rows(config, task, mesh)
  begun = int(state.step)
  if begun >= config.steps:
    LOG.info("At step %d already: no steps are left.", begun)
  # The result of an earlier, shorter run would be out of date.
  workdir.remove(RESULT)
  average = "of the parameters' moving average, see --ema" if config.ema else ""
  with (
    _worker_processes(config, batches, begun) as batches,
    MetricsWriter(workdir.path, begun, is_before) as writer,
    Progress(begun, config.steps, unit, average) as progress,
  ):
    state, outcome = loop.fit(
      state,
      train_step,
      batches,
      loop.Hooks(
        put=put,
        evaluate=lambda params, stop: evaluate(params, "valid", stop),
        on_evaluation=show,
        describe=lambda means, at_step: describe_training(task, means),
        units=lambda batch: round(count(batch) * shares),
      ),
      loop.Schedule(
        steps=config.steps,
        log_every=config.log_every,
        eval_every=config.eval_every,
        checkpoint_every=config.checkpoint_every,
        patience=config.patience,
      ),
      objective=task.objective,
      outcome=outcome,
      checkpoints=checkpoints,
      writer=writer,
      progress=progress,
      preemption=preemption,
      profiler=profiling.Profiler(
        workdir.path / "profile", profiling.parse(config.profile)
      ),
    )
  last_step = int(state.step)
  best_step = outcome.best_step if outcome.best_step > 0 else last_step
  checkpoints.wait()
  watchdog.beat("scoring the best step")
  if best_step != last_step:
    state = checkpoints.restore(best_step, template).state
  scores = {}
  for split in task.scored:
    folder = workdir.figures if split == "test" else None
    found = evaluate(state.evaluated, split, preemption.agreed, folder)
    if found is None:
      raise Preempted(
        f"told to stop while the {split} split was scored; all steps are saved",
        "run the same command again to score it",
      )
    scores.update(found)
  params = state.evaluated_params
  return {
    "step": best_step,
    **files.finite(scores),
    "params": _size(params),
    "params_sha256": digest.tree_sha256(params),
    "last_step": last_step,
    "steps": config.steps,
  }


def _read_own_rows(config, task, mesh):
  """The batches of this process, how to put them, and one over its share."""
  where, rows = sharding.split_batch(mesh), config.batch_size
  own = sharding.own_rows(where, rows)
  if own == slice(0, rows):
    return task.batches, lambda batch: sharding.put(batch, where), 1
  put = lambda batch: sharding.put_rows(batch, where, own, rows)
  return OwnRows(task.batches, own), put, rows / (own.stop - own.start)


@contextlib.contextmanager
def _worker_processes(config, batches, begun):
  """The batches, read by processes of their own if the flags say so."""
  if not config.data_workers or begun >= config.steps:
    yield batches
    return
  from recurrent.data.workers import WorkerBatches  # Imports grain.

  read = WorkerBatches(batches, begun, config.steps, config.data_workers)
  try:
    yield read
  finally:
    read.close()


class Source(NamedTuple):
  """A checkpoint of another run, to start from.

  Attributes:
    workdir: directory of the run.
    steps: its checkpoints, the one to use first.
  """

  workdir: Path
  steps: list[int]


def find_source(init_from: str) -> Source:
  """Finds the run that `--init_from` names.

  Args:
    init_from: the directory of a run, its `checkpoints`, or one of these.

  Raises:
    CheckpointError: if there is no such checkpoint.
  """
  from recurrent.training.checkpoint import Checkpoints

  path = Path(init_from).expanduser().absolute()
  chosen = None
  if path.name.isdecimal() and path.parent.name == "checkpoints":
    chosen, path = int(path.name), path.parent
  path = path.parent if path.name == "checkpoints" else path
  checkpoints = Checkpoints(path / "checkpoints", "")
  steps = _best_first(path, checkpoints, checkpoints.steps()[::-1])
  steps = steps if chosen is None else [x for x in steps if x == chosen]
  if not steps:
    raise CheckpointError(
      f"--init_from={init_from} holds no checkpoint",
      "give the --workdir of a run, or a folder checkpoints/STEP in it",
    )
  return Source(path, steps)


def _fine_tuned(init_from: str, state: state_lib.TrainState):
  """Replaces the initial parameters by those of another run that fit."""
  from recurrent.training.checkpoint import Checkpoints

  source = find_source(init_from)
  identity = _read_values(source.workdir)
  checkpoints = Checkpoints(
    source.workdir / "checkpoints", workdir_lib.fingerprint(identity)
  )
  part = "ema" if identity.get("ema") else "params"
  old = checkpoints.restore_part(source.steps[0], part)
  new = digest.flatten(state.params)
  fits = [k for k in new if k in old and old[k].shape == new[k].shape]
  if not fits:
    raise CheckpointError(
      f"no parameter of --init_from={init_from} fits this model",
      "use the flags of the network that it was trained with",
    )
  left = [f"{k} {new[k].shape}" for k in new if k not in fits]
  LOG.info(
    "Starting from step %d of %s: %d of %d arrays of parameters.%s",
    source.steps[0],
    source.workdir,
    len(fits),
    len(new),
    f" Initialised anew: {', '.join(left)}." if left else "",
  )
  place = lambda name: jax.device_put(
    old[name].astype(new[name].dtype), new[name].sharding
  )
  replace = lambda: digest.unflatten(
    state.params, {k: place(k) if k in fits else new[k] for k in new}
  )
  params = replace()
  # The step donates both, so they must not share memory.
  ema = jax.tree.map(jnp.copy, params) if state.ema != () else ()
  return state._replace(params=params, ema=ema)


def make_evaluate(
  task: Task, graphdef: nnx.GraphDef, mesh: Mesh
) -> Callable[..., dict[str, Any] | None]:
  """Makes `evaluate(params, split, interrupted, folder=None) -> metrics`.

  The result is None if `interrupted()` is True before a batch. `params` are the
  parameters and other variables, for the graph definition in evaluation mode.
  With a folder, the figures of `task.report` are drawn into it and its text is
  shown.
  """
  score = evaluation.make_evaluator(
    graphdef,
    task.loss,
    mesh,
    make_carry=task.make_carry,
    predict=task.predict,
  )

  gather = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))

  def evaluate(params, split, interrupted, folder=None):
    if split not in task.splits:
      raise ConfigError(
        f"{task.name} has no {split} split to score",
        f"use one of {', '.join(task.splits)}",
      )
    scores = score(params, task.splits[split], interrupted)
    if scores is None:
      return None
    if folder is not None:
      whole = gather(params)
      if jax.process_index() == 0:
        folder.mkdir(exist_ok=True)
        here = jax.tree.map(lambda x: x.addressable_data(0), whole)
        model = nnx.merge(graphdef, here)
        if text := task.report(split, scores, folder, model):
          LOG.info("%s", text)
    return task.describe(split, scores)

  return evaluate


def describe_training(task: Task, means: dict[str, float]) -> dict[str, Any]:
  """The values of a row of training metrics, from the means of a step."""
  measured = {name: means.pop(name) for name in step.MEASURED}
  return {
    "train_loss": measured[step.LOSS],
    **task.describe("train", evaluation.Scores(means, {})),
    "grad_norm": measured[step.GRAD_NORM],
  }


def _conclude(config, task, workdir, result):
  """Draws the curves, writes the result, and prints commands to try next."""
  curves = figures.curves(workdir.path / "metrics.jsonl", workdir.figures)
  workdir.write(RESULT, files.to_json(result) + "\n")
  if is_url(config.workdir):  # The local copy will be gone.
    curves = f"{config.workdir}/figures/{curves.name}"
  place = shlex.quote(config.workdir)
  print(
    f"\nCurves: {curves}\nNext:\n"
    f"  python -m {task.next_command} --workdir={place}\n"
    f"  {shlex.join(_command(config, task))}"
    "   # goes on, with a larger --steps",
    file=sys.stderr,
  )


def find_experiment(
  workdir: str | Path, function: str = "make_task", otherwise: str = ""
) -> ModuleType:
  """Imports the script that made a run.

  Args:
    workdir: directory of the run.
    function: name of a function that the script must define.
    otherwise: what a script without that function lacks, as a predicate.

  Raises:
    CheckpointError: if the workdir has no run, or there is no such script.
    ConfigError: if the script does not define the function.
  """
  name = _read_values(workdir).get("experiment")
  try:
    module = importlib.import_module(f"experiments.{name}")
    if not hasattr(module, function):
      raise ConfigError(
        f"{name} {otherwise}", "use a run of another experiment"
      )
    return module
  except ModuleNotFoundError as error:
    if error.name != f"experiments.{name}":
      raise
    raise CheckpointError(
      f"{workdir} holds a run of {name}, which is not in experiments/",
      "use the version of the code that made it",
    ) from error


def read_config(workdir: str | Path, name: str, cls: type) -> Any:
  """Reads the configuration of a run from its `config.json`.

  Args:
    workdir: directory of the run.
    name: name of the experiment that the run must be of.
    cls: class of its configuration.

  Raises:
    CheckpointError: if the directory has no run of that experiment.
  """
  values = _read_values(workdir)
  if values.get("experiment") != name:
    raise CheckpointError(
      f"{workdir} holds a run of {values.get('experiment')}, not of {name}",
      "use a workdir of that experiment",
    )
  known = {field.name for field in dataclasses.fields(cls)}
  kept = {k: v for k, v in values.items() if k in known}
  return cls(**kept, workdir=str(workdir))


def _read_values(workdir):
  """Reads the experiment, the flags and the hash of the data of a run."""
  found = workdir_lib.read_config(workdir)
  if found is None:
    raise CheckpointError(
      f"{workdir} holds no run", "train one there first, or mend --workdir"
    )
  return found["config"]


class Trained(NamedTuple):
  """A trained model; `nnx.merge(graphdef, params)` is the model.

  Attributes:
    graphdef: graph definition of the model in evaluation mode.
    params: parameters and other variables.
    step: the training step that they are from.
  """

  graphdef: nnx.GraphDef
  params: PyTree
  step: int


def load_params(
  config: config_lib.RunConfig, make_model: Callable[[nnx.Rngs], nnx.Module]
) -> Trained:
  """Loads the best parameters of a run that can be read and verified.

  Args:
    config: configuration of the run, from `read_config`.
    make_model: `make_model(rngs) -> model`.

  Raises:
    CheckpointError: if there is no checkpoint, or all are damaged.
  """
  from recurrent.training.checkpoint import Checkpoints

  identity = _read_values(config.workdir)
  checkpoints = Checkpoints(
    Path(config.workdir) / "checkpoints",
    workdir_lib.fingerprint(identity),
  )
  graphdef = _evaluated_graphdef(config, make_model)
  _, params, variables = state_lib.split(_shapes(config, make_model))
  where = sharding.replicated(sharding.make_mesh(1))
  part = "ema" if config.ema else "params"
  template = jax.tree.map(
    lambda shape: _placed(shape, where), {part: params, "variables": variables}
  )
  steps = checkpoints.steps()[::-1]
  if not steps:
    raise CheckpointError(
      f"{config.workdir} holds no checkpoint yet", "train for longer"
    )
  failure = None
  for step_number in _best_first(config.workdir, checkpoints, steps):
    try:
      restored = checkpoints.restore(step_number, template)
      evaluated = state_lib.join(*restored.state.values())
      return Trained(graphdef, evaluated, restored.step)
    except CheckpointError as error:
      LOG.warning("%s", error.cause)
      failure = failure or error
  raise failure


def make_predictor(
  trained: Trained, predict: evaluation.Predict
) -> Callable[[Iterable[Any]], dict[str, list[np.ndarray]]]:
  """Makes a function that applies a trained model to batches without labels.

  Args:
    trained: from `load_params`.
    predict: `predict(model, batch) -> arrays [batch, ...]` by name.

  Returns:
    `apply(batches) -> predictions`, as in `evaluation.Scores`. It compiles one
    program for each shape of a batch, and keeps it for later calls.
  """
  score = evaluation.make_evaluator(
    trained.graphdef, None, sharding.make_mesh(1), predict=predict
  )

  def apply(batches):
    scores = score(trained.params, batches, lambda: False)
    assert scores is not None  # It was not interrupted.
    return scores.predictions

  return apply


def _best_first(workdir, checkpoints: "Checkpoints", steps: list[int]):
  """Sorts steps: that of the result, or else the best one, comes first."""
  result = read_result(workdir)
  if result is not None and result["step"] in steps:
    return sorted(steps, key=lambda s: s != result["step"])
  for number in steps:
    try:
      best = checkpoints.progress(number)["best_step"]
    except CheckpointError:
      continue
    return sorted(steps, key=lambda s: s != best)
  return steps


def initialiser(config, task, optimizer):
  """Returns a function that makes the initial state, and the graphdef."""

  def begin():
    model = task.make_model(nnx.Rngs(config.seed))
    return model, task.make_carry(model, config.batch_size)

  def metrics():
    model, carry = begin()
    return task.loss(model, carry, task.batches[0], jax.random.key(0))[1][1]

  names = [*jax.eval_shape(metrics), *step.MEASURED]

  def init():
    model, carry = begin()
    return state_lib.create(model, optimizer, carry, names, ema=config.ema > 0)

  graphdef = nnx.split(_shapes(config, task.make_model))[0]
  return lambda: init()[1], graphdef


def _shapes(config, make_model):
  """The model with shapes in place of arrays."""
  return nnx.eval_shape(lambda: make_model(nnx.Rngs(config.seed)))


def _evaluated_graphdef(config, make_model):
  """The graph definition of the model in evaluation mode (without dropout)."""
  model = _shapes(config, make_model)
  model.eval()
  return nnx.split(model)[0]


def _placed(shape, where):
  """A shape with a sharding, as Orbax needs it to restore an array."""
  return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)


def _finished(workdir: Workdir, steps: int) -> dict[str, Any] | None:
  """The result of a run that has reached its last step, or None."""
  result = read_result(workdir.path)
  if result is None:
    return None
  done = result["last_step"] >= steps or result["steps"] == steps
  return result if done else None


def read_result(path: str | Path) -> dict[str, Any] | None:
  """The contents of a workdir's `result.json`, or None if it has none."""
  try:
    return json.loads((Path(path) / RESULT).read_text())
  except (OSError, ValueError):
    return None


def _about(config, task) -> dict[str, Any]:
  """Versions, devices and command line, to record in `config.json`."""
  names = ("recurrent", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
  return {
    "versions": {
      "python": sys.version.split()[0],
      **{name: importlib.metadata.version(name) for name in names},
    },
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    "command": _command(config, task),
  }


def _command(config, task) -> list[str]:
  """The command line that gives a configuration."""
  # Flags that the launcher or the cluster adds for each process.
  elsewhere = ("coordinator", "processes", "process")
  given = config_lib.not_default(config)
  return ["python", "-m", f"experiments.{task.name}"] + [
    f"--{'' if value else 'no'}{name}"
    if isinstance(value, bool)
    else f"--{name}={value}"
    for name, value in given.items()
    if name not in elsewhere
  ]


def _size(params: PyTree) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(params))
