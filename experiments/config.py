"""A configuration is a frozen dataclass; its fields are the script's flags.

A field's help is its line in the class's docstring, its type is the flag's
type. Notebooks and tests build the dataclass themselves; only `parse` knows
command lines.
"""

import contextlib
import dataclasses
import difflib
import functools
import math
import operator
import re
import sys
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags

from recurrent.errors import ConfigError
from recurrent.unroll import METHODS, RENAMED


@dataclasses.dataclass(frozen=True)
class Checked:
  """A configuration whose values are checked by name.

  Numbers are finite and at least 0 unless a table here says more. A class
  states only what it adds: its tables are merged with those of its bases, and
  an entry of a subclass replaces that of a base.

  Args:
    workdir: directory of the run.
  """

  workdir: str = ""

  NEEDS_WORKDIR: typing.ClassVar[bool] = True
  POSITIVE: typing.ClassVar[frozenset[str]] = frozenset()
  BELOW_ONE: typing.ClassVar[frozenset[str]] = frozenset()
  CHOICES: typing.ClassVar[dict[str, Sequence[str]]] = {}
  # What a smoke run takes instead of a default; a flag still wins.
  SMOKE: typing.ClassVar[dict[str, Any]] = {}
  # A flag that says nothing unless another has one of these values.
  NEEDS: typing.ClassVar[dict[str, tuple[str, Sequence[Any]]]] = {}

  def __init_subclass__(cls, **options):
    super().__init_subclass__(**options)
    for name in ("POSITIVE", "BELOW_ONE", "CHOICES", "SMOKE", "NEEDS"):
      tables = [vars(base).get(name) for base in reversed(cls.__mro__)]
      tables = [table for table in tables if table is not None]
      setattr(cls, name, functools.reduce(operator.or_, tables))

  def check(self) -> None:
    """Raises ConfigError at the first value that cannot be meant."""
    if self.NEEDS_WORKDIR and not self.workdir:
      raise ConfigError(
        "--workdir is missing", "add --workdir=DIR, the directory of the run"
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
    # From a command line `parse` refuses defaults too.
    _refuse_idle_flags(self, not_default(self))


@dataclasses.dataclass(frozen=True)
class RunConfig(Checked):
  """What every training script takes.

  Args:
    workdir: directory of the run; the same command again resumes it.
    steps: training steps in all.
    batch_size: rows of the global batch, over all devices.
    seed: decides the initial parameters, the data order and all dropout.
    log_every: steps between rows of training metrics.
    eval_every: steps between evaluations; there is one at the end too.
    checkpoint_every: steps between checkpoints; 0 saves at evaluations.
    patience: stop after so many evaluations without a better one; 0: never.
    ema: decay of a moving average of the parameters, which is then what is
      evaluated and sampled, and is over the last tenth of the steps while
      there are few; 0: none.
    dtype: what the network computes in: float32 or bfloat16.
    method: executor of the cells, see recurrent.unroll.
    remat: keep the carry of every so-manieth time step only, or gates: carries
      only, see recurrent.unroll; 0: keep all.
    devices: how many devices to use; 0: all.
    coordinator: host:port of process 0, for a run of several processes;
      "auto" where the cluster tells (TPU pods, SLURM).
    processes: how many processes, if the cluster does not tell.
    process: number of this one, if the cluster does not tell.
    smoke: a few small steps, to see that everything works.
  """

  steps: int = 1000
  batch_size: int = 32
  seed: int = 0
  log_every: int = 50
  eval_every: int = 500
  checkpoint_every: int = 0
  patience: int = 0
  ema: float = 0.0
  dtype: str = "float32"
  method: str = "auto"
  remat: int | typing.Literal["gates"] = 0
  devices: int = 0
  coordinator: str = ""
  processes: int = 0
  process: int = 0
  smoke: bool = False

  # What may differ between two commands on one workdir.
  OPERATIONAL: typing.ClassVar[frozenset[str]] = frozenset(
    "workdir steps checkpoint_every devices coordinator processes process"
    " smoke".split()
  )
  POSITIVE: typing.ClassVar[frozenset[str]] = frozenset(
    "steps batch_size log_every eval_every".split()
  )
  BELOW_ONE: typing.ClassVar[frozenset[str]] = frozenset(("ema",))
  CHOICES: typing.ClassVar[dict[str, Sequence[str]]] = {
    "dtype": ("float32", "bfloat16"),
    "method": METHODS,
  }
  SMOKE: typing.ClassVar[dict[str, Any]] = {
    "steps": 4,
    "batch_size": 8,
    "log_every": 2,
    "eval_every": 2,
  }

  def identity(self) -> dict[str, Any]:
    """The values that decide what a run computes."""
    return {
      key: value
      for key, value in dataclasses.asdict(self).items()
      if key not in self.OPERATIONAL
    }


def parse(cls: type[Checked], argv: Sequence[str]) -> Any:
  """A configuration from a command line.

  Args:
    cls: a subclass of `Checked`.
    argv: the command line, program first.

  Returns:
    An instance of `cls`, checked.

  Raises:
    ConfigError: on an unknown flag, a bad value or a contradiction.
    SystemExit: after --help.
  """
  values = flags.FlagValues()
  helps = _helps(cls)
  for field in dataclasses.fields(cls):
    _define(field, helps.get(field.name, ""), values)
  flags.DEFINE_bool("help", False, "show this help", flag_values=values)
  try:
    rest = values(list(argv))[1:]
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
  if given.get("smoke"):
    given = {**cls.SMOKE, **given}
  config = cls(**given)
  _refuse_idle_flags(config, given)
  config.check()
  return config


def _refuse_idle_flags(config, given):
  """No flag is accepted and then ignored."""
  for name, (other, wanted) in config.NEEDS.items():
    if name in given and getattr(config, other) not in wanted:
      raise ConfigError(
        f"--{name} does nothing with --{other}={getattr(config, other)!s}",
        f"leave it out, or use --{other}={' or '.join(map(str, wanted))}",
      )


def not_default(config: Checked) -> dict[str, Any]:
  """The values of a configuration that differ from its class's defaults."""
  return {
    field.name: getattr(config, field.name)
    for field in dataclasses.fields(config)
    if getattr(config, field.name) != field.default
  }


# What other frameworks call a flag, its first name being ours.
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
    "num_tokens max_new_tokens max_tokens length",
    "num_samples n_samples num_return_sequences",
    "temperature temp",
  )
]


