"""Metrics of classification, computed from predicted probabilities."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from recurrent.errors import ConfigError


def summary(targets: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
  """Accuracy, macro-averaged precision, recall and F1, ECE, and AUC.

  Macro averages are over the classes that occur among the targets or the
  predictions, as in scikit-learn; a precision or recall of 0/0 counts as 0.

  Args:
    targets: [N] numbers of the classes.
    probabilities: [N, C].

  Returns:
    `accuracy`, `precision_macro`, `recall_macro`, `f1_macro`, `ece` (see
    `calibration_error`), and with two classes `auc`, the area under the ROC
    curve of class 1; NaN if the targets have one class only.

  Raises:
    ValueError: if the shapes do not fit.
  """
  from sklearn import metrics

  targets, probabilities = np.asarray(targets), np.asarray(probabilities)
  if probabilities.ndim != 2 or probabilities.shape[:1] != targets.shape:
    raise ValueError(
      f"probabilities must be [N, C] and targets [N], got"
      f" {probabilities.shape} and {targets.shape}"
    )
  predicted = probabilities.argmax(axis=1)
  precision, recall, f1, _ = metrics.precision_recall_fscore_support(
    targets, predicted, average="macro", zero_division=0
  )
  found = {
    "accuracy": float((predicted == targets).mean()),
    "precision_macro": float(precision),
    "recall_macro": float(recall),
    "f1_macro": float(f1),
    "ece": calibration_error(targets, probabilities),
  }
  if probabilities.shape[1] == 2:
    both = len(np.unique(targets)) == 2
    found["auc"] = (
      float(metrics.roc_auc_score(targets, probabilities[:, 1]))
      if both
      else float("nan")
    )
  return found


def calibration_error(
  targets: np.ndarray, probabilities: np.ndarray, bins: int = 15
) -> float:
  """Expected calibration error (ECE).

  Predictions are sorted by confidence, the largest probability, into `bins`
  bins of equal width. The result is the mean over all predictions of
  |accuracy - mean confidence| of their bin.

  Args:
    targets: [N] numbers of the classes.
    probabilities: [N, C].
    bins: number of bins.

  Reference:
    Guo, Pleiss, Sun & Weinberger, "On calibration of modern neural networks",
    2017.
  """
  confidence = probabilities.max(axis=1)
  correct = probabilities.argmax(axis=1) == targets
  # A bin contains its upper end, as in the paper.
  place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
  gap = np.bincount(place, correct - confidence, minlength=bins)
  return float(np.abs(gap).sum() / max(1, len(targets)))


def entity_f1(
  targets: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> float:
  """F1 of entities in BIO tags, as the script conlleval computes it.

  An entity counts as found if its type and both of its ends are right. The
  result is 0 where there are no entities. Labels that are no BIO tags are taken
  as entities too: each run of one label is an entity.

  Args:
    targets: the tags of each sequence, such as "B-city", "I-city" and "O".
    predicted: as many.

  Reference:
    Tjong Kim Sang & Buchholz, "Introduction to the CoNLL-2000 shared task:
    chunking", 2000; Nakayama, "seqeval", 2018.
  """
  f1_score = check_seqeval()
  rows = [[list(map(str, row)) for row in x] for x in (targets, predicted)]
  labels = {label for x in rows for row in x for label in row}
  if not all(re.fullmatch(r"O|[BI]-.+", label) for label in labels):
    rows = [[_runs(row) for row in x] for x in rows]
  return float(f1_score(*rows, zero_division=0))


def _runs(labels: list[str]) -> list[str]:
  """BIO tags of the runs of equal labels."""
  before = [None, *labels]
  return [
    ("I-" if label == last else "B-") + label
    for label, last in zip(labels, before, strict=False)
  ]


def check_seqeval() -> Callable[..., float]:
  """Returns seqeval's F1 score.

  Raises:
    ConfigError: if seqeval is not installed.
  """
  try:
    from seqeval.metrics import f1_score
  except ImportError as error:
    raise ConfigError(
      "the F1 of entities needs the package seqeval, which is not installed",
      "pip install 'recurrent[tagging]'",
    ) from error
  return f1_score


def per_class(
  targets: np.ndarray, predicted: np.ndarray, classes: Sequence[Any]
) -> str:
  """A table of precision, recall, F1 and number of examples of each class.

  Args:
    targets: [N] numbers of the classes.
    predicted: [N].
    classes: the names of all classes.
  """
  from sklearn import metrics

  return metrics.classification_report(
    targets,
    predicted,
    labels=range(len(classes)),
    target_names=[str(name) for name in classes],
    digits=4,
    zero_division=0,
  ).rstrip()


def confusion(
  targets: np.ndarray, predicted: np.ndarray, classes: int
) -> np.ndarray:
  """[C, C] integers: how many examples of class i are predicted as class j."""
  pairs = np.asarray(targets) * classes + np.asarray(predicted)
  return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
