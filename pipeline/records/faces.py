"""Boxes and faces, and the rows made of them: examples, predictions, labels of persons and clips, thumbnails.

All images are RGB uint8 HWC. Boxes are xyxy, integer pixels, half-open, in the full upright frame.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import pyarrow as pa

from pipeline.records.columns import REPEATED_TYPE, column, schema_of
from pipeline.records.outcomes import State

MEAN_EMOTION = "the most probable emotion of the mean: a model's guess, or null"
SHARES = "share of the sampled faces whose most probable emotion it is (frames are sampled evenly, so: of the time)"
CHANGES = "times a face's emotion differs from the one before it in the same track"
ENTROPY = "mean entropy of the faces' probabilities, nats: 0 is sure, 1.946 (ln 7, of seven classes) knows nothing"
FIRST_SEEN = "time of the first face after the clip's first frame, seconds, or null"
PATH = "path of the clip relative to the input root; empty in a table that is older than this column"
MODEL = "first 12 letters of the checkpoint's sha256, as in the folder; null in a table that is older than this column"
VALENCE = "how pleasant it looks to the model, -1 to 1{}; null where the model gives none"
AROUSAL = "how excited it looks to the model, -1 to 1{}; null where the model gives none"
PERSON_INDEX = (
    "which person of the clip over all its shots, from 0 in order of appearance; null for a stray and without"
    " --link-persons"
)
AGREEMENT = "share of the faces whose most probable emotion is the most probable of the mean"


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
        """Width in pixels."""
        return self.x_max - self.x_min

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.y_max - self.y_min

    @property
    def short_side(self) -> int:
        """The smaller of width and height in pixels."""
        return min(self.width, self.height)

    @property
    def area(self) -> int:
        """Area in square pixels."""
        return self.width * self.height

    def clamped(self, *, width: int, height: int) -> Box:
        """The part inside a frame of `width` x `height` pixels. Raises ValueError if no part is inside."""
        return Box(max(self.x_min, 0), max(self.y_min, 0), min(self.x_max, width), min(self.y_max, height))


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, 0 to 1."""
    width = min(a.x_max, b.x_max) - max(a.x_min, b.x_min)
    height = min(a.y_max, b.y_max) - max(a.y_min, b.y_min)
    common = max(width, 0) * max(height, 0)
    return common / (a.area + b.area - common)