def _hint(name: str, known: Iterable[str]) -> str:
  """What may have been meant by a flag that there is not."""
  plain = name.lower().replace("-", "_")
  for ours, *theirs in _SYNONYMS:
    if ours in known and plain in theirs:
      batches = ", in batches, not epochs" * ("epoch" in plain)
      return f"did you mean --{ours}{batches}?"
  near = difflib.get_close_matches(plain, known, n=1)
  return f"did you mean --{near[0]}?" if near else "--help lists them all"


def _nearest(name: str, value: Any, choices: Sequence[str]) -> str:
  """What may have been meant, whatever its case, or nothing."""
  if name == "method" and value in RENAMED:
    return f"it is now called {RENAMED[value]}: "
  by_lower = {choice.lower(): choice for choice in choices}
  near = difflib.get_close_matches(str(value).lower(), by_lower, n=1)
  return f"did you mean --{name}={by_lower[near[0]]}? " if near else ""


class _WholeNumber(flags.ArgumentParser):
  """A whole number, in any way to write one: 1000, 1_000, 1e3."""

  syntactic_help = "a whole number"

  def parse(self, argument):
    """The number."""
    with contextlib.suppress(ValueError):
      return int(argument)
    with contextlib.suppress(ValueError):
      if float(argument).is_integer():
        return int(float(argument))
    raise ValueError("not a whole number")

  def flag_type(self):
    """For --help."""
    return "int"


class _NumberOrWord(_WholeNumber):
  """A whole number, or else a word, which `Checked.check` is to allow."""

  syntactic_help = "a whole number or a word"

  def parse(self, argument):
    """The number or the word."""
    try:
      return super().parse(argument)
    except ValueError:
      return argument

  def flag_type(self):
    """For --help."""
    return "int or string"


def _words(field) -> tuple[str, ...]:
  """What a field that is a number may be besides."""
  literals = [
    t
    for t in typing.get_args(field.type)
    if typing.get_origin(t) is typing.Literal
  ]
  return typing.get_args(literals[0]) if literals else ()


def _types(field) -> tuple[type, ...]:
  """Types that a value of a field may have."""
  found = [
    str if typing.get_origin(kind) is typing.Literal else kind
    for kind in typing.get_args(field.type) or (field.type,)
  ]
  return tuple(found + [int] * (float in found))


def _define(field, help_text, values):
  # Of `float | None` and `int | Literal["word"]`, the number.
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
  """The `Args` of the docstrings of a class and its bases."""
  found: dict[str, str] = {}
  for base in cls.__mro__:
    args = re.split(r"\n\s*Args:\n", base.__doc__ or "")
    for item in re.findall(
      r"^    (\w+): ((?:.|\n      )*)", args[1] if len(args) > 1 else "", re.M
    ):
      found.setdefault(item[0], " ".join(item[1].split()))
  return found
