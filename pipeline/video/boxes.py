"""Boxes of sampled frames in, boxes at any time out; faces made unrecognisable. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

# What is left of a face, and of the rest of its picture, in which people may stand whom no detector found.
BLURRED_FACE_PX = 6
BLUR_FACTOR = 8
# A face that is hidden is hidden with its hair and its chin.
BLUR_MARGIN = 0.25


@dataclass(frozen=True)
class Track:
    """A person's boxes: times (N,) seconds, increasing; boxes (N, 4) xyxy pixels; labels (N), what is written there.

    step_seconds: time between two sampled frames; over a longer gap the person is not seen.
    """

    times: np.ndarray
    boxes: np.ndarray
    labels: Sequence[str]
    step_seconds: float
    number: int = 1

    def at(self, seconds: float) -> tuple[np.ndarray, str, bool] | None:
        """The box (4,), its label and whether it is interpolated; None where the person is not seen."""
        place = int(np.searchsorted(self.times, seconds + 1e-6, side="right")) - 1
        if place < 0:
            return None
        since = seconds - float(self.times[place])
        if since <= 1e-3:
            return self.boxes[place], self.labels[place], False
        if place + 1 == len(self.times):
            # The last box stands until the next frame would have been sampled, half a step.
            return (self.boxes[place], self.labels[place], True) if since <= self.step_seconds / 2 else None
        gap = float(self.times[place + 1] - self.times[place])
        if gap > 1.5 * self.step_seconds + 1e-6:
            return None
        share = since / gap
        return (1 - share) * self.boxes[place] + share * self.boxes[place + 1], self.labels[place], True

    def hidden_at(self, seconds: float) -> np.ndarray | None:
        """The box (4,) that hides the face, also in gaps and a step before and after; None beyond."""
        if not len(self.times):
            return None
        if not self.times[0] - self.step_seconds <= seconds <= self.times[-1] + self.step_seconds:
            return None
        return np.array([np.interp(seconds, self.times, self.boxes[:, side]) for side in range(4)])


def tracks_of(given: Sequence[dict[str, object]], *, step_seconds: float) -> list[Track]:
    """Tracks of plain values, as they go to a child process: `times`, `boxes`, `labels`, `number`."""
    return [
        Track(
            times=np.asarray(each["times"], np.float64),
            boxes=np.asarray(each["boxes"], np.float64).reshape(-1, 4),
            labels=list(each["labels"]),  # type: ignore[arg-type]
            step_seconds=step_seconds,
            number=int(each["number"]),  # type: ignore[arg-type]
        )
        for each in given
    ]


def without_faces(image: np.ndarray, boxes: Sequence[np.ndarray]) -> np.ndarray:
    """An RGB frame (H, W, 3) of which nobody can be told: coarse, and a face no more than 6 x 6 colours."""
    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    found = coarse(picture, max(1, width // BLUR_FACTOR), max(1, height // BLUR_FACTOR))
    for x_min, y_min, x_max, y_max in boxes:
        extra_x, extra_y = BLUR_MARGIN * (x_max - x_min), BLUR_MARGIN * (y_max - y_min)
        place = (
            max(0, int(x_min - extra_x)),
            max(0, int(y_min - extra_y)),
            min(width, int(x_max + extra_x) + 1),
            min(height, int(y_max + extra_y) + 1),
        )
        if place[0] < place[2] and place[1] < place[3]:
            found.paste(coarse(picture.crop(place), BLURRED_FACE_PX, BLURRED_FACE_PX), place[:2])
    return np.asarray(found)


def coarse(image: Image.Image, columns: int, rows: int) -> Image.Image:
    """The same size with columns x rows colours, each the mean of its part: nothing of it can be sharpened again."""
    few = image.resize((min(columns, image.width), min(rows, image.height)), Image.Resampling.BOX)
    return few.resize(image.size, Image.Resampling.BILINEAR)
