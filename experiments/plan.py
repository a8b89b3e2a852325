r"""Plans a training run on machines that one need not have.

  python -m experiments.plan --topology=v5e:16x16 \
      -- experiments.language_model --features=2048 --batch_size=4096
  python -m experiments.plan --topology=h100:8 \
      -- experiments.language_model --features=2048

It takes the flags of any experiment and prints the memory of its train step a
chip, FLOPs, communication, the largest batch that fits, an estimate of the time
of a step, and where more chips stop to pay. A run that does not fit is refused
with exit code 2.

For TPUs the step is compiled by libtpu, which needs no TPU (docs/plan.md tells
how to get it): its memory and communication are those of the real program. For
GPUs they are computed from the traced step. Times are estimates in both cases.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import math
import os
import re
import shlex
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh

from experiments import config as config_lib
from experiments import programs, runner
from experiments.benchmarks import ahead, report, roofline
from recurrent import compile_for, optim, sharding
from recurrent.errors import ConfigError, UserError
from recurrent.training import step

GIB = 1 << 30
# By the name in --topology: the platform, and the name of the device.
CHIPS = {
  "v4": ("tpu", "TPU v4"),
  "v5e": ("tpu", "TPU v5e"),
  "v5p": ("tpu", "TPU v5"),
  "v6e": ("tpu", "TPU v6"),
  "h200": ("gpu", "H200"),
  "h100": ("gpu", "H100"),
  "a100": ("gpu", "A100"),
  "a100-40gb": ("gpu", "A100-SXM4-40GB"),
  "l4": ("gpu", "L4"),
  "t4": ("gpu", "T4"),
}
# The share of the memory that a program may take: XLA keeps some of a TPU's,
# and JAX takes three quarters of a GPU's unless it is told otherwise.
SHARE = {"tpu": 15.75 / 16, "gpu": 0.75}
# A doubling of the chips pays if it makes steps this much faster.
PAYS = 1.5


@dataclasses.dataclass(frozen=True)
class Config(config_lib.Checked):
  """Flags of the plan; those of the experiment follow after --.

  Args:
    topology: kind and number of chips: v4:2x2x1, v5e:16x16, v5p:2x2x1, v6e:8x8
      for TPUs; h100:8, h200:8, a100:8, a100-40gb:8, l4:1, t4:1 for GPUs.
    largest_batch: look for the largest batch that fits, which takes some more
      compilations.
    experiment: the experiment's module and its flags.
  """

  topology: str = ""
  largest_batch: bool = True
  experiment: str = ""

  NEEDS_WORKDIR: typing.ClassVar[bool] = False
  REST: typing.ClassVar[str] = "experiment"

  def check(self) -> None:
    """Raises ConfigError if a value is wrong."""
    super().check()
    if not self.experiment:
      raise ConfigError(
        "no experiment to plan",
        "name one after --, as in: -- experiments.language_model --layers=2",
      )
    machine(self.topology)


class Machine(NamedTuple):
  """Chips to plan for.

  Attributes:
    topology: as in --topology.
    platform: "tpu" or "gpu".
    chips: their number.
    peak: their published peaks.
  """

  topology: str
  platform: str
  chips: int
  peak: roofline.Peak

  @property
  def limit(self) -> float:
    """Bytes that a program may take on a chip."""
    return SHARE[self.platform] * self.peak.capacity

  def transfer(self, bytes_summed: float, chips: int) -> float:
    """Seconds to sum arrays over chips.

    Each chip of a group sums and sends its part to the others of the group, and
    to the same chip of other groups.
    """
    group = min(chips, self.peak.group)
    groups = -(-chips // self.peak.group)
    inside = 2 * (group - 1) / group * bytes_summed / self.peak.link
    across = 2 * (groups - 1) / groups * bytes_summed / group
    return inside + across / self.peak.network


def machine(topology: str) -> Machine:
  """Reads a topology.

  Raises:
    ConfigError: if it is unknown.
  """
  kind, _, sides = topology.partition(":")
  if kind not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sides):
    raise ConfigError(
      f"--topology={topology!r} is unknown",
      f"use KIND:NUMBER or KIND:AxB, with one of {', '.join(CHIPS)}",
    )
  platform, name = CHIPS[kind]
  peak = roofline.find(name)
  assert peak is not None
  chips = math.prod(map(int, sides.split("x")))
  return Machine(topology, platform, chips, peak)


class Experiment(NamedTuple):
  """An experiment to plan: what `runner.train` makes of its flags."""

  config: Any
  task: runner.Task
  optimizer: Any

  def step(self, mesh: Any, rows: int) -> tuple[Any, Any, Any]:
    """The train step of `runner`, and the shapes of its arguments.

    Args:
      mesh: the mesh of devices.
      rows: rows of the global batch.

    Returns:
      The jitted step, the state, and a batch.
    """
    config = dataclasses.replace(self.config, batch_size=rows)
    given = len(jax.tree.leaves(self.task.batches[0])[0])
    resize = lambda x: np.broadcast_to(x[:1], (rows, *x.shape[1:]))
    batch = self.task.batches[0]
    if rows != given:
      batch = jax.tree.map(resize, batch)
    task = self.task._replace(batches=[batch])
    init, graphdef = runner.initialiser(config, task, self.optimizer)
    train_step = step.make_train_step(
      graphdef,
      task.loss,
      self.optimizer,
      mesh,
      seed=config.seed,
      ema_decay=config.ema,
      learning_rate=optim.make_learning_rate(config, config.steps),
      zero=config.zero,
    )
    shapes = jax.eval_shape(init)
    where = step.state_sharding(mesh, shapes, zero=config.zero)
    rows_of = sharding.split_batch(mesh)
    return (
      train_step,
      jax.tree.map(_placed, shapes, where),
      jax.tree.map(lambda x: _placed(x, rows_of), batch),
    )


def _placed(array, where):
  """The shape of an array, with a sharding."""
  return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where)


def find(text: str, target: Machine, **changes: Any) -> Experiment:
  """Finds an experiment by its command line.

  Args:
    text: its module and flags, as in a shell.
    target: the chips to plan for.
    **changes: flags that replace those of the command line.

  Raises:
    UserError: if there is no such experiment, or its flags or data are wrong.
  """
  name, *flags = shlex.split(text)
  try:
    module = importlib.import_module(name)
    make_task, kind = module.make_task, module.Config
  except (ImportError, AttributeError, ValueError) as error:
    raise ConfigError(
      f"{name} is no experiment: {error}",
      "name a module with `make_task` and `Config`, such as"
      " experiments.language_model",
    ) from error
  if not any(re.match("--?workdir", flag) for flag in flags):
    flags.append("--workdir=none")
  config = config_lib.parse(kind, [name, *flags])
  config = dataclasses.replace(config, **changes)
  with compile_for(target.platform, target.chips):
    task = make_task(config)
  return Experiment(config, task, optim.make_optimizer(config, config.steps))


class Memory(NamedTuple):
  """Bytes that a train step takes on a chip.

  Attributes:
    used: all of it.
    limit: what a program may take.
    parts: bytes by what they are for.
    text: the compiled program; empty if it does not fit, or for a GPU.
  """

  used: float
  limit: float
  parts: dict[str, float]
  text: str = ""


def compiled(
  experiment: Experiment, target: Machine, mesh: Any, rows: int
) -> Memory:
  """Compiles the train step for a TPU and returns the memory it takes."""
  with compile_for("tpu", target.chips):
    train_step, state, batch = experiment.step(mesh, rows)
    lowered = train_step.lower(state, batch)
  parts = _parts(state, batch)
  try:
    executable = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    used, limit = _exceeded(str(error))
    parts["temporary"] = max(0.0, used - sum(parts.values()))
    return Memory(used, limit, parts)
  found: Any = executable.memory_analysis()
  parts["temporary"] = (
    found.temp_size_in_bytes
    + found.output_size_in_bytes
    - found.alias_size_in_bytes
  )
  parts["program"] = found.generated_code_size_in_bytes
  # Counters, and the padding of arrays to whole tiles.
  parts["rest"] = found.argument_size_in_bytes - sum(
    x for k, x in parts.items() if k not in ("temporary", "program")
  )
  return Memory(sum(parts.values()), target.limit, parts, executable.as_text())


def _exceeded(message: str) -> tuple[float, float]:
  """Reads how much memory a program would need from XLA's error.

  Raises:
    UserError: if the error is about something else.
  """
  number = r"([\d.]+)([KMGT])"
  found = re.search(rf"Used {number} of {number} hbm", message) or re.search(
    # What it calls temporaries contains the arguments.
    rf"temporaries \({number}\) exceeds available HBM \({number}\)",
    message,
  )
  if not found:
    lines = message.strip().splitlines() or [""]
    raise UserError(
      f"the train step does not compile: {lines[0][:300]}",
      "use another --method, or other sizes",
    )
  units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
  amount = lambda i: float(found[i]) * units[found[i + 1]]
  return amount(1), amount(3)


def _parts(state: Any, batch: Any) -> dict[str, float]:
  """Bytes of a chip's shards of the arguments of a train step."""

  def shard(x):
    return math.prod(x.sharding.shard_shape(x.shape)) * programs.size(
      jax.ShapeDtypeStruct((), x.dtype)
    )

  parts = {
    "parameters": state.params,
    "optimiser": state.opt_state,
    "average": state.ema,
    "carry": state.carry,
    "batch": batch,
  }
  found = {
    name: float(sum(map(shard, jax.tree.leaves(tree))))
    for name, tree in parts.items()
  }
  return {name: x for name, x in found.items() if x}


