"""The catalogue of faults: what each is to give, and the tests that try it.

  make faults

runs them all, the long ones too, and prints a table of what each gave.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]


class Fault(NamedTuple):
  """A fault or a bad input.

  Attributes:
    what: the fault.
    tests: files and functions, "file::function" below tests/.
    rest: what is not tried, and why.
  """

  what: str
  tests: tuple[str, ...] = ()
  rest: str = ""


_INTERRUPT = "experiments/interruption_test.py::"
_FAULTS = "experiments/faults_test.py::"
_PHASES = "experiments/phases_test.py::"
_BAD = "experiments/bad_input_test.py::"
_LM = "experiments/language_model_test.py::"
_RUNNER = "experiments/runner_test.py::"
_CHECK = "training/checkpoint_test.py::"
_LOOP = "training/loop_test.py::"
_STEP = "training/step_test.py::"
_WORKDIR = "training/workdir_test.py::"
_STORE = "data/store_test.py::"
_TEXT = "data/text_test.py::"
_SERIES = "data/series_test.py::"
_LAWS = "cells/laws_test.py::"
_DISK = (
  "training/disk_test.py::"
  "test_a_save_that_ends_at_any_call_leaves_the_new_step_or_the_one_before"
)
_ANY_PHASE = _PHASES + "test_a_signal_in_any_phase_saves_and_says_run_me_again"

FAULTS = {
  "F01": Fault(
    "SIGKILL at random",
    (_INTERRUPT + "test_a_killed_run_ends_with_the_same_bits",),
    "more of them: python -m tests.experiments.interruption_test --trials=20",
  ),
  "F02": Fault(
    "SIGKILL at each call of a save",
    (_DISK,),
    "all calls: python -m tests.training.disk",
  ),
  "F03": Fault("SIGKILL while old steps are deleted", (_DISK,)),
  "F04": Fault("a signal in the first compilation", (_ANY_PHASE,)),
  "F05": Fault(
    "stopped every few steps",
    (
      _FAULTS
      + "test_a_run_that_is_stopped_every_few_steps_ends_with_the_same_bits",
    ),
    "a batch that always crashes is the launcher's to notice",
  ),
  "F06": Fault(
    "SIGTERM in any phase",
    (
      _ANY_PHASE,
      _PHASES + "test_a_signal_while_a_checkpoint_is_read_sets_none_aside",
      "training/preemption_test.py::"
      "test_a_process_that_waits_in_compiled_code_ends_too",
      _INTERRUPT
      + "test_one_process_that_is_told_to_stop_takes_the_other_along",
    ),
  ),
  "F07": Fault(
    "a second signal during the last save",
    (
      _FAULTS
      + "test_a_second_signal_during_the_last_save_loses_no_earlier_step",
    ),
  ),
  "F08": Fault(
    "SIGTERM in the last step",
    (_LOOP + "test_a_signal_after_the_last_step_is_no_preemption",),
  ),
  "F09": Fault(
    "disk full during a save",
    (_DISK, _CHECK + "test_a_full_disk_ends_a_save_and_keeps_those_before"),
  ),
  "F10": Fault(
    "disk full at a row of metrics",
    (_WORKDIR + "test_a_disk_that_is_full_at_a_row_is_an_error_and_no_hang",),
    "the run ends with exit code 5 and resumes; it does not train on",
  ),
  "F11": Fault(
    "a save fails in the background",
    (
      _CHECK
      + "test_a_save_that_fails_in_the_background_is_known_before_the_next",
    ),
  ),
  "F12": Fault(
    "a failed save, then a resume",
    (_RUNNER + "test_a_failing_save_ends_the_run_with_what_was_saved_before",),
  ),
  "F13": Fault(
    "a workdir that cannot be written",
    (
      _BAD + "test_a_workdir_that_cannot_be",
      _WORKDIR
      + "test_a_file_in_place_of_the_workdir_is_an_error_not_a_traceback",
    ),
  ),
  "F14": Fault(
    "EIO at any call of a save",
    (_DISK,),
    "python -m tests.training.disk --modes='disk error'; nothing is retried:"
    " the run ends with exit code 5 and resumes. A slow disk is not tried",
  ),
  "F15": Fault(
    "too many open files",
    (),
    "by hand with 12 descriptors: exit code 5 in one run, a hang at the end of"
    " another; open",
  ),
  "F16": Fault(
    "truncated files",
    (_CHECK + "test_a_damaged_array_falls_back_to_the_step_before",),
  ),
  "F17": Fault(
    "flipped bits",
    (_CHECK + "test_flipped_bits_never_change_a_number",),
  ),
  "F18": Fault(
    "deleted files", (_CHECK + "test_every_file_of_a_step_may_be_missing",)
  ),
  "F19": Fault(
    "a step under another number",
    (_CHECK + "test_a_step_under_another_number_is_damaged",),
  ),
  "F20": Fault(
    "odd names among the steps",
    (
      _CHECK + "test_other_names_are_ignored",
      _CHECK + "test_an_empty_folder_with_a_number_is_no_checkpoint",
    ),
  ),
  "F21": Fault("left-over temporary folders", (_DISK,)),
  "F22": Fault(
    "a checkpoint of another model",
    (
      _CHECK + "test_another_model_is_refused_by_the_name_of_its_array",
      _BAD + "test_a_workdir_of_another_configuration",
    ),
  ),
  "F23": Fault(
    "the same shapes, another meaning",
    (_CHECK + "test_another_configuration_is_refused",),
  ),
  "F24": Fault(
    "another dtype", (_BAD + "test_a_workdir_of_another_configuration",)
  ),
  "F25": Fault(
    "another number of devices or processes",
    (
      _CHECK + "test_every_bit_comes_back_on_another_mesh",
      _INTERRUPT + "test_two_processes_give_the_curve_of_one",
    ),
    "on several devices under pytest --devices=8",
  ),
  "F26": Fault(
    "a checkpoint of an older release",
    (_CHECK + "test_another_format_names_the_remedy",),
    "there is no older release yet, and so no checked-in checkpoint",
  ),
  "F27": Fault(
    "fewer steps than were made; a finished run",
    (
      _LM + "test_a_finished_run_says_so_and_touches_nothing",
      _RUNNER + "test_fewer_steps_than_were_taken_end_with_a_result",
    ),
  ),
  "F28": Fault(
    "a run to begin with that is none",
    (_FAULTS + "test_a_run_to_begin_with_that_is_none_is_refused",),
  ),
  "F29": Fault(
    "two runs on one workdir",
    (_INTERRUPT + "test_a_second_run_on_a_live_workdir_is_refused",),
  ),
  "F30": Fault(
    "a stale lock",
    (
      _WORKDIR + "test_a_live_run_keeps_others_out_and_a_dead_one_does_not",
      "training/object_store_test.py::"
      "test_a_live_run_keeps_others_out_and_a_dead_one_does_not",
    ),
  ),
  "F31": Fault(
    "the clock jumps",
    (_FAULTS + "test_a_clock_that_jumps_loses_nothing",),
    "Orbax may take a jump for a save that hangs: exit code 5, then resumed",
  ),
  "F32": Fault(
    "a process of several is killed",
    (
      _FAULTS + "test_a_process_that_is_killed_ends_the_others",
      _FAULTS + "test_in_a_run_of_four_all_others_end",
    ),
  ),
  "F33": Fault(
    "the coordinator is killed",
    (_FAULTS + "test_a_process_that_is_killed_ends_the_others",),
  ),
  "F34": Fault(
    "a process is stuck",
    (
      _FAULTS + "test_a_process_that_is_stuck_ends_the_others",
      "training/watchdog_test.py::"
      "test_a_process_that_hangs_says_where_and_ends",
      "training/watchdog_test.py::"
      "test_a_process_that_holds_the_interpreter_ends_too",
    ),
  ),
  "F35": Fault(
    "one process raises",
    (_FAULTS + "test_a_process_without_its_data_ends_the_others",),
  ),
  "F36": Fault(
    "a peer never starts, or has other flags",
    (
      _FAULTS + "test_a_process_whose_peer_never_starts_gives_up",
      _FAULTS + "test_processes_of_other_flags_all_end",
    ),
  ),
  "F37": Fault(
    "processes see different steps",
    (_FAULTS + "test_processes_restore_the_last_step_that_all_of_them_see",),
  ),
  "F38": Fault(
    "a data worker fails",
    ("data/workers_test.py::test_the_error_of_a_worker_is_told_with_its_step",),
    "a worker that is killed is not tried",
  ),
  "F39": Fault(
    "a batch that the devices do not divide",
    (
      _BAD + "test_a_batch_that_the_devices_do_not_divide",
      "sharding_test.py::test_a_batch_that_does_not_divide_is_refused_with_the"
      "_nearest_that_do",
    ),
  ),
  "F40": Fault(
    "a last partial batch",
    (
      "data/examples_test.py::test_scoring_meets_every_example_exactly_once",
      "training/evaluation_test.py::"
      "test_every_example_counts_once_and_predictions_are_in_their_order",
    ),
  ),
  "F41": Fault(
    "bad flags",
    (_BAD + "test_a_bad_flag", _BAD + "test_flags_that_contradict"),
  ),
  "F42": Fault(
    "an unknown dataset",
    (
      _STORE + "test_an_unknown_dataset_names_the_near_ones_quickly",
      _STORE + "test_an_unprepared_dataset_says_how_to_prepare_it",
    ),
  ),
  "F43": Fault(
    "a damaged dataset, or two preparations",
    (
      _STORE + "test_damage_to_ours_is_mended",
      _STORE + "test_two_runs_may_prepare_at_once",
      _TEXT + "test_a_damaged_dataset_is_told_and_not_touched",
    ),
  ),
  "F44": Fault(
    "malformed CSV",
    (
      "data/records_test.py::test_bad_files_are_refused_with_the_line",
      _SERIES + "test_bad_files_are_refused_with_line_and_column",
    ),
  ),
  "F45": Fault(
    "missing values",
    (
      "data/missing_test.py::"
      "test_nothing_is_missing_afterwards_and_nothing_known_changes",
      _SERIES + "test_missing_targets_have_no_weight",
    ),
  ),
  "F46": Fault(
    "infinities and numbers out of range",
    ("data/labelled_test.py::test_bad_arrays_are_refused",),
  ),
  "F47": Fault(
    "odd texts",
    (
      _TEXT + "test_text_that_is_not_utf8_is_located",
      _TEXT + "test_a_file_without_words_is_refused",
      "data/stored_test.py::"
      "test_a_file_larger_than_the_memory_costs_what_its_batches_do",
    ),
  ),
  "F48": Fault(
    "a split that is too short",
    (
      _TEXT + "test_a_file_too_short_for_three_splits_is_refused",
      "data/bptt_test.py::test_a_text_too_short_names_sizes_that_fit",
    ),
  ),
  "F49": Fault(
    "empty and wholly masked rows",
    (
      _LAWS + "test_a_row_without_a_real_time_step_keeps_its_carry",
      _LAWS + "test_no_rows_have_no_outputs_and_gradients_of_zero",
    ),
  ),
  "F50": Fault(
    "NaN in inputs",
    (
      _LAWS + "test_what_stands_at_masked_time_steps_changes_no_bit",
      _STEP + "test_a_step_that_is_not_finite_changes_nothing_but_counts",
    ),
  ),
  "F51": Fault(
    "an exploding loss",
    (
      _BAD + "test_a_learning_rate_that_diverges",
      _LOOP + "test_a_loss_that_grows_beyond_return_ends_the_run",
    ),
  ),
  "F52": Fault(
    "a NaN at each step",
    (_LOOP + "test_updates_that_are_never_finite_end_the_run_unsaved",),
  ),
  "F53": Fault(
    "a spike of the loss",
    (),
    "a finite spike is neither skipped nor rolled back; clipping bounds it",
  ),
  "F54": Fault(
    "a model too large for the memory",
    (),
    "not refused by the training scripts; experiments.plan estimates it",
  ),
  "F55": Fault(
    "one time step, and very many",
    (_LAWS + "test_a_hundred_thousand_time_steps_stay_near_float64",),
  ),
  "F56": Fault("mixed dtypes", (_LAWS + "test_a_sequence_keeps_the_dtypes",)),
  "F57": Fault("odd leaves", (_CHECK + "test_keys_come_back_as_keys",)),
  "F58": Fault(
    "odd names of a workdir",
    (
      _FAULTS + "test_a_workdir_of_any_name_is_that_folder_and_nothing_else",
      _PHASES + "test_a_url_never_becomes_a_local_folder",
      "training/object_store_test.py::"
      "test_names_that_lead_outside_are_not_copied",
    ),
  ),
  "F59": Fault(
    "a stranger's checkpoint",
    (
      _CHECK
      + "test_a_hostile_checkpoint_is_refused_and_nothing_outside_opened",
    ),
  ),
  "F60": Fault(
    "a bare environment, a closed stdout",
    (_FAULTS + "test_a_bare_environment_and_a_closed_stdout_change_nothing",),
  ),
}


def functions(file: str) -> set[str]:
  """The names of the tests of a file."""
  text = (ROOT / "tests" / file).read_text()
  return set(re.findall(r"^def (test_\w+)", text, re.MULTILINE))


def outcomes(tests: list[str]) -> dict[str, dict[str, int]]:
  """Runs tests; returns for each how many passed, failed and were skipped."""
  with tempfile.TemporaryDirectory() as folder:
    report = pathlib.Path(folder, "report.xml")
    subprocess.run(
      [sys.executable, "-m", "pytest", "-n", "0", f"--junitxml={report}"]
      + [f"tests/{test}" for test in tests],
      cwd=ROOT,
      env={**os.environ, "RECURRENT_ALL_FAULTS": "1"},
      stdout=sys.stderr,
    )
    cases = ElementTree.parse(report).iter("testcase")
  found: dict[str, dict[str, int]] = {}
  for case in cases:
    file = case.get("classname", "").removeprefix("tests.").replace(".", "/")
    name = case.get("name", "").partition("[")[0]
    kinds = {child.tag for child in case}
    kind = (
      "failed"
      if kinds & {"failure", "error"}
      else "skipped"
      if "skipped" in kinds
      else "passed"
    )
    counts = found.setdefault(f"{file}.py::{name}", {})
    counts[kind] = counts.get(kind, 0) + 1
  return found


def main() -> int:
  """Runs all tests of the catalogue and prints a table."""
  tests = sorted({test for fault in FAULTS.values() for test in fault.tests})
  found = outcomes(tests)
  print("| | fault | passed | failed | |\n|---|---|---|---|---|")
  bad = 0
  for number, fault in FAULTS.items():
    counts = [found.get(test, {}) for test in fault.tests]
    passed = sum(count.get("passed", 0) for count in counts)
    failed = sum(count.get("failed", 0) for count in counts)
    bad += failed
    print(f"| {number} | {fault.what} | {passed} | {failed} | {fault.rest} |")
  return bad > 0


if __name__ == "__main__":
  raise SystemExit(main())
