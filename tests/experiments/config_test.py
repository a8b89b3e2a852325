"""Flags and configurations, without a run."""

import dataclasses

import pytest

from experiments import config, evaluate, generate, language_model
from recurrent.errors import ConfigError


def parse(*flags):
  return config.parse(language_model.Config, ["program", "--workdir=x", *flags])


@pytest.mark.parametrize(
  "text", ["1000", "1_000", "1e3", "1E+3", "1000.0", "0.1e4"]
)
def test_a_whole_number_may_be_written_in_any_way(text):
  steps = parse(f"--steps={text}").steps
  assert steps == 1000 and isinstance(steps, int)


def test_large_whole_numbers_are_not_rounded():
  assert parse("--seed=9007199254740993").seed == 9007199254740993


def test_a_number_that_may_be_a_word_may_be_either():
  assert [parse(f"--remat={x}").remat for x in ("5", "gates")] == [5, "gates"]


@pytest.mark.parametrize(
  "module", [language_model, generate, evaluate], ids=lambda m: m.__name__
)
def test_every_hint_names_a_flag_that_there_is(module):
  names = {field.name for field in dataclasses.fields(module.Config)}
  for _, *theirs in config._SYNONYMS:
    for word in set(theirs) - names:
      with pytest.raises(ConfigError) as error:
        config.parse(module.Config, ["program", f"--{word}=1"])
      hint = error.value.remedy
      if hint.startswith("did you mean --"):
        assert hint.removeprefix("did you mean --").split(",")[0].strip(
          "?"
        ) in (names)


def test_no_synonym_is_a_flag_of_ours_or_means_two():
  names = {field.name for field in dataclasses.fields(language_model.Config)}
  words = [word for _, *theirs in config._SYNONYMS for word in theirs]
  assert len(words) == len(set(words))
  assert not names & set(words)


def test_what_differs_from_the_defaults_makes_the_same_configuration():
  given = parse("--cell=gru", "--tied", "--b1=0.8", "--steps=7")
  kept = config.not_default(given)
  assert kept == {
    "workdir": "x",
    "cell": "gru",
    "tied": True,
    "b1": 0.8,
    "steps": 7,
  }
  assert language_model.Config(**kept) == given


def test_a_class_adds_to_the_tables_of_its_bases_and_may_replace_entries():
  @dataclasses.dataclass(frozen=True)
  class Base(config.Checked):
    width: int = 1
    kind: str = "a"

    NEEDS_WORKDIR = False
    POSITIVE = frozenset(("width",))
    CHOICES = {"kind": ("a", "b")}

  @dataclasses.dataclass(frozen=True)
  class Other(config.Checked):
    rate: float = 0.5

    BELOW_ONE = frozenset(("rate",))

  @dataclasses.dataclass(frozen=True)
  class Both(Base, Other):
    height: int = 1

    POSITIVE = frozenset(("height",))
    CHOICES = {"kind": ("a", "c")}

  Both(kind="c").check()
  for wrong in ({"width": 0}, {"height": 0}, {"rate": 1.5}, {"kind": "b"}):
    with pytest.raises(ConfigError):
      Both(**wrong).check()
  Base(kind="b").check()


@pytest.mark.parametrize(
  ("message", "flags"),
  [
    ("`steps=3` is wrong", "--steps=3 is wrong"),
    ("a smaller `seed` or `steps`", "a smaller --seed or --steps"),
    ("`workdir=/a b/c`: a text", "--workdir=/a b/c: a text"),
    ("use another `text_file` or steps", "use another `text_file` or steps"),
  ],
)
def test_arguments_are_printed_as_the_flags_that_a_script_has(message, flags):
  assert config.as_flags(message, config.RunConfig) == flags
