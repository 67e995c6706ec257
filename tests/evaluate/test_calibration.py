"""Calibration on probabilities whose share of right guesses is known."""

import numpy as np
import pytest

from pipeline.evaluate.calibration import expected_calibration_error, undecided_below


def guesses(*groups):
    """Probabilities (N, 7) and labels (N,): groups of (highest probability, right, wrong), always for class 0."""
    rows, labels = [], []
    for highest, right, wrong in groups:
        rows += [[highest, *[(1 - highest) / 6] * 6]] * (right + wrong)
        labels += [0] * right + [1] * wrong
    return np.array(rows), np.array(labels)


def test_the_error_is_the_mean_distance_of_probability_and_share():
    assert expected_calibration_error(*guesses((0.9, 9, 1), (0.5, 5, 5))) == pytest.approx(0, abs=1e-12)
    assert expected_calibration_error(*guesses((0.9, 5, 5), (0.5, 5, 5))) == pytest.approx(0.2)
    assert expected_calibration_error(*guesses((1.0, 0, 4))) == pytest.approx(1)


def test_a_guess_counts_from_where_half_were_right():
    assert undecided_below(*guesses((0.3, 2, 8), (0.6, 6, 4), (0.9, 9, 1))) == pytest.approx(0.6)
    assert undecided_below(*guesses((0.3, 5, 5), (0.6, 6, 4))) == 0.0
    assert undecided_below(*guesses((0.3, 2, 8), (0.6, 4, 6))) == 1.0


def test_a_lucky_guess_among_wrong_ones_decides_nothing():
    assert undecided_below(*guesses((0.3, 2, 8), (0.4, 1, 0), (0.5, 2, 8), (0.7, 9, 1))) == pytest.approx(0.7)


def test_nothing_is_known_of_no_examples_or_of_a_network_that_diverged():
    none, labels = np.empty((0, 7)), np.empty(0, int)
    assert (expected_calibration_error(none, labels), undecided_below(none, labels)) == (None, 1.0)
    nan = np.full((3, 7), np.nan)
    assert (expected_calibration_error(nan, np.zeros(3, int)), undecided_below(nan, np.zeros(3, int))) == (None, 1.0)
