"""The faces of a person in, evenly spaced moments and spans of one emotion out. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.models.sidecar import AFFECT
from pipeline.records.arrow import pc
from pipeline.records.columns import classes_of
from pipeline.score.tracks import emotion_of

MAX_NAME_BYTES = 120
# What XML 1.0 has no place for, and lone halves of letters.
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """A person in the interval [second, second + every): the mean of its faces there.

    probabilities: of each class. valence, arousal: -1 to 1, None where the model gives none.
    """

    second: float
    num_faces: int
    probabilities: tuple[float, ...]
    emotion: str | None
    valence: float | None = None
    arousal: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A stretch [start, end) in seconds in which a person has one emotion; probability: its mean there."""

    start: float
    end: float
    emotion: str
    probability: float


def probabilities_of(faces: pa.Table) -> np.ndarray:
    """(N, classes) float64, in the order of the model's. faces: rows of FRAME_SCHEMA."""
    struct = faces["probabilities"].combine_chunks()
    columns = [pc.struct_field(struct, each.name).to_numpy(zero_copy_only=False) for each in struct.type]
    return np.stack(columns, axis=1).astype(np.float64)


def moments_of(faces: pa.Table, *, every: float, abstain_below: float = 0.0) -> list[Moment]:
    """The moments of one person, where it has faces, in order of time.

    Args:
        faces: rows of FRAME_SCHEMA of one person, in order of time.
        every: length of a moment, seconds.
        abstain_below: as the labels were made.
    """
    if not faces.num_rows:
        return []
    seconds = faces["pts_seconds"].to_numpy()
    numbers = np.floor(seconds / every + 1e-9).astype(np.int64)
    rows = probabilities_of(faces)
    classes = classes_of(faces.schema)
    affect = {name: faces[name].to_numpy().astype(np.float64) for name in AFFECT}
    found = []
    for number in np.unique(numbers):
        own = rows[numbers == number]
        mean = own.mean(axis=0)
        found.append(
            Moment(
                second=round(float(number * every), 6),
                num_faces=len(own),
                probabilities=tuple(mean.tolist()),
                emotion=emotion_of(mean, abstain_below=abstain_below, classes=classes)[0],
                **{name: _mean(values[numbers == number]) for name, values in affect.items()},
            )
        )
    return found


def _mean(values: np.ndarray) -> float | None:
    mean = float(values.mean())
    return None if math.isnan(mean) else round(mean, 6)


def spans_of(moments: Sequence[Moment], *, every: float) -> list[Span]:
    """Neighbouring moments of one emotion as one span; a gap or an abstention ends it."""
    spans: list[Span] = []
    for moment in moments:
        if moment.emotion is None:
            continue
        probability = max(moment.probabilities)
        end = round(moment.second + every, 6)
        before = spans[-1] if spans else None
        if before and before.emotion == moment.emotion and abs(before.end - moment.second) < 1e-6:
            num = round((before.end - before.start) / every)
            mean = (before.probability * num + probability) / (num + 1)
            spans[-1] = Span(start=before.start, end=end, emotion=before.emotion, probability=mean)
        else:
            spans.append(Span(start=moment.second, end=end, emotion=moment.emotion, probability=probability))
    return spans


def shot_times(shots: pa.Table) -> list[tuple[float, float]]:
    """Start and end of each shot in seconds from the clip's first frame. shots: rows of SHOT_SCHEMA, in order."""
    rows = shots.select(["start_pts_seconds", "end_pts_seconds"]).to_pylist()
    first = rows[0]["start_pts_seconds"] if rows else 0.0
    return [(row["start_pts_seconds"] - first, row["end_pts_seconds"] - first) for row in rows]


def by_person(faces: pa.Table) -> dict[int, pa.Table]:
    """The faces of each person, by its number in order of appearance. Strays are nobody's."""
    faces = faces.filter(pc.invert(faces["stray"]))
    return {
        index: faces.filter(pc.equal(faces["track_index"], index))
        for index in sorted(set(faces["track_index"].to_pylist()))
    }


def file_name(clip: dict[str, Any], ending: str) -> str:
    """A file's name for a clip that no path can lead out of its folder with, and that no other clip has."""
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in clip["path"]).strip(".")
    short = safe.encode()[-MAX_NAME_BYTES:].decode("utf-8", "ignore")  # A letter may have four of them.
    return f"{short or 'clip'}-{clip['clip_id'][:8]}.{ending}"


def printable(text: str) -> str:
    """A text that any XML file and figure can hold: with a mark in place of what is no letter to them."""
    return _NOT_IN_XML.sub("\ufffd", text)
