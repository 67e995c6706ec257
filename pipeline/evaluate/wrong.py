"""The examples on which a network was most wrong, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.dataset.dataset import ExampleDataset
from pipeline.report.examined import Examined

MAX_WRONG = 12


def wrong_of_clips(probabilities: np.ndarray, labels: np.ndarray, clip_ids: Sequence[str]) -> list[int]:
    """The numbers of the examples that were named wrong, those whose truth got least first, one a clip: its other
    frames mostly show the same. probabilities: `(N, classes)`. labels: `(N,)`."""
    of_truth = probabilities[np.arange(len(labels)), labels]
    first: dict[str, int] = {}
    for index in map(int, np.argsort(of_truth, kind="stable")):
        if probabilities[index].argmax() != labels[index]:
            first.setdefault(clip_ids[index], index)
    return list(first.values())


def most_wrong(examples: ExampleDataset, probabilities: np.ndarray, clip_ids: Sequence[str]) -> list[Examined]:
    """Some of the examples of a split on which a network was most wrong, with their pictures.

    probabilities: of all of them, `(N, classes)`.
    """
    rows = wrong_of_clips(probabilities, examples.labels, clip_ids)[:MAX_WRONG]
    if not rows:
        return []
    batch = examples.read_batch(np.array(rows))
    faces, contexts = (each.permute(0, 2, 3, 1).numpy() for each in (batch.face, batch.context))
    return [
        Examined(
            where=examples.place_of(row),
            label=examples.classes[examples.labels[row]],
            face=face,
            context=context,
            attention=None,
            probabilities=probabilities[row],
            classes=examples.classes,
        )
        for row, face, context in zip(rows, faces, contexts, strict=True)
    ]
