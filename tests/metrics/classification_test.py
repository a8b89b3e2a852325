"""Metrics of classification."""

import numpy as np
import pytest

from recurrent.metrics import classification


def test_metrics_of_an_example_computed_by_hand():
  targets = np.array([0, 0, 1, 1, 2])
  predicted = [0, 1, 1, 1, 0]
  probabilities = np.full((5, 3), 0.1)
  probabilities[np.arange(5), predicted] = 0.8
  found = classification.summary(targets, probabilities)
  assert found["accuracy"] == 0.6
  assert found["precision_macro"] == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
  assert found["recall_macro"] == pytest.approx((1 / 2 + 1 + 0) / 3)
  assert found["f1_macro"] == pytest.approx((1 / 2 + 4 / 5 + 0) / 3)
  assert found["ece"] == pytest.approx(0.2)
  assert "auc" not in found


def test_auc_counts_ordered_pairs_and_needs_both_classes():
  scores = np.array([0.1, 0.4, 0.35, 0.8])
  probabilities = np.stack([1 - scores, scores], axis=1)
  two = classification.summary(np.array([0, 0, 1, 1]), probabilities)
  assert two["auc"] == 0.75
  one = classification.summary(np.array([1, 1, 1, 1]), probabilities)
  assert np.isnan(one["auc"])


def test_calibration_compares_confidence_and_accuracy_bin_by_bin():
  probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
  # Right and right at 0.9; right and wrong at 0.6.
  targets = np.array([0, 0, 1, 0])
  want = (2 * 0.1 + 2 * 0.1) / 4
  assert classification.calibration_error(
    targets, probabilities
  ) == pytest.approx(want)
  sure = np.array([[1.0, 0.0], [0.0, 1.0]])
  assert classification.calibration_error(np.array([0, 1]), sure) == 0


def test_entities_count_with_both_ends_and_their_type():
  pytest.importorskip("seqeval")
  right = [["B-a", "I-a", "O", "B-b"], ["O", "B-a"]]
  assert classification.entity_f1(right, right) == 1
  found = [["B-a", "O", "O", "B-b"], ["O", "B-b"]]
  assert classification.entity_f1(right, found) == pytest.approx(1 / 3)
  assert classification.entity_f1([["O"]], [["O"]]) == 0
  # Runs: 1 1, 2 and 2 2; of 1, 1 2 and 2 2 only the last is right.
  runs = classification.entity_f1([[1, 1, 2], [2, 2]], [[1, 2, 2], [2, 2]])
  assert runs == pytest.approx(1 / 3)


def test_the_confusion_matrix_and_the_table_name_every_class():
  targets, predicted = np.array([0, 0, 2]), np.array([0, 2, 2])
  found = classification.confusion(targets, predicted, 3)
  np.testing.assert_array_equal(found, [[1, 0, 1], [0, 0, 0], [0, 0, 1]])
  table = classification.per_class(targets, predicted, ["a", "b", "c"])
  assert [line.split()[0] for line in table.splitlines()[2:5]] == [
    "a",
    "b",
    "c",
  ]


def test_shapes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match=r"probabilities must be \[N, C\]"):
    classification.summary(np.zeros(3, int), np.zeros((2, 2)))
