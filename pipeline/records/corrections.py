"""What a person said of a label: one object each."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import StrEnum

from pipeline.records.columns import column
from pipeline.records.vocabulary import MAX_CLASS_LETTERS


class Said(StrEnum):
    """What a correction says of a person's face in a span of a clip."""

    EMOTION = "emotion"
    NOT_A_FACE = "not_a_face"
    ANOTHER_PERSON = "another_person"
    CANNOT_TELL = "cannot_tell"
    UNDO = "undo"


@dataclass(frozen=True, kw_only=True, slots=True)
class Correction:
    """One thing that one annotator said. A correction is never changed: it is undone by a later one of its annotator.

    The span is half-open; None is the clip's own start or end, and a track of None is every person of the clip.
    """

    correction_id: str = column("time (UTC) and 16 random hexadecimal digits: the name of its object")
    clip_id: str = column("stable id of the clip, 20 hexadecimal digits")
    path: str = column("path of the clip relative to the input root")
    track_index: int | None = column("which person of the clip, from 0, or null: all", default=None)
    start_pts_seconds: float | None = column("start of the span, seconds, or null", default=None)
    end_pts_seconds: float | None = column("end of the span (exclusive), seconds, or null", default=None)
    said: Said = column("emotion, not_a_face, another_person, cannot_tell or undo")
    label: str | None = column("the emotion, a class of the model, or null where said is another", default=None)
    annotator: str = column("name that the annotator gave")
    created: str = column("when it was said, ISO 8601, UTC")
    model: str = column("sha256 of the checkpoint whose label it corrects, first 12 digits")
    undoes: str | None = column("correction_id of what it takes back, or null", default=None)
    source: str = column("where it was said: viewer, label-studio or cvat", default="viewer")

    def __post_init__(self) -> None:
        self._check_kinds()
        if (self.said == Said.EMOTION) != (self.label is not None):
            raise ValueError(f"label is {self.label!r} where {self.said} is said; only an emotion has one")
        if self.label is not None and (len(self.label) > MAX_CLASS_LETTERS or not self.label.isprintable()):
            raise ValueError(f"label is {self.label!r}; give a class of the model")
        if (self.said == Said.UNDO) != (self.undoes is not None):
            raise ValueError(f"undoes is {self.undoes!r} where {self.said} is said; only undo has one")
        if not self.annotator.strip() or len(self.annotator) > 100 or not self.annotator.isprintable():
            raise ValueError(f"annotator is {self.annotator!r}; give a name of 1 to 100 letters")
        start, end = self.start_pts_seconds, self.end_pts_seconds
        if start is not None and end is not None and end <= start:
            raise ValueError(f"the span ends at {end} s, before it starts at {start} s")

    def _check_kinds(self) -> None:
        """Raise ValueError for a value of a kind that its field has not: it may come from anywhere."""
        for each in fields(self):
            value, may_be_null = getattr(self, each.name), each.default is None
            if value is None and may_be_null:
                continue
            if each.name in ("start_pts_seconds", "end_pts_seconds"):
                is_fit = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            elif each.name == "track_index":
                is_fit = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
            else:
                is_fit = isinstance(value, str)
            if not is_fit:
                raise ValueError(f"{each.name} is {value!r}, which a correction cannot have")
