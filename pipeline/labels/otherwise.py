"""Labels as another threshold or another least length of a person would give them: from the probabilities that are kept
of every face, so that no clip is scored again. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.records.columns import classes_of, table_of
from pipeline.records.faces import Prediction
from pipeline.score.labels import predictions_in, track_labels_of
from pipeline.score.tracks import ABSTAINED, STRAY, emotion_of, summarised


@dataclass(frozen=True, kw_only=True)
class Otherwise:
    """How labels are looked at.

    abstain_below: the probability below which a face, person or clip is undecided. min_track_faces: a person of fewer
    faces is a stray, which counts for its clip as before and is no person.
    """

    abstain_below: float
    min_track_faces: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.abstain_below <= 1:
            raise ValueError(f"abstain_below is {self.abstain_below}; give a probability, 0 to 1")
        if self.min_track_faces < 1:
            raise ValueError(f"min_track_faces is {self.min_track_faces}; give 1 or more")


def sql_otherwise(how: Otherwise, classes: Sequence[str]) -> str:
    """What DuckDB puts in the place of columns of the table of clips: emotion and reason by the clip's own mean."""
    names, values = (
        ", ".join(map(str, each))
        for each in ([_text(name) for name in classes], [f"probabilities[{_text(name)}]" for name in classes])
    )
    is_sure = f"probability >= {how.abstain_below!r}"
    return (
        f"case when probability is null or reason = '{STRAY}' then null"
        f" when {is_sure} then ([{names}])[list_position([{values}], probability)] end as emotion,"
        f" case when probability is null or reason <> '{ABSTAINED}' then reason"  # as that other bytes replaced it
        f" when {is_sure} then null else '{ABSTAINED}' end as reason"
    )


def _text(name: str) -> str:
    return "'" + name.replace("'", "''") + "'"


def faces_otherwise(faces: pa.Table, how: Otherwise) -> pa.Table:
    """Rows of FRAME_SCHEMA with the emotions, reasons and strays that `how` makes of them."""
    return table_of(_predictions(faces, how), faces.schema)


def persons_otherwise(faces: pa.Table, persons: pa.Table, how: Otherwise) -> pa.Table:
    """The rows of TRACK_SCHEMA of a clip. faces: all of the clip, in order of time. persons: as they were labelled."""
    deciding = {"abstain_below": how.abstain_below, "classes": classes_of(faces.schema)}
    return table_of(track_labels_of(_predictions(faces, how), **deciding), persons.schema)


def clip_otherwise(clip: dict[str, Any], faces: pa.Table, how: Otherwise) -> dict[str, Any]:
    """A clip's row with the figures that `how` changes. faces: as they were labelled, in order of time."""
    found = list(predictions_in(faces))
    if not found:
        return clip
    classes = classes_of(faces.schema)
    counted = [face for face in found if not face.stray]
    probabilities = np.array([face.probabilities for face in counted or found])
    summary = summarised(probabilities, abstain_below=how.abstain_below, classes=classes)
    persons = track_labels_of(_predictions(faces, how), abstain_below=how.abstain_below, classes=classes)
    return {
        **clip,
        "emotion": summary.emotion if counted else None,
        "reason": summary.reason if clip["reason"] in (None, ABSTAINED) else clip["reason"],
        "emotion_shares": dict(zip(classes, summary.emotion_shares, strict=True)),
        "num_tracks": len(persons),
        "num_changes": sum(person.num_changes or 0 for person in persons),
    }


def _predictions(faces: pa.Table, how: Otherwise) -> list[Prediction]:
    classes = classes_of(faces.schema)
    found = list(predictions_in(faces))
    num_faces = Counter(face.track_index for face in found if not face.stray)
    return [_prediction(face, how, classes=classes, num_faces=num_faces[face.track_index]) for face in found]


def _prediction(face: Prediction, how: Otherwise, *, classes: Sequence[str], num_faces: int) -> Prediction:
    probabilities = np.array(face.probabilities, np.float32)  # As they are kept, and were compared.
    emotion, reason = emotion_of(probabilities, abstain_below=how.abstain_below, classes=classes)
    is_stray = face.stray or num_faces < how.min_track_faces
    person = None if is_stray else face.person
    return replace(face, emotion=emotion, reason=reason, stray=is_stray, person=person)
