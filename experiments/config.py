"""Configurations: frozen dataclasses whose fields are a script's flags.

The help text of a flag is the field's entry under `Args` in the docstring of
its class, and the type of the flag is that of the field. Notebooks and tests
construct the dataclass directly; `parse` makes it from a command line.
"""

import contextlib
import dataclasses
import difflib
import functools
import math
import operator
import re
import shlex
import sys
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags

from recurrent.errors import ConfigError
from recurrent.unroll import RENAMED


@dataclasses.dataclass(frozen=True)
class Checked:
  """Base class of configurations, which checks the values of its fields.

  Numbers must be finite and at least 0; class variables name the fields with
  stricter limits. A class states only what it adds: its tables are merged with
  those of its base classes, and an entry of a subclass replaces that of a base.

  Args:
    workdir: directory of the run.
  """

  workdir: str = ""

  NEEDS_WORKDIR: typing.ClassVar[bool] = True
  WORKDIR_MAY_BE_URL: typing.ClassVar[bool] = False
  POSITIVE: typing.ClassVar[frozenset[str]] = frozenset()
  BELOW_ONE: typing.ClassVar[frozenset[str]] = frozenset()
  CHOICES: typing.ClassVar[dict[str, Sequence[str]]] = {}
  # Values that replace the defaults if `smoke` is True; values that are given
  # take precedence.
  SMOKE: typing.ClassVar[dict[str, Any]] = {}
  # Maps a flag to (other flag, values). Unless the other flag has one of these
  # values, the flag would have no effect and is refused.
  NEEDS: typing.ClassVar[dict[str, tuple[str, Sequence[Any]]]] = {}
  # The field that takes what follows `--` on a command line, as one text.
  REST: typing.ClassVar[str] = ""

  def __init_subclass__(cls, **options):
    super().__init_subclass__(**options)
    for name in ("POSITIVE", "BELOW_ONE", "CHOICES", "SMOKE", "NEEDS"):
      tables = [vars(base).get(name) for base in reversed(cls.__mro__)]
      tables = [table for table in tables if table is not None]
      setattr(cls, name, functools.reduce(operator.or_, tables))

  def __new__(cls, *values, **named):
    """Notes which values are given, for `SMOKE`."""
    config = super().__new__(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    object.__setattr__(config, "_given", {*names[: len(values)], *named})
    return config

  def __post_init__(self):
    if getattr(self, "smoke", False):
      for name in self.SMOKE.keys() - self._given:
        object.__setattr__(self, name, self.SMOKE[name])

  def check(self) -> None:
    """Raises ConfigError if a value is wrong."""
    if self.NEEDS_WORKDIR and not self.workdir:
      raise ConfigError(
        "--workdir is missing", "add --workdir=DIR, the directory of the run"
      )
    if "://" in self.workdir and not self.WORKDIR_MAY_BE_URL:
      raise ConfigError(
        f"--workdir={self.workdir}: this script reads local folders only",
        "copy the workdir, as in: gcloud storage cp -r URL FOLDER",
      )
    for field in dataclasses.fields(self):
      name, value = field.name, getattr(self, field.name)
      words = _words(field)
      if words and isinstance(value, str) and value not in words:
        raise ConfigError(
          f"--{name}={value} is unknown",
          f"use a whole number or {' or '.join(words)}",
        )
      if not isinstance(value, _types(field)):
        wanted = " or ".join(t.__name__ for t in _types(field))
        raise ConfigError(
          f"--{name}={value!r} is a {type(value).__name__}", f"give: {wanted}"
        )
      if isinstance(value, bool) or not isinstance(value, int | float):
        continue
      low = 1 if name in self.POSITIVE else 0
      if not math.isfinite(value) or value < low:
        raise ConfigError(
          f"--{name}={value} is out of range",
          f"use a finite number of at least {low}",
        )
      if name in self.BELOW_ONE and value >= 1:
        raise ConfigError(
          f"--{name}={value} is out of range", "use a number below 1"
        )
    for name, choices in self.CHOICES.items():
      if getattr(self, name) not in choices:
        raise ConfigError(
          f"--{name}={getattr(self, name)} is unknown",
          f"{_nearest(name, getattr(self, name), choices)}use one of"
          f" {', '.join(choices)}",
        )
    # `parse` also refuses such a flag when its value is the default.
    _refuse_idle_flags(self, not_default(self))


@dataclasses.dataclass(frozen=True)
class RunConfig(Checked):
  """Flags of a run, common to all training scripts.

  Args:
    workdir: directory of the run, or the URL of a folder in an object store,
      such as gs://bucket/run; the same command, run again, resumes it.
    steps: total number of training steps.
    batch_size: number of rows of the global batch, over all devices.
    seed: seed of the initial parameters, the data order and the dropout.
    log_every: number of steps between rows of training metrics.
    eval_every: number of steps between evaluations; there is also one at the
      end.
    checkpoint_every: number of steps between checkpoints; 0 saves at
      evaluations.
    patience: stop after this many evaluations in a row without a new best one;
      0: never.
    ema: decay of a moving average of the parameters; 0: none. The average is
      then evaluated and sampled from. Early in training it covers only the last
      tenth of the steps.
    init_from: directory of another run, or of one of its checkpoints. The run
      starts from its parameters wherever they have the same name and shape.
    devices: number of devices to use; 0: all.
    model_parallel: number of devices over which each matrix of the model is
      divided, by columns, for models that do not fit one device. It divides
      --devices; each group of that many devices has its own rows of a batch.
    zero: divide the state of the optimiser over the devices, instead of a copy
      on each of them.
    coordinator: address host:port of process 0, for a run of several processes,
      or auto on clusters that JAX can ask for it (TPU pods, SLURM).
    processes: number of processes; not needed with --coordinator=auto.
    process: number of this process, from 0; not needed with
      --coordinator=auto.
    compilation_cache: directory, or URL in an object store, in which compiled
      programs are kept for later runs; by default that of
      $JAX_COMPILATION_CACHE_DIR, or none.
    profile: steps of which a trace is recorded into profile/ of the workdir, as
      START,STEPS; TensorBoard shows it with the plugin xprof.
    data_workers: number of processes that read batches ahead; 0: a thread of
      this one, which suffices where batches are cheap, as those of text.
    heartbeat_seconds: a process that makes no progress for so long writes the
      stacks of its threads to hang.PROCESS.txt in the workdir and ends with the
      exit code 7; 0: it waits for ever. It must be longer than the compilation
      of a step, an evaluation's batch and a save.
    smoke: makes a few small steps, to test that everything works.
  """

  steps: int = 1000
  batch_size: int = 32
  seed: int = 0
  log_every: int = 50
  eval_every: int = 500
  checkpoint_every: int = 0
  patience: int = 0
  ema: float = 0.0
  init_from: str = ""
  devices: int = 0
  model_parallel: int = 1
  zero: bool = False
  coordinator: str = ""
  processes: int = 0
  process: int = 0
  compilation_cache: str = ""
  profile: str = ""
  data_workers: int = 0
  heartbeat_seconds: float = 0.0
  smoke: bool = False

  WORKDIR_MAY_BE_URL: typing.ClassVar[bool] = True
  # Flags that may change when a run is resumed in its workdir.
  OPERATIONAL: typing.ClassVar[frozenset[str]] = frozenset(
    "workdir steps checkpoint_every devices model_parallel zero coordinator"
    " processes process compilation_cache profile data_workers"
    " heartbeat_seconds smoke".split()
  )
  POSITIVE: typing.ClassVar[frozenset[str]] = frozenset(
    "steps batch_size log_every eval_every model_parallel".split()
  )
  BELOW_ONE: typing.ClassVar[frozenset[str]] = frozenset(("ema",))
  SMOKE: typing.ClassVar[dict[str, Any]] = {
    "steps": 4,
    "batch_size": 8,
    "log_every": 2,
    "eval_every": 2,
  }

  def identity(self) -> dict[str, Any]:
    """The values that determine the results of a run."""
    return {
      key: value
      for key, value in dataclasses.asdict(self).items()
      if key not in self.OPERATIONAL
    }


def parse(cls: type[Checked], argv: Sequence[str]) -> Any:
  """Makes a configuration from a command line.

  Args:
    cls: a subclass of `Checked`.
    argv: the command line; its first item is the program.

  Returns:
    An instance of `cls` whose values have been checked.

  Raises:
    ConfigError: if a flag is unknown, or values are wrong or contradictory.
    SystemExit: after --help.
  """
  values = flags.FlagValues()
  helps = _helps(cls)
  for field in dataclasses.fields(cls):
    _define(field, helps.get(field.name, ""), values)
  flags.DEFINE_bool("help", False, "show this help", flag_values=values)
  argv, end = list(argv), len(argv)
  if cls.REST and "--" in argv:
    end = argv.index("--")
  try:
    rest = values(argv[:end])[1:]
  except flags.UnrecognizedFlagError as error:
    raise ConfigError(
      f"no flag --{error.flagname}", _hint(error.flagname, helps)
    ) from error
  except flags.Error as error:
    raise ConfigError(str(error), "--help tells what it takes") from error
  if values.help:
    about = sys.modules[cls.__module__].__doc__ or ""
    print(f"{about.strip()}\n{values.get_help()}", flush=True)
    raise SystemExit(0)
  if rest:
    raise ConfigError(
      f"unexpected argument {rest[0]!r}", "flags look like --name=value"
    )
  given: dict[str, Any] = {
    field.name: values[field.name].value
    for field in dataclasses.fields(cls)
    if values[field.name].present
  }
  if end < len(argv):
    given[cls.REST] = shlex.join(
      shlex.split(given.get(cls.REST, "")) + argv[end + 1 :]
    )
  config = cls(**given)
  _refuse_idle_flags(config, given)
  config.check()
  return config


def as_flags(message: str, cls: type[Checked]) -> str:
  """Writes the arguments that a message names as flags.

  Args:
    message: the text of a `UserError`, in which "`name`" and "`name=value`" are
      arguments (see `recurrent.errors`).
    cls: the class of the configuration. Names that are not its fields are left
      as they are.

  Returns:
    The message with "--name" and "--name=value" in their place.
  """
  names = {field.name for field in dataclasses.fields(cls)}
  flag = lambda match: f"--{match[1]}" if match[2] in names else match[0]
  return re.sub("`((\\w+)(?:=[^`]*)?)`", flag, message)


def _refuse_idle_flags(config, given):
  """Raises ConfigError if a given flag would have no effect (see `NEEDS`)."""
  for name, (other, wanted) in config.NEEDS.items():
    if name in given and getattr(config, other) not in wanted:
      raise ConfigError(
        f"--{name} does nothing with --{other}={getattr(config, other)!s}",
        f"leave it out, or use another --{other}"
        if len(wanted) > 4
        else f"leave it out, or use --{other}={' or '.join(map(str, wanted))}",
      )


def not_default(config: Checked) -> dict[str, Any]:
  """The values of a configuration that differ from its class's defaults."""
  return {
    field.name: getattr(config, field.name)
    for field in dataclasses.fields(config)
    if getattr(config, field.name) != field.default
  }


# Names that other frameworks use for a flag; the first of each is that of ours.
_SYNONYMS = [
  words.split()
  for words in (
    "learning_rate lr eta step_size",
    "features hidden_size hidden_dim hidden_units hidden units num_units"
    " rnn_size nhid n_hidden num_hidden d_model width dim size",
    "layers num_layers n_layers nlayers depth num_hidden_layers",
    "steps epochs num_epochs n_epochs max_epochs max_steps num_steps"
    " train_steps num_train_steps iterations max_iters",
    "batch_size batch bs train_batch_size per_device_train_batch_size",
    "seq_len bptt sequence_length seq_length max_length max_len block_size"
    " context_length window",
    "cell rnn_type cell_type rnn model arch model_type",
    "embedding_features emb_size emsize embed_dim embedding_dim embedding_size",
    "optimizer optim opt",
    "schedule scheduler lr_scheduler lr_schedule",
    "warmup_steps warmup num_warmup_steps",
    "weight_decay wd",
    "clip_norm clip grad_clip gradient_clip clip_grad_norm max_grad_norm"
    " gradient_clip_val",
    "accumulate accum gradient_accumulation_steps accumulate_grad_batches",
    "b1 beta1 beta_1",
    "b2 beta2 beta_2",
    "dropout drop dropout_rate p_dropout",
    "ema ema_decay polyak",
    "patience early_stopping early_stopping_patience",
    "eval_every eval_interval eval_steps evaluation_steps val_check_interval",
    "log_every log_interval logging_steps",
    "checkpoint_every save_every save_steps save_interval",
    "workdir output_dir out_dir outdir logdir log_dir model_dir save_dir"
    " checkpoint_dir out output save",
    "seed random_seed rng_seed random_state",
    "dtype precision compute_dtype",
    "dataset data corpus dataset_name",
    "text_file train_file file input_file",
    "tied tie_weights tied_weights tie_word_embeddings",
    "devices num_devices gpus n_gpus",
    "heads num_heads n_heads nhead n_head num_attention_heads",
    "num_tokens max_new_tokens max_tokens length",
    "num_samples n_samples num_return_sequences",
    "temperature temp",
  )
]


def _hint(name: str, known: Iterable[str]) -> str:
  """Suggests a flag in place of an unknown one."""
  plain = name.lower().replace("-", "_")
  for ours, *theirs in _SYNONYMS:
    if ours in known and plain in theirs:
      batches = ", in batches, not epochs" * ("epoch" in plain)
      return f"did you mean --{ours}{batches}?"
  near = difflib.get_close_matches(plain, known, n=1)
  return f"did you mean --{near[0]}?" if near else "--help lists them all"


def _nearest(name: str, value: Any, choices: Sequence[str]) -> str:
  """Suggests a similar choice for an unknown value; empty if there is none."""
  if name == "method" and value in RENAMED:
    return f"it is now called {RENAMED[value]}: "
  by_lower = {choice.lower(): choice for choice in choices}
  near = difflib.get_close_matches(str(value).lower(), by_lower, n=1)
  return f"did you mean --{name}={by_lower[near[0]]}? " if near else ""


class _WholeNumber(flags.ArgumentParser):
  """Parses a whole number, such as 1000, 1_000 or 1e3."""

  syntactic_help = "a whole number"

  def parse(self, argument):
    """Returns the number."""
    with contextlib.suppress(ValueError):
      return int(argument)
    with contextlib.suppress(ValueError):
      if float(argument).is_integer():
        return int(float(argument))
    raise ValueError("not a whole number")

  def flag_type(self):
    """The name of the type, for --help."""
    return "int"


class _NumberOrWord(_WholeNumber):
  """Parses a whole number or a word; `Checked.check` checks the word."""

  syntactic_help = "a whole number or a word"

  def parse(self, argument):
    """Returns the number or the word."""
    try:
      return super().parse(argument)
    except ValueError:
      return argument

  def flag_type(self):
    """The name of the type, for --help."""
    return "int or string"


def _words(field) -> tuple[str, ...]:
  """The words that a field allows besides a number."""
  literals = [
    t
    for t in typing.get_args(field.type)
    if typing.get_origin(t) is typing.Literal
  ]
  return typing.get_args(literals[0]) if literals else ()


def _types(field) -> tuple[type, ...]:
  """The types that a value of a field may have."""
  found = [
    str if typing.get_origin(kind) is typing.Literal else kind
    for kind in typing.get_args(field.type) or (field.type,)
  ]
  return tuple(found + [int] * (float in found))


def _define(field, help_text, values):
  # The number type of `float | None` and of `int | Literal["word"]`.
  kind = _types(field)[0]
  if kind is int:
    parser = _NumberOrWord() if _words(field) else _WholeNumber()
    flags.DEFINE(
      parser, field.name, field.default, help_text, flag_values=values
    )
    return
  define = {
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    bool: flags.DEFINE_bool,
  }[kind]
  define(field.name, field.default, help_text, flag_values=values)


def _helps(cls) -> dict[str, str]:
  """The entries under `Args` in the docstrings of a class and its bases."""
  found: dict[str, str] = {}
  for base in cls.__mro__:
    args = re.split(r"\n\s*Args:\n", base.__doc__ or "")
    for item in re.findall(
      r"^    (\w+): ((?:.|\n      )*)", args[1] if len(args) > 1 else "", re.M
    ):
      found.setdefault(item[0], " ".join(item[1].split()))
  return found
