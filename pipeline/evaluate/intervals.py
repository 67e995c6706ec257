"""How sure a metric is: clips or groups drawn again with replacement, and the spread of what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.evaluate.metrics import balanced_accuracy, macro_f1_of_all, top1_accuracy
from pipeline.records.vocabulary import EMOTIONS

NUM_DRAWS = 1000
DRAWS_AT_ONCE = 50
SHARE = 0.95


def intervals_of(
    labels: np.ndarray,
    predictions: np.ndarray,
    *,
    clip_ids: Sequence[str],
    groups: Sequence[str | None],
    num_classes: int = len(EMOTIONS),
) -> dict[str, Any]:
    """95 % intervals of top-1, balanced accuracy and macro-F1, by bootstrap over groups, or over clips without groups.

    Faces of one clip, and clips of one show, are alike: drawn one by one they would make an interval too narrow.

    Args:
        labels, predictions: (N,) indices of the classes.
        clip_ids, groups: of each example; where a group is None, its clip is one.

    Returns:
        over ("groups" or "clips"), num_units, and by metric [lowest, highest], each 0 to 1.
    """
    units = [clip if group is None else f"group {group}" for clip, group in zip(clip_ids, groups, strict=True)]
    _, unit_of_example = np.unique(np.asarray(units), return_inverse=True)
    num_units = int(unit_of_example.max()) + 1
    # Of all pairs of classes few occur: 64 classes have 4,096.
    pairs, pair_of_example = np.unique(labels * num_classes + predictions, return_inverse=True)
    counts = np.zeros((num_units, len(pairs)))
    np.add.at(counts, (unit_of_example, pair_of_example), 1)
    matrix = np.zeros(num_classes**2)
    random = np.random.default_rng(0)
    found: dict[str, list[float]] = {"top1_accuracy": [], "balanced_accuracy": [], "macro_f1_of_all": []}
    for _ in range(NUM_DRAWS // DRAWS_AT_ONCE):
        drawn = random.multinomial(num_units, np.full(num_units, 1 / num_units), size=DRAWS_AT_ONCE)
        for values in drawn @ counts:
            matrix[pairs] = values
            square = matrix.reshape(num_classes, num_classes)
            found["top1_accuracy"].append(top1_accuracy(square))
            found["balanced_accuracy"].append(balanced_accuracy(square))
            found["macro_f1_of_all"].append(macro_f1_of_all(square))
    edges = [(1 - SHARE) / 2, (1 + SHARE) / 2]
    return {
        "over": "groups" if any(group is not None for group in groups) else "clips",
        "num_units": num_units,
        **{name: np.quantile(values, edges).tolist() for name, values in found.items()},
    }
