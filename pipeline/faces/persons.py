"""The faces of a clip's sampled frames in, persons over time out. Pure.

Sampled frames lie far apart (8 of a clip of 3 s: 0.4 s), so plain IoU loses a head that turns or walks. Boxes are
therefore moved on at the speed they had and widened by what a head may move in the time between (the buffered IoU of
Yang et al., WACV 2023), twice: first where the track should be, then where it was last seen. No embedding: on 21 real
clips at 8 frames no pair of faces that Dlib's face embedding takes for one person (distance under 0.6) was in two
tracks, of 440, and 10 pairs of one person whose head turns were further apart than that.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Protocol

import numpy as np

from pipeline.records.faces import Box, iou

# A face that is in one of so many sampled frames, and in no other, is no person: mostly a false alarm of the detector.
MANY_FRAMES = 5
MIN_IOU = 0.2
# A box is widened on each side by this share of itself for each second, within these bounds. At 0.5 and an IoU of 0.2
# a face may have moved by 1.33 times its own width, at 0.1 by 0.8.
ALLOWANCE_PER_SECOND = 1.0
ALLOWANCE = (0.1, 0.5)
# A person who was not found is waited for so long: two sampled frames without the face, or a second.
MAX_STEPS_AWAY = 3
MAX_SECONDS_AWAY = 1.0
# A speed from two boxes is not trusted for more than this many widths of the face.
MAX_WIDTHS_AHEAD = 1.5


class SeenFace(Protocol):
    """A face of a sampled frame: an example, a prediction."""

    @property
    def frame_index(self) -> int: ...
    @property
    def pts_seconds(self) -> float: ...
    @property
    def box(self) -> Box: ...


def numbered(tracks: Sequence[int], *, num_frames: int) -> tuple[list[int], int]:
    """The tracks numbered anew, strays after the persons; and how many persons there are.

    Args:
        tracks: of each face of a clip, from `linked`.
        num_frames: sampled frames of the clip, with and without faces.
    """
    sizes = Counter(tracks)
    is_stray = {track: num_frames >= MANY_FRAMES and size == 1 for track, size in sizes.items()}
    order = {track: number for number, track in enumerate(sorted(sizes, key=lambda track: (is_stray[track], track)))}
    return [order[track] for track in tracks], len(sizes) - sum(is_stray.values())


@dataclass
class _Track:
    boxes: list[Box]
    times: list[float]

    def ahead(self, pts_seconds: float) -> Box:
        """Where the face should be at that time, if it goes on as between its last two boxes."""
        if len(self.boxes) < 2:
            return self.boxes[-1]
        before, last = self.boxes[-2:]
        span = (pts_seconds - self.times[-1]) / (self.times[-1] - self.times[-2])
        most = MAX_WIDTHS_AHEAD * last.width

        def step(old: int, new: int) -> int:
            return round(float(np.clip((new - old) / 2 * span, -most, most)))

        dx = step(before.x_min + before.x_max, last.x_min + last.x_max)
        dy = step(before.y_min + before.y_max, last.y_min + last.y_max)
        return Box(last.x_min + dx, last.y_min + dy, last.x_max + dx, last.y_max + dy)


def linked(examples: Sequence[SeenFace], *, cuts: Sequence[int] = ()) -> list[int]:
    """The track of each face of one clip, numbered from 0 in order of appearance.

    examples: in order of frame and face, as extracted. cuts: numbers of the frames that begin a shot, increasing; a
    track ends where its shot does. In each frame the pair of highest IoU is linked first; equal
    ones go to the older track, then to the earlier face. A person who is away for longer than two sampled frames and a
    second is a new one on coming back.
    """
    frames = [list(group) for _, group in groupby(examples, key=lambda example: example.frame_index)]
    times = [frame[0].pts_seconds for frame in frames]
    step = min((b - a for a, b in pairwise(times) if b > a), default=0.0)
    longest = max((MAX_STEPS_AWAY + 0.5) * step, MAX_SECONDS_AWAY)
    tracks: list[_Track] = []
    recent: list[int] = []  # A film of hours has thousands of tracks that nobody comes back to.
    found: list[int] = []
    shot = 0
    for frame, now in zip(frames, times, strict=True):
        boxes = [example.box for example in frame]
        shot_before, shot = shot, bisect_right(cuts, frame[0].frame_index)
        if shot != shot_before:
            recent = []
        recent = [index for index in recent if now - tracks[index].times[-1] <= longest]
        waiting = [index for index in recent if now > tracks[index].times[-1]]
        taken: dict[int, int] = {}
        for expected in (_Track.ahead, lambda track, _: track.boxes[-1]):
            places = {index: expected(tracks[index], now) for index in waiting if index not in taken.values()}
            taken |= _pairs(places, boxes, tracks, now=now, taken=taken)
        for number, box in enumerate(boxes):
            if number not in taken:
                taken[number] = len(tracks)
                recent.append(len(tracks))
                tracks.append(_Track([], []))
            tracks[taken[number]].boxes.append(box)
            tracks[taken[number]].times.append(now)
            found.append(taken[number])
    return found


def _pairs(
    places: dict[int, Box], boxes: Sequence[Box], tracks: Sequence[_Track], *, now: float, taken: dict[int, int]
) -> dict[int, int]:
    """Face -> track, of the faces that are not taken and the tracks of `places`."""
    overlaps = []
    for index, place in places.items():
        allowance = min(max(ALLOWANCE[0], ALLOWANCE_PER_SECOND * (now - tracks[index].times[-1])), ALLOWANCE[1])
        for number, box in enumerate(boxes):
            overlap = iou(_widened(place, allowance), _widened(box, allowance))
            if number not in taken and overlap >= MIN_IOU:
                overlaps.append((-overlap, index, number))
    pairs: dict[int, int] = {}
    for _, index, number in sorted(overlaps):
        if number not in pairs and index not in pairs.values():
            pairs[number] = index
    return pairs


def _widened(box: Box, share: float) -> Box:
    dx, dy = round(share * box.width), round(share * box.height)
    return Box(box.x_min - dx, box.y_min - dy, box.x_max + dx, box.y_max + dy)