@dataclass(frozen=True, slots=True)
class Face:
    """One detection: the box, and the detector's score (higher is surer; 0.0 where boxes were given by hand)."""

    box: Box
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class FaceRow:
    """Where a face was found: the columns that examples and predictions share."""

    clip_id: str = column("stable id of the clip, 20 hexadecimal digits")
    frame_index: int = column("number of the frame in presentation order, from 0")
    pts_seconds: float = column("presentation time of the frame in its file, seconds")
    face_index: int = column("0 for the largest face of the frame, 1 for the next", arrow=pa.int32())
    box: Box = column("face in the full upright frame: xyxy, integer pixels, half-open, clamped to the frame")
    face_score: float = column("the detector's score, higher is surer; 0 where boxes were given", arrow=pa.float32())
    path: str = column(PATH, default="")
    seconds: float | None = column("time of the frame after the clip's first one, seconds, or null", default=None)
    sample_aspect_ratio: float = column(
        "width of a pixel by its height as stored; boxes and crops are in square pixels", default=1.0
    )
    face_px: int | None = column(
        "the shorter side of the box, pixels; null in a table that is older", default=None, arrow=pa.int32()
    )
    sharpness: float | None = column(
        "variance of the Laplacian by that of the luma at 48 px: 0.2 is usual, under 0.05 blurred; null if older",
        default=None,
        arrow=pa.float32(),
    )
    yaw: float | None = column(
        "how far the head is turned to the right of the image, degrees; null if older", default=None, arrow=pa.float32()
    )
    pitch: float | None = column(
        "how far it looks up, degrees, rough: the build of a face counts too; null if older",
        default=None,
        arrow=pa.float32(),
    )
    roll: float | None = column(
        "how far it leans clockwise in the image, degrees; null if older", default=None, arrow=pa.float32()
    )
    is_frontal: bool | None = column(
        "whether it looks about into the camera: yaw and roll up to 20, pitch up to 25 degrees; null if older",
        default=None,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Example(FaceRow):
    """One face of one frame, as the model reads it."""

    frame_width: int = column("width of the upright frame, pixels", arrow=pa.int32())
    frame_height: int = column("height of the upright frame, pixels", arrow=pa.int32())
    face_jpeg: bytes = column("the box squashed to a square, encoded RGB image (JPEG, or PNG if set)")
    context_jpeg: bytes = column("the frame with the face zeroed, squashed to a square, encoded RGB image")
    label: str | None = column("true emotion, or null", default=None)
    split: str | None = column("train, validation or test, or null", default=None)
    group_name: str | None = column("film, show or person whose clips lie in one split, or null", default=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignedExample(Example):
    """An example and its face upright, by which persons are told apart. Never stored."""

    chip_jpeg: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction(FaceRow):
    """The model's guess for one face of one frame: `probabilities` in the order of its classes, summing to 1."""

    track_index: int = column(
        "which person of the clip, from 0 in order of appearance; strays after them", arrow=pa.int32()
    )
    probabilities: tuple[float, ...] = column("softmax over the classes of the model, at the checkpoint's temperature")
    emotion: str | None = column("the most probable emotion: a model's guess, or null")
    reason: str | None = column("abstained where emotion is null, else null")
    entropy: float = column(
        "entropy of the probabilities, nats: 0 is sure, 1.946 (ln 7, of seven classes) knows nothing",
        arrow=pa.float32(),
    )
    stray: bool = column("whether the face was seen once among many frames, and so counts as no person", default=False)
    person: int | None = column("track_index + 1, as people count; null for a stray", default=None, arrow=pa.int32())
    person_index: int | None = column(PERSON_INDEX, default=None, arrow=pa.int32())
    model: str | None = column(MODEL, default=None, arrow=REPEATED_TYPE)
    valence: float | None = column(VALENCE.format(""), default=None, arrow=pa.float32())
    arousal: float | None = column(AROUSAL.format(""), default=None, arrow=pa.float32())


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackLabel:
    """The model's guess for one person of a clip over time; `pipeline.score.tracks.summarised` defines the figures."""

    clip_id: str = column("stable id of the clip, 20 hexadecimal digits")
    track_index: int = column("which person of the clip, from 0 in order of appearance", arrow=pa.int32())
    first_pts_seconds: float = column("presentation time of the track's first face, seconds")
    last_pts_seconds: float = column("presentation time of the track's last face, seconds")
    num_faces: int = column("faces of the track, one a frame")
    probabilities: tuple[float, ...] = column("mean of the faces' probabilities over the track")
    emotion: str | None = column(MEAN_EMOTION)
    reason: str | None = column("abstained where emotion is null, else null")
    emotion_shares: tuple[float, ...] = column(SHARES)
    num_changes: int | None = column(CHANGES)
    mean_entropy: float = column(ENTROPY, arrow=pa.float32())
    agreement: float = column(AGREEMENT, arrow=pa.float32())
    person: int | None = column("track_index + 1, as people count", default=None, arrow=pa.int32())
    person_index: int | None = column(PERSON_INDEX, default=None, arrow=pa.int32())
    path: str = column(PATH, default="")
    seconds: float | None = column(FIRST_SEEN, default=None)
    last_seconds: float | None = column("time of the last face after the clip's first frame, or null", default=None)
    model: str | None = column(MODEL, default=None, arrow=REPEATED_TYPE)
    valence: float | None = column(VALENCE.format(", mean of the faces"), default=None, arrow=pa.float32())
    arousal: float | None = column(AROUSAL.format(", mean of the faces"), default=None, arrow=pa.float32())


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipLabel:
    """The model's guess for a whole clip: the mean of its faces' probabilities, or None and a reason."""

    clip_id: str = column("stable id of the clip, 20 hexadecimal digits")
    path: str = column("path relative to the input root")
    content_id: str = column("the store's etag, or the MD5 of the bytes")
    state: State = column("done, no_face or quarantined")
    reason: str | None = column("why there is no emotion, null where there is one", default=None)
    same_as: str | None = column(
        "clip_id of the clip with the same bytes that was scored, or null; its frames and tracks are this clip's",
        default=None,
    )
    num_frames: int = column("sampled frames decoded", default=0)
    num_faces: int = column("faces scored, over all frames", default=0)
    num_tracks: int = column("persons, as far as the boxes tell; strays are none", default=0)
    num_persons: int | None = column(
        "persons over all shots (--link-persons), null where they were not linked", default=None
    )
    num_strays: int | None = column("faces that were seen once among many frames", default=0)
    probabilities: tuple[float, ...] | None = column(
        "mean of the faces' probabilities over the clip, or null", default=None
    )
    emotion: str | None = column(MEAN_EMOTION, default=None)
    emotion_shares: tuple[float, ...] | None = column(SHARES, default=None)
    num_changes: int | None = column(f"{CHANGES}, over all tracks", default=0)
    mean_entropy: float | None = column(ENTROPY, arrow=pa.float32(), default=None)
    agreement: float | None = column(AGREEMENT, arrow=pa.float32(), default=None)
    seconds: float | None = column(FIRST_SEEN, default=None)
    model: str | None = column(MODEL, default=None, arrow=REPEATED_TYPE)
    num_shots: int = column("shots of the clip, 0 where nobody looked for them", default=0)
    valence: float | None = column(VALENCE.format(", mean of the faces"), default=None, arrow=pa.float32())
    arousal: float | None = column(AROUSAL.format(", mean of the faces"), default=None, arrow=pa.float32())


@dataclass(frozen=True, kw_only=True, slots=True)
class Shot:
    """What a camera took without a cut: one stretch of a clip."""

    clip_id: str = column("stable id of the clip, 20 hexadecimal digits")
    path: str = column("path relative to the input root")
    shot_index: int = column("which shot of the clip, from 0", arrow=pa.int32())
    first_frame_index: int = column("number of the frame that begins it, in presentation order, from 0")
    start_pts_seconds: float = column("presentation time of its first frame in the file, seconds")
    end_pts_seconds: float = column("where it ends (exclusive): the next shot's start, seconds")
    seconds: float = column("how long it is, seconds")
    begins_with_cut: bool = column("whether a cut lies before it; else the clip begins with it", default=True)
    model: str | None = column(MODEL, default=None, arrow=REPEATED_TYPE)


@dataclass(frozen=True, kw_only=True, slots=True)
class FaceEmbedding:
    """What tells one face from another: biometric data, kept where that is asked for."""

    clip_id: str = column("stable id of the clip, 20 hexadecimal digits")
    path: str = column("path relative to the input root")
    frame_index: int = column("number of the frame in presentation order, from 0")
    pts_seconds: float = column("presentation time of the frame in its file, seconds")
    face_index: int = column("0 for the largest face of the frame, 1 for the next", arrow=pa.int32())
    box: Box = column("face in the full upright frame: xyxy, integer pixels, half-open")
    embedding: bytes = column(
        "dlib's face embedding, 128 little-endian float32: two faces of a person are mostly less than 0.6 apart",
        arrow=pa.binary(512),
    )
    track_index: int | None = column("which track of the clip; null in a segment", default=None, arrow=pa.int32())
    person_index: int | None = column(PERSON_INDEX, default=None, arrow=pa.int32())
    model: str | None = column(MODEL, default=None, arrow=REPEATED_TYPE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Thumbnail:
    """A small picture of one scored frame, for the page; a JPEG of the whole frame in its own shape."""

    clip_id: str = column("stable id of the clip, 20 hexadecimal digits")
    frame_index: int = column("number of the frame in presentation order, from 0")
    pts_seconds: float = column("presentation time of the frame in its file, seconds")
    frame_width: int = column("width of the upright frame, pixels", arrow=pa.int32())
    frame_height: int = column("height of the upright frame, pixels", arrow=pa.int32())
    jpeg: bytes = column("the frame, its longer side 176 px; shows faces unless they were blurred")


EXAMPLE_SCHEMA = schema_of(Example, "one row per face of a sampled frame")
FRAME_SCHEMA = schema_of(Prediction, "one row per face of a scored frame")
TRACK_SCHEMA = schema_of(TrackLabel, "one row per person of a scored clip")
CLIP_LABEL_SCHEMA = schema_of(ClipLabel, "one row per scored clip: its label, or why it has none")
SHOT_SCHEMA = schema_of(Shot, "one row per shot of a scored clip")
EMBEDDING_SCHEMA = schema_of(FaceEmbedding, "one row per face that persons were linked by")
THUMBNAIL_SCHEMA = schema_of(Thumbnail, "small pictures of frames of some scored clips, for report.html")
