"""How far a network's probabilities are to be believed: their calibration error, and where its guesses are no better
than a coin."""

from __future__ import annotations

from typing import Any

import numpy as np

NUM_BINS = 15


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """Mean distance of the highest probability from the share that is right, over 15 bins of equal width (Guo et al.
    2017); None of no examples, and of probabilities that are not finite.

    Args:
        probabilities: (N, classes), rows summing to 1.
        labels: (N,) indices of the true emotions.
    """
    if not len(labels) or not np.isfinite(probabilities).all():
        return None
    highest, right, bins = _binned(probabilities, labels)
    gaps = np.bincount(bins, weights=highest - right, minlength=NUM_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def calibration_of(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """How far probabilities are right, ready for JSON.

    Args:
        probabilities: (N, classes) finite, rows summing to 1, N >= 1.
        labels: (N,) indices of the true emotions.

    Returns:
        nll, nats; brier, the mean squared distance from the truth, 0 to 2; ece (`expected_calibration_error`); and
        reliability: bins of the highest probability that hold examples, with their mean and the share that is right.
    """
    truth = np.eye(probabilities.shape[1])[labels]
    highest, right, bins = _binned(probabilities, labels)
    return {
        "nll": float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)).mean()),
        "brier": float(((probabilities - truth) ** 2).sum(axis=1).mean()),
        "ece": expected_calibration_error(probabilities, labels),
        "reliability": [
            {
                "from": number / NUM_BINS,
                "num_examples": int((bins == number).sum()),
                "mean_probability": float(highest[bins == number].mean()),
                "share_right": float(right[bins == number].mean()),
            }
            for number in np.unique(bins).tolist()
        ],
    }


def _binned(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each example the highest probability, whether it is right, and its bin."""
    highest, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    return highest, right, np.minimum((highest * NUM_BINS).astype(int), NUM_BINS - 1)


def undecided_below(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The highest probability from which on a guess was right at least half of the time; below it, it is none.

    The share that is right is taken to rise with the probability (isotonic regression), so that a few lucky guesses
    decide nothing. 1.0 where no guess was right so often, 0.0 where all were.

    Args:
        probabilities: (N, classes), rows summing to 1.
        labels: (N,) indices of the true emotions.
    """
    if not len(labels) or not np.isfinite(probabilities).all():
        return 1.0
    order = np.argsort(probabilities.max(axis=1), kind="stable")
    highest = probabilities.max(axis=1)[order]
    right = (probabilities.argmax(axis=1) == labels)[order]
    blocks: list[tuple[float, int]] = []  # (number right, number of examples), their shares rising
    for value in right:
        num_right, size = float(value), 1
        while blocks and blocks[-1][0] * size >= num_right * blocks[-1][1]:
            before, length = blocks.pop()
            num_right, size = num_right + before, size + length
        blocks.append((num_right, size))
    start = 0
    for num_right, size in blocks:
        if 2 * num_right >= size:
            return float(highest[start]) if start else 0.0
        start += size
    return 1.0
