"""Boxes, faces, and what is made of them: examples, predictions, labels of persons and clips."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pipeline.records.outcomes import State


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """A rectangle in the full upright frame: xyxy, integer pixels, half-open. It may pass the frame's edge."""

    x_min: int
    y_min: int
    x_max: int
    y_max: int

    def __post_init__(self) -> None:
        if self.x_max <= self.x_min or self.y_max <= self.y_min:
            raise ValueError(f"box {tuple(asdict(self).values())} is empty: it needs x_min < x_max and y_min < y_max")

    @property
    def width(self) -> int:
        return self.x_max - self.x_min

    @property
    def height(self) -> int:
        return self.y_max - self.y_min

    @property
    def area(self) -> int:
        """Area in square pixels."""
        return self.width * self.height

    def clamped(self, *, width: int, height: int) -> Box:
        """The part inside a frame of `width` x `height` pixels. Raises ValueError if no part is inside."""
        return Box(max(self.x_min, 0), max(self.y_min, 0), min(self.x_max, width), min(self.y_max, height))


@dataclass(frozen=True, slots=True)
class Face:
    """One detection: the box, and the detector's score (higher is surer; 0.0 where boxes were given by hand)."""

    box: Box
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One face of one frame, as the model reads it.

    face_jpeg: the squashed box, `face_px` square. context_jpeg: the whole frame with the face zeroed, squashed to
    `context_px` square. Both are encoded RGB images. `box` is the face's, clamped to the frame.
    """

    clip_id: str
    frame_index: int
    pts_seconds: float
    face_index: int
    box: Box
    face_score: float
    frame_width: int
    frame_height: int
    face_jpeg: bytes
    context_jpeg: bytes
    label: str | None = None
    split: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The model's guess for one face of one frame: `probabilities` in the order of `EMOTIONS`, summing to 1.

    track_index: which person of the clip. emotion: None with reason `abstained` where no probability is high enough.
    entropy: of the probabilities, nats.
    """

    clip_id: str
    frame_index: int
    pts_seconds: float
    face_index: int
    box: Box
    face_score: float
    track_index: int
    probabilities: tuple[float, ...]
    emotion: str | None
    reason: str | None
    entropy: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackLabel:
    """The model's guess for one person of a clip over time; `pipeline.tracks.summarised` defines the figures."""

    clip_id: str
    track_index: int
    first_pts_seconds: float
    last_pts_seconds: float
    num_faces: int
    probabilities: tuple[float, ...]
    emotion: str | None
    reason: str | None
    emotion_shares: tuple[float, ...]
    num_changes: int
    mean_entropy: float
    agreement: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipLabel:
    """The model's guess for a whole clip: the mean of its faces' probabilities, or None and a reason.

    same_as: the clip with the same bytes from which this row was copied, or None.
    """

    clip_id: str
    path: str
    content_id: str
    state: State
    reason: str | None = None
    same_as: str | None = None
    num_frames: int = 0
    num_faces: int = 0
    num_tracks: int = 0
    probabilities: tuple[float, ...] | None = None
    emotion: str | None = None
    emotion_shares: tuple[float, ...] | None = None
    num_changes: int | None = None
    mean_entropy: float | None = None
    agreement: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Thumbnail:
    """A small picture of one scored frame, for the page; a JPEG of the whole frame in its own shape."""

    clip_id: str
    frame_index: int
    pts_seconds: float
    frame_width: int
    frame_height: int
    jpeg: bytes


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, 0 to 1."""
    width = min(a.x_max, b.x_max) - max(a.x_min, b.x_min)
    height = min(a.y_max, b.y_max) - max(a.y_min, b.y_min)
    common = max(width, 0) * max(height, 0)
    return common / (a.area + b.area - common)
