"""The faces of a clip's persons in, their figures out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pipeline.records.vocabulary import EMOTIONS

ABSTAINED = "abstained"


# Reason of a clip in which no face was seen twice.
STRAY = "stray"


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The faces of one track, or of one clip, in figures.

    probabilities: their mean. emotion: the most probable of the mean, or None with reason `abstained`. emotion_shares:
    share of the faces whose most probable emotion it is; a face that abstains counts for none, so that the shares may
    sum to less than 1. mean_entropy: of the faces' probabilities, nats. agreement: share of the faces whose most
    probable emotion is that of the mean, abstained or not.
    """

    probabilities: tuple[float, ...]
    emotion: str | None
    reason: str | None
    emotion_shares: tuple[float, ...]
    mean_entropy: float
    agreement: float


def summarised(probabilities: np.ndarray, *, abstain_below: float, classes: Sequence[str] = EMOTIONS) -> Summary:
    """The figures of some faces. probabilities: (N, len(classes)) with N >= 1, each row summing to 1."""
    mean = probabilities.astype(np.float64).mean(axis=0)  # (classes,)
    best = probabilities.argmax(axis=1)  # (N,); of equal ones the first
    is_sure = probabilities.max(axis=1) >= abstain_below
    emotion, reason = emotion_of(mean, abstain_below=abstain_below, classes=classes)
    return Summary(
        probabilities=tuple(mean.tolist()),
        emotion=emotion,
        reason=reason,
        emotion_shares=tuple((np.bincount(best[is_sure], minlength=len(classes)) / len(best)).tolist()),
        mean_entropy=float(entropies(probabilities).mean()),
        agreement=float((best == mean.argmax()).mean()),
    )


def emotion_of(
    probabilities: np.ndarray, *, abstain_below: float, classes: Sequence[str] = EMOTIONS
) -> tuple[str | None, str | None]:
    """The most probable class and None, or None and the reason. probabilities: (len(classes),)."""
    best = int(probabilities.argmax())
    return (classes[best], None) if probabilities[best] >= abstain_below else (None, ABSTAINED)


def entropies(probabilities: np.ndarray) -> np.ndarray:
    """The entropy of each row in nats: (N, classes) -> (N,) float64."""
    values = probabilities.astype(np.float64)
    return -(values * np.log(np.where(values > 0, values, 1.0))).sum(axis=1)


def num_changes(emotions: Sequence[str | None]) -> int:
    """How often the emotion changes along one track, in order of time; None (abstained) is passed over."""
    named = [emotion for emotion in emotions if emotion is not None]
    return sum(a != b for a, b in pairwise(named))
