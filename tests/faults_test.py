"""Tests that the catalogue of faults names tests that there are."""

from tests import faults


def test_the_catalogue_is_whole_and_its_tests_are_there():
  assert [*faults.FAULTS] == [f"F{number:02}" for number in range(1, 61)]
  for number, fault in faults.FAULTS.items():
    assert fault.tests or fault.rest, number
    for test in fault.tests:
      file, _, name = test.partition("::")
      assert name in faults.functions(file), (number, test)
