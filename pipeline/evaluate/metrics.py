"""How good predictions are: true and predicted classes in, accuracies and F1 out, all by way of a confusion matrix.

A confusion matrix is a square int64 array: rows true, columns predicted. Those of several batches or workers add up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.records.vocabulary import EMOTIONS


def confusion_matrix(
    labels: np.ndarray | Sequence[int], predictions: np.ndarray | Sequence[int], *, num_classes: int = len(EMOTIONS)
) -> np.ndarray:
    """Count the pairs of two equally long rows of class indices: `(num_classes, num_classes)` int64.

    Raises ValueError where the lengths differ or a class is not in 0 to num_classes - 1.
    """
    true, predicted = np.asarray(labels, dtype=np.int64), np.asarray(predictions, dtype=np.int64)
    if true.ndim != 1 or true.shape != predicted.shape:
        raise ValueError(f"labels {true.shape} and predictions {predicted.shape} must be two rows of one length")
    for name, classes in (("label", true), ("prediction", predicted)):
        if classes.size and not 0 <= classes.min() <= classes.max() < num_classes:
            wrong = classes.min() if classes.min() < 0 else classes.max()
            raise ValueError(f"{name} {wrong} is not a class; classes are 0 to {num_classes - 1}")
    counts = np.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def top1_accuracy(matrix: np.ndarray) -> float:
    """The share of examples whose predicted class is true, 0 to 1. Raises ValueError where there is no example."""
    if matrix.sum() == 0:
        raise ValueError("the confusion matrix counts no examples; accuracy needs at least 1")
    return float(np.trace(matrix) / matrix.sum())


def per_class_accuracy(matrix: np.ndarray) -> np.ndarray:
    """The share of each true class that is predicted right (its recall), `(num_classes,)`.

    NaN for a class without examples.
    """
    num_true = matrix.sum(axis=1)
    return np.where(num_true > 0, np.diag(matrix) / np.maximum(num_true, 1), np.nan)


def balanced_accuracy(matrix: np.ndarray) -> float:
    """The mean of the accuracies on the classes that occur, 0 to 1."""
    return float(np.nanmean(per_class_accuracy(matrix)))


def macro_f1(matrix: np.ndarray) -> float:
    """The unweighted mean of F1 = 2·TP / (2·TP + FP + FN) over classes that occur in truth or in prediction, 0 to 1.

    A class that occurs in neither is left out: it would be 0 / 0. Raises ValueError where there is no example.
    """
    num_either = matrix.sum(axis=1) + matrix.sum(axis=0)  # 2·TP + FP + FN
    if matrix.sum() == 0:
        raise ValueError("the confusion matrix counts no examples; F1 needs at least 1")
    occurs = num_either > 0
    return float(np.mean(2 * np.diag(matrix)[occurs] / num_either[occurs]))


def macro_f1_of_all(matrix: np.ndarray) -> float:
    """The unweighted mean of F1 over all classes; one that occurs in neither truth nor prediction counts as 0."""
    num_either = matrix.sum(axis=1) + matrix.sum(axis=0)
    return float(np.mean(np.where(num_either > 0, 2 * np.diag(matrix) / np.maximum(num_either, 1), 0.0)))


def metrics_of(matrix: np.ndarray, *, classes: Sequence[str] = EMOTIONS) -> dict[str, Any]:
    """All metrics of a confusion matrix of these classes, ready for JSON; an accuracy that is not defined is None.

    balanced_accuracy: the mean of the accuracies on the emotions that occur. macro_f1 is over the classes that occur in
    truth or in prediction, macro_f1_of_all over all of them.
    """
    accuracies = per_class_accuracy(matrix).tolist()
    return {
        "num_examples": int(matrix.sum()),
        "top1_accuracy": top1_accuracy(matrix),
        "balanced_accuracy": balanced_accuracy(matrix),
        "macro_f1": macro_f1(matrix),
        "macro_f1_of_all": macro_f1_of_all(matrix),
        "per_class_accuracy": {
            emotion: None if math.isnan(accuracy) else accuracy
            for emotion, accuracy in zip(classes, accuracies, strict=True)
        },
        "confusion_matrix": matrix.tolist(),
    }
