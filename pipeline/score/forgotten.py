"""Which faces are those of a person who was deleted on request. Pure.

A later run may sample other frames, and another model number the persons anew. So a person is known by where its faces
were and when; a track is the person's where half of its faces, of those that can be compared, lie there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

from pipeline.faces.persons import SeenFace, linked
from pipeline.ledger.forgotten import ForgottenPerson
from pipeline.records.faces import Box, iou

MIN_IOU = 0.3
# Between two faces of a person that are further apart nobody knows where it was; nor so long before the first.
MAX_GAP_SECONDS, MAX_ASIDE_SECONDS = 2.0, 0.25
MIN_SHARE = 0.5

Seen = TypeVar("Seen", bound=SeenFace)


def without_persons(
    faces: Sequence[Seen], persons: Sequence[ForgottenPerson], *, cuts: Sequence[int] = ()
) -> list[Seen]:
    """The faces of one clip, in order of frame, without those of the tracks of these persons.

    cuts: numbers of the frames that begin a shot.
    """
    if not persons or not faces:
        return list(faces)
    tracks = linked(faces, cuts=cuts)
    gone = {track for person in persons for track in tracks_of(person, faces, tracks)}
    return [face for face, track in zip(faces, tracks, strict=True) if track not in gone]


def tracks_of(person: ForgottenPerson, faces: Sequence[SeenFace], tracks: Sequence[int]) -> set[int]:
    """The tracks, of those of the faces of one clip, that are this person's."""
    compared, alike = defaultdict[int, int](int), defaultdict[int, int](int)
    times = [time for time, _ in person.faces]
    for face, track in zip(faces, tracks, strict=True):
        if (place := _place_at(face.pts_seconds, times, person)) is not None:
            compared[track] += 1
            alike[track] += iou(face.box, place) >= MIN_IOU
    return {track for track, count in alike.items() if count and count >= MIN_SHARE * compared[track]}


def _place_at(pts_seconds: float, times: Sequence[float], person: ForgottenPerson) -> Box | None:
    """Where the person's face was at a time, between its faces before and after; None where nobody knows."""
    after = bisect_left(times, pts_seconds)
    near = [person.faces[place] for place in (after - 1, after) if 0 <= place < len(times)]
    if len(near) == 2 and near[1][0] - near[0][0] <= MAX_GAP_SECONDS:
        (start, first), (end, second) = near
        share = (pts_seconds - start) / (end - start) if end > start else 0.0

        def between(a: int, b: int) -> int:
            return round(a + share * (b - a))

        return Box(
            between(first.x_min, second.x_min),
            between(first.y_min, second.y_min),
            between(first.x_max, second.x_max),
            between(first.y_max, second.y_max),
        )
    time, box = min(near, key=lambda each: abs(each[0] - pts_seconds), default=(float("inf"), None))
    return box if abs(time - pts_seconds) <= MAX_ASIDE_SECONDS else None
