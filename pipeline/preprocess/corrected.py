"""Examples in, examples with the labels that people gave their faces out. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.records.clips import Clip, whole_id
from pipeline.records.faces import Box, Example, iou

MIN_IOU = 0.4


@dataclass(frozen=True, kw_only=True)
class CorrectedPerson:
    """A person of a clip whom somebody looked at.

    times: (N,) seconds, increasing. boxes: (N, 4) xyxy pixels. step_seconds: time between two sampled frames. said:
    (start, end, emotion) in the order in which they were said; None is the clip's own start or end, and an emotion of
    None takes the face out.
    """

    times: Sequence[float]
    boxes: Sequence[Sequence[int]]
    step_seconds: float
    said: Sequence[tuple[float | None, float | None, str | None]]

    def box_at(self, seconds: float) -> Box | None:
        """The box at a time, interpolated between two sampled frames; None where the person is not seen."""
        if not self.times[0] - self.step_seconds <= seconds <= self.times[-1] + self.step_seconds:
            return None
        place = int(np.abs(np.asarray(self.times) - seconds).argmin())
        if abs(self.times[place] - seconds) > self.step_seconds:
            return None
        boxes = np.asarray(self.boxes, np.float64)
        sides = [round(float(np.interp(seconds, self.times, boxes[:, side]))) for side in range(4)]
        return Box(*sides)

    def said_at(self, seconds: float) -> tuple[bool, str | None]:
        """Whether anything was said of a time, and the emotion that was said last."""
        found = [
            emotion
            for start, end, emotion in self.said
            if (start is None or seconds >= start) and (end is None or seconds < end)
        ]
        return (True, found[-1]) if found else (False, None)


@dataclass(frozen=True, kw_only=True)
class CorrectedFaces:
    """What people said of faces, by clip. digest: changes with any correction. correction_ids: those that stand."""

    digest: str
    correction_ids: Sequence[str]
    clips: Mapping[str, Sequence[CorrectedPerson]] = field(default_factory=dict)

    @property
    def labels(self) -> set[str]:
        """Every class that was said."""
        said = (each for persons in self.clips.values() for person in persons for each in person.said)
        return {emotion for _, _, emotion in said if emotion is not None}

    def applied(self, clip: Clip, examples: Iterable[Example]) -> list[Example]:
        """The examples of a clip with the labels that were said; those without any label are left out.

        A face is the person whose box at its time meets its own best, with an IoU of 0.4 at least.
        """
        persons = self.clips.get(whole_id(clip.clip_id), ())
        labelled = [_labelled(example, persons) for example in examples]
        return [example for example in labelled if example is not None and example.label is not None]


def _labelled(example: Example, persons: Sequence[CorrectedPerson]) -> Example | None:
    best, best_iou = None, MIN_IOU
    for person in persons:
        box = person.box_at(example.pts_seconds)
        if box is not None and (found := iou(box, example.box)) >= best_iou:
            best, best_iou = person, found
    if best is None:
        return example
    is_said, emotion = best.said_at(example.pts_seconds)
    if not is_said:
        return example
    return None if emotion is None else replace(example, label=emotion)
