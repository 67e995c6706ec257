"""The faces of a frame that lies between two frames in which faces were detected. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.faces.images import sorted_faces
from pipeline.records.faces import Box, Face, iou


def faces_between(first: Sequence[Face], second: Sequence[Face], *, share: float) -> list[Face]:
    """The faces of both key frames, `share` of the way from the first to the second (0 to 1); sorted as detections.

    Corners and scores are interpolated linearly, corners rounded to whole pixels (a half goes up). A face without a
    partner in the other key frame is left out.
    """
    return sorted_faces([_between(a, b, share) for a, b in partners(first, second)])


def partners(first: Sequence[Face], second: Sequence[Face]) -> list[tuple[Face, Face]]:
    """Faces of two frames taken for the same one: the pair of highest IoU first, each face once, IoU above 0.

    Equal IoUs go to the earlier faces of the lists.
    """
    overlaps = sorted(
        (-overlap, i, j)
        for i, a in enumerate(first)
        for j, b in enumerate(second)
        if (overlap := iou(a.box, b.box)) > 0
    )
    found: dict[int, int] = {}
    for _, i, j in overlaps:
        if i not in found and j not in found.values():
            found[i] = j
    return [(first[i], second[j]) for i, j in found.items()]


def _between(a: Face, b: Face, share: float) -> Face:
    corners = [
        math.floor(start + share * (end - start) + 0.5)
        for start, end in (
            (a.box.x_min, b.box.x_min),
            (a.box.y_min, b.box.y_min),
            (a.box.x_max, b.box.x_max),
            (a.box.y_max, b.box.y_max),
        )
    ]
    return Face(Box(*corners), a.score + share * (b.score - a.score))