def traced(
  experiment: Experiment, target: Machine, mesh: Any, rows: int
) -> Memory:
  """Computes the memory of the train step on a GPU, without compiling it."""
  _, state, batch = experiment.step(mesh, rows)
  parts = _parts(state, batch)
  with _plain():
    one = _one_device()
    each = max(1, rows // mesh.shape[sharding.DATA])
    train_step, *shapes = experiment.step(one, each)
    jaxpr = train_step.trace(*shapes).jaxpr.jaxpr
  parts["temporary"] = programs.temporary(jaxpr)
  return Memory(sum(parts.values()), target.limit, parts)


@contextlib.contextmanager
def _plain() -> Iterator[None]:
  """Chooses implementations in plain JAX, whose cost can be counted."""
  with compile_for("none", 2):
    yield


def _one_device() -> Any:
  return sharding.mesh_of(jax.devices("cpu")[:1])


class Cost(NamedTuple):
  """What a step costs on a chip, by the rows it has.

  Attributes:
    fixed: what does not depend on the rows.
    each: for each row.
    update: bytes of the update of the parameters.
    summed: bytes that are summed over the chips, such as the gradients.
  """

  fixed: programs.Counts
  each: programs.Counts
  update: float
  summed: float

  def at(self, rows: float) -> programs.Counts:
    """The cost with a number of rows."""
    return self.fixed.plus(self.each.times(rows))

  def seconds(self, target: Machine, rows: float, chips: int) -> dict:
    """Estimates the time of a step, by what takes it.

    Args:
      target: the kind of chips.
      rows: rows of a chip.
      chips: number of chips that sum their gradients.
    """
    peak, counts = target.peak, self.at(rows)
    return {
      "products": counts.narrow / peak.narrow + counts.wide / peak.single,
      "memory": (counts.bytes + self.update) / peak.memory,
      "communication": target.transfer(self.summed, chips),
    }


def cost(
  experiment: Experiment, target: Machine, memory: Memory, rows: int
) -> Cost:
  """Counts what a step costs on a chip, from the traced step.

  Args:
    experiment: the experiment, with a method in plain JAX.
    target: the chips.
    memory: that of a step.
    rows: rows of a chip.

  Returns:
    The cost. Chips that share matrices share their products evenly.
  """
  model_parallel = experiment.config.model_parallel

  def count(number):
    with _plain():
      train_step, *shapes = experiment.step(_one_device(), number)
      jaxpr = train_step.trace(*shapes).jaxpr.jaxpr
    total, once = programs.count(jaxpr, model_parallel * target.peak.on_chip)
    return total.plus(once).times(1 / model_parallel)

  less, more = count(rows), count(2 * rows)
  each = more.plus(less.times(-1)).times(1 / rows)
  fixed = less.plus(each.times(-rows))
  parts = memory.parts
  kept = sum(parts.get(k, 0) for k in ("parameters", "optimiser", "average"))
  gradients = parts["parameters"]
  # An all-reduce sends everything twice, other communication once.
  summed = gradients
  if memory.text:
    summed = sum(
      c.bytes * (1.0 if c.kind == "all-reduce" else 0.5)
      for c in programs.collectives(memory.text)
      if not c.in_loop
    )
  return Cost(
    fixed._replace(unknown=less.unknown),
    each._replace(unknown=0),
    2 * kept + 2 * gradients,
    summed,
  )


def total(seconds: dict) -> float:
  """The time of a step, in which communication overlaps with nothing."""
  both = max(seconds["products"], seconds["memory"])
  return both + seconds["communication"]


def scaling(
  target: Machine, spent: Cost, rows: int, parts: int = 1
) -> list[dict[str, Any]]:
  """Estimates the step of one global batch on more and more chips.

  Args:
    target: the kind of chips; there are up to four times as many in the table.
    spent: what a step costs.
    rows: rows of the global batch.
    parts: number of chips that share the matrices of a model.
  """
  found: list[dict[str, Any]] = []
  groups = 1
  while groups <= min(rows, 4 * target.chips // parts):
    seconds = total(spent.seconds(target, rows / groups, groups))
    first = found[0]["ms a step"] if found else 1e3 * seconds
    found.append(
      {
        "chips": groups * parts,
        "rows a chip": rows / groups,
        "ms a step": 1e3 * seconds,
        "efficiency": first / (groups * 1e3 * seconds),
      }
    )
    groups *= 2
  return found


def where_it_pays(table: list[dict[str, Any]]) -> int:
  """The number of chips after which a doubling is not worth its price."""
  for before, after in zip(table, table[1:], strict=False):
    if before["ms a step"] < PAYS * after["ms a step"]:
      return before["chips"]
  return table[-1]["chips"]


def largest(
  measure: Callable[[int], Memory],
  first: Memory,
  rows: int,
  chips: int,
  tries: int,
  slope: float = 0.0,
) -> int:
  """Finds about the largest batch that fits.

  Beyond some size memory is linear in the rows. So a line through two
  measurements gives a guess, which is then measured.

  Args:
    measure: returns the memory with a number of rows of the global batch.
    first: that with `rows`.
    rows: rows of the global batch.
    chips: number of chips, which divides the rows.
    tries: how often to measure.
    slope: about the bytes of a row, for the first guess; 0: unknown.

  Returns:
    Rows that fit; 0 if not even one row a chip was found to.
  """
  known = {rows: first}
  while tries > 0:
    tries -= 1
    fits = max((n for n, m in known.items() if _fits(m)), default=0)
    too_many = min((n for n, m in known.items() if not _fits(m)), default=None)
    if fits and known[fits].used > 0.97 * first.limit:
      break
    guess = 16.0 * fits if too_many is None else (fits + too_many) / 2
    # The two that are nearest to the limit.
    near = sorted(known, key=lambda n: abs(known[n].used - first.limit))[:2]
    a, b = min(near), max(near)
    if a < b:
      slope = (known[b].used - known[a].used) / (b - a)
    if slope > 0:
      line = a + (0.98 * first.limit - known[a].used) / slope
      guess = min(line, 16.0 * (fits or too_many or 1))
    number = max(int(guess) // chips, 1) * chips
    if too_many is not None:
      number = min(number, too_many - chips)
    number = max(number, fits + chips if fits else chips)
    if number in known or number == too_many or number < chips:
      break
    known[number] = measure(number)
  return max((n for n, m in known.items() if _fits(m)), default=0)


def _fits(memory: Memory) -> bool:
  return memory.used <= memory.limit


def run(config: Config) -> dict[str, Any]:
  """Plans; returns the figures.

  Raises:
    UserError: if the run does not fit (exit code 2), or something is missing.
  """
  target = machine(config.topology)
  experiment = find(config.experiment, target)
  rows = experiment.config.batch_size
  parts = experiment.config.model_parallel
  if target.chips % parts:
    raise ConfigError(
      f"--model_parallel={parts} does not divide {target.chips} chips",
      "use a number that does",
    )
  groups = target.chips // parts  # each of which has rows of its own
  measure: Callable[[int], Memory]
  mesh: Any
  if target.platform == "tpu":
    if importlib.util.find_spec("libtpu") is None:
      raise UserError(
        f"--topology={config.topology} needs libtpu, which is not installed",
        "run `make .venv/libtpu` once, then with PYTHONPATH=.venv/libtpu",
      )
    devices = ahead.devices(config.topology)
    mesh = sharding.mesh_of(devices, parts)
    measure = lambda rows: compiled(experiment, target, mesh, rows)
  else:
    sides = {sharding.DATA: target.chips // parts, sharding.MODEL: parts}
    mesh = AbstractMesh(tuple(sides.values()), tuple(sides))
    measure = lambda rows: traced(experiment, target, mesh, rows)
  sharding.check_batch_size("batch_size", rows, mesh)
  memory = measure(rows)
  plain = experiment
  if experiment.config.method != "auto":
    plain = find(config.experiment, target, method="auto")
  spent = cost(plain, target, memory, max(1, rows // groups))
  result = _describe(config, target, experiment, memory, spent)
  most = 0
  if config.largest_batch:
    tries, slope = 16, 0.0
    if target.platform == "tpu":
      # Compilations take long, and begin with a guess by formula.
      guesses = [traced(plain, target, mesh, n * rows).used for n in (64, 128)]
      tries, slope = 3, (guesses[1] - guesses[0]) / (64 * rows)
    most = largest(measure, memory, rows, groups, tries, slope)
    result["largest_batch_size"] = most
    print(
      f"The largest batch that fits is about {most:,} rows,"
      f" {most // groups:,} a chip."
      if most
      else "Not even a batch of one row a chip fits."
    )
  if not _fits(memory):
    raise ConfigError(
      f"a step of {rows} rows needs {memory.used / GIB:.2f} GiB a chip, and"
      f" {config.topology} has {memory.limit / GIB:.2f} GiB for it",
      f"use --batch_size={most}"
      if most
      else "divide the state by --zero or --model_parallel, or use a smaller"
      " model, shorter sequences, --ema=0, or an --optimizer with less state",
    )
  return result


def _describe(config, target, experiment, memory, spent):
  """Prints the plan and returns its figures."""
  rows = experiment.config.batch_size
  parts = experiment.config.model_parallel
  groups = target.chips // parts
  each = rows / groups
  unit, units = experiment.task.units
  print(f"{config.experiment}\non {target.chips} x {target.topology}\n")
  by = "compiled" if target.platform == "tpu" else "by formula"
  table = [
    {"memory of a chip": name, "GiB": f"{x / GIB:.3f}"}
    for name, x in memory.parts.items()
  ]
  table.append({"memory of a chip": "all", "GiB": f"{memory.used / GIB:.3f}"})
  table.append(
    {"memory of a chip": "it has", "GiB": f"{memory.limit / GIB:.3f}"}
  )
  print(report.table(table[0], (row.values() for row in table)), f"({by})\n")
  counts = spent.at(each)
  seconds = spent.seconds(target, each, groups)
  per_step = units(experiment.task.batches[0])
  found = programs.collectives(memory.text)
  for c in found:
    where = " in a loop, at each iteration" if c.in_loop else ""
    print(f"{c.number} {c.kind}{where}: {c.bytes / 2**20:.2f} MiB a chip")
  if not found and target.chips > 1:
    print(
      f"one all-reduce of the gradients (by formula):"
      f" {spent.summed / 2**20:.2f} MiB a chip"
    )
  flops = counts.narrow + counts.wide
  print(
    f"\nproducts: {flops / 1e9:.1f} GFLOP a chip and step, and"
    f" {(counts.bytes + spent.update) / GIB:.2f} GiB to read and write"
  )
  if parts > 1:
    print("(communication in loops is not in the estimate)")
  if counts.unknown:
    print(f"({counts.unknown} loops of unknown length are counted once)")
  time = total(seconds)
  told = ", ".join(f"{name} {1e3 * x:.2f}" for name, x in seconds.items())
  print(
    f"ESTIMATE of a step: at least {1e3 * time:.2f} ms ({told}), so at most"
    f" {per_step / time:,.0f} {unit} a second; not measured\n"
  )
  more = scaling(target, spent, rows, parts)
  shown = [
    {
      "chips": row["chips"],
      "rows a chip": f"{row['rows a chip']:g}",
      "ms a step": f"{row['ms a step']:.2f}",
      "efficiency": f"{row['efficiency']:.0%}",
    }
    for row in more
  ]
  print(report.table(shown[0], (row.values() for row in shown)))
  best = where_it_pays(more)
  print(
    f"(estimates of the same batch of {rows:,} rows) More than {best} chips do"
    f" not pay: twice as many would be less than {PAYS:g} times as fast.\n"
  )
  return {
    "topology": target.topology,
    "chips": target.chips,
    "batch_size": rows,
    "bytes_a_chip": memory.used,
    "bytes_limit": memory.limit,
    "parts": memory.parts,
    "gflop_a_chip": flops / 1e9,
    "bytes_moved_a_chip": counts.bytes + spent.update,
    "collectives": [c._asdict() for c in found],
    "estimated_seconds": {**seconds, "step": time},
    "chips_that_pay": best,
  }


def main() -> None:
  """Runs the script on the CPU, whatever devices there are."""
  jax.config.update("jax_platforms", "cpu")
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  runner.main(run, Config)


if __name__ == "__main__":
  main()
