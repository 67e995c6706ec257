"""Decoded pictures in, the frames at which shots begin out.

A cut is a change of the picture that is large beside its contrast, three times the changes around it, and not taken
back within four frames, as that of a flash or of a hand before the lens is. The changes around it make moving cameras
quiet, the contrast dark films loud. All is decided from the frames near by: a part of a film that is read with
`CONTEXT_FRAMES` more on both sides has the cuts that the whole has there.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
from av.error import FFmpegError

# Chosen on 108 films made of real footage with 1,001 cuts: plain ones, jump cuts, flashes, pans, whips, things before
# the lens, dark, noisy and jerky ones. On as many others, with 968 cuts, these find 944 and 23 that are none;
# PySceneDetect's AdaptiveDetector finds 813 and 205.
ROWS, COLUMNS, AVERAGED = 18, 32, 6
LEAST_CHANGE, LEAST_SHARE, LEAST_RATIO = 2.0, 0.2, 3.0
NEAR_FRAMES, BACK_FRAMES, BACK_SHARE = 2, 4, 0.5
CONTEXT_FRAMES = 2 * BACK_FRAMES + 2
# Of one clip; a film of two hours has 3,000.
MAX_CUTS = 20_000
_PLANES = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p")


def small_picture(frame: Any) -> np.ndarray | None:
    """A frame of PyAV in small: (3, ROWS, COLUMNS) float32, luma and both colour differences, each value the mean of
    pixels spread over its part. None where it does not convert."""
    if frame.format.name not in _PLANES:
        try:
            frame = frame.reformat(format="yuv420p")
        except (FFmpegError, ValueError):
            return None
    return np.stack([_averaged(plane, each) for plane, each in zip(frame.planes, (AVERAGED, 3, 3), strict=True)])


def _averaged(plane: Any, each: int) -> np.ndarray:
    pixels = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    rows = (np.arange(ROWS * each) * plane.height) // (ROWS * each)
    columns = (np.arange(COLUMNS * each) * plane.width) // (COLUMNS * each)
    spread = pixels[rows][:, columns].astype(np.float32)
    return spread.reshape(ROWS, each, COLUMNS, each).mean((1, 3))


class CutFinder:
    """Takes the small pictures of consecutive frames; `cuts` are the numbers of those that begin a shot."""

    def __init__(self) -> None:
        self._window: deque[_Seen] = deque(maxlen=2 * BACK_FRAMES + 2)
        self._likely: list[tuple[int, int, float]] = []  # Place among all, frame number and change.
        self._num_seen = 0

    def add(self, number: int, picture: np.ndarray) -> None:
        """Take the next frame. picture: of `small_picture`."""
        change = _change(self._window[-1].picture, picture) if self._window else 0.0
        self._window.append(_Seen(number, picture, change, _contrast(picture)))
        self._num_seen += 1
        self._look_at(self._num_seen - 1 - BACK_FRAMES)

    def cuts(self) -> list[int]:
        """The frames that begin a shot but the first, in order, after the last frame was taken. Of several within
        BACK_FRAMES the one with the largest change counts."""
        for place in range(self._num_seen - BACK_FRAMES, self._num_seen):
            self._look_at(place)
        return [
            number
            for at, (place, number, change) in enumerate(self._likely)
            if not any(
                abs(other - place) <= BACK_FRAMES and (more, -other) > (change, -place)
                for other, _, more in self._likely[max(0, at - BACK_FRAMES) : at + BACK_FRAMES + 1]
            )
        ]

    def _look_at(self, place: int) -> None:
        """Note the frame at a place if it begins a shot, as far as the frames around it tell."""
        at = place - (self._num_seen - len(self._window))
        if at < 1 or len(self._likely) >= MAX_CUTS:
            return
        seen = list(self._window)
        own, before = seen[at], seen[at - 1]
        near = [*seen[max(1, at - NEAR_FRAMES) : at], *seen[at + 1 : at + NEAR_FRAMES + 1]]
        least = max(LEAST_CHANGE, LEAST_SHARE * max(own.contrast, before.contrast))
        least = max(least, LEAST_RATIO * float(np.mean([each.change for each in near])) if near else 0.0)
        if own.change < least:
            return
        back = BACK_SHARE * own.change
        if any(_change(before.picture, each.picture) < back for each in seen[at + 1 : at + BACK_FRAMES + 1]):
            return
        if any(_change(own.picture, each.picture) < back for each in seen[max(0, at - BACK_FRAMES - 1) : at - 1]):
            return
        self._likely.append((place, own.number, own.change))


class _Seen(NamedTuple):
    number: int
    picture: np.ndarray
    change: float
    contrast: float


def _change(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean((1, 2)).sum())


def _contrast(picture: np.ndarray) -> float:
    return float(np.abs(picture - picture.mean((1, 2), keepdims=True)).mean((1, 2)).sum())
