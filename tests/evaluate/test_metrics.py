"""Metrics, against numbers worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.evaluate.metrics import confusion_matrix, macro_f1, metrics_of, per_class_accuracy, top1_accuracy
from pipeline.records.vocabulary import EMOTIONS

# True 0: two right, one taken for 1. True 1: one right. True 2: taken for 0. Class 3 is only ever predicted, for 1.
LABELS = [0, 0, 0, 1, 1, 2]
PREDICTIONS = [0, 0, 1, 1, 3, 0]
MATRIX = np.array([[2, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]])


def test_rows_are_true_and_columns_predicted():
    matrix = confusion_matrix(LABELS, PREDICTIONS, num_classes=4)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, MATRIX)


def test_matrices_of_batches_add_up_to_that_of_the_whole():
    parts = confusion_matrix(LABELS[:2], PREDICTIONS[:2]) + confusion_matrix(LABELS[2:], PREDICTIONS[2:])
    np.testing.assert_array_equal(parts, confusion_matrix(LABELS, PREDICTIONS))
    np.testing.assert_array_equal(confusion_matrix([], []), np.zeros((7, 7), dtype=np.int64))


def test_accuracies_by_hand():
    assert top1_accuracy(MATRIX) == 3 / 6
    np.testing.assert_array_equal(per_class_accuracy(MATRIX), [2 / 3, 1 / 2, 0.0, np.nan])


def test_macro_f1_is_over_classes_that_occur_in_truth_or_prediction():
    assert macro_f1(MATRIX) == pytest.approx((4 / 6 + 2 / 4 + 0 + 0) / 4)
    unseen = np.zeros((7, 7), dtype=np.int64)
    unseen[:4, :4] = MATRIX
    assert macro_f1(unseen) == macro_f1(MATRIX)


def test_metrics_are_plain_json_with_null_for_an_absent_class():
    metrics = metrics_of(confusion_matrix([0, 0, 4], [0, 1, 4]))
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert metrics["num_examples"] == 3
    assert metrics["top1_accuracy"] == 2 / 3
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert metrics["per_class_accuracy"] == {**dict.fromkeys(EMOTIONS), "Anger": 0.5, "Neutral": 1.0}
    assert metrics["confusion_matrix"][0] == [1, 1, 0, 0, 0, 0, 0]


def test_classes_out_of_range_and_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="prediction 7 is not a class; classes are 0 to 6"):
        confusion_matrix([0], [7])
    with pytest.raises(ValueError, match="label -1 is not a class"):
        confusion_matrix([-1, 3], [0, 0])
    with pytest.raises(ValueError, match="one length"):
        confusion_matrix([0, 1], [0])


@pytest.mark.parametrize("metric", [top1_accuracy, macro_f1, metrics_of])
def test_no_examples_is_an_error_and_not_a_score(metric):
    with pytest.raises(ValueError, match="no examples"):
        metric(np.zeros((7, 7), dtype=np.int64))
