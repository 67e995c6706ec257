"""What flows through the pipeline: small frozen records, and the Arrow schemas in which they rest.

A `Clip` becomes sampled frames, a frame becomes `Face`s, a face becomes an `Example` (for training) or a
`Prediction` (for labels), and every clip ends as exactly one `Outcome`. All images are RGB uint8 HWC; all boxes are
xyxy integer pixels, half-open, in the full upright frame.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from operator import eq
from typing import Any, overload

import pyarrow as pa

SCHEMA_VERSION = 1
ROWS_AT_ONCE = 4096


class UsageError(ValueError):
    """What the user gave cannot be used; the message names the thing, the value and the cure. Ends with exit code 2."""


class Emotion(StrEnum):
    """The seven classes of CAER, in the order of every probability vector."""

    ANGER = "Anger"
    DISGUST = "Disgust"
    FEAR = "Fear"
    HAPPY = "Happy"
    NEUTRAL = "Neutral"
    SAD = "Sad"
    SURPRISE = "Surprise"


EMOTIONS: tuple[str, ...] = tuple(emotion.value for emotion in Emotion)
SPLITS: tuple[str, ...] = ("train", "validation", "test")


class State(StrEnum):
    """Where an input ended: every input ends in exactly one state."""

    DONE = "done"
    NO_FACE = "no_face"
    QUARANTINED = "quarantined"
    RETRYABLE = "retryable"


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One input video (or image), or one time range of it.

    clip_id: 20 hexadecimal digits, stable across runs and machines: from `path`, `size_bytes`, `content_id` and the
    time range, never from an absolute path. `path` is relative to the input root; `url` is where the bytes are read.
    `start_pts_seconds` and `end_pts_seconds` bound the range (half-open); None is the clip's own start or end.
    `same_as`: the clip_id of another clip with the same bytes, whose result counts for this one too; its own, where its
    result is joined from its segments.
    """

    clip_id: str
    path: str
    url: str
    size_bytes: int
    content_id: str
    label: str | None = None
    split: str | None = None
    start_pts_seconds: float | None = None
    end_pts_seconds: float | None = None
    same_as: str | None = None

    def __post_init__(self) -> None:
        if self.label is not None and self.label not in EMOTIONS:
            raise ValueError(f"clip {self.path}: label {self.label!r} is not one of {', '.join(EMOTIONS)}")
        if self.split is not None and self.split not in SPLITS:
            raise ValueError(f"clip {self.path}: split {self.split!r} is not one of {', '.join(SPLITS)}")
        start, end = self.start_pts_seconds, self.end_pts_seconds
        if start is not None and end is not None and end <= start:
            raise ValueError(f"clip {self.path}: it ends at {end} s, before it starts at {start} s; check the manifest")

    @property
    def joins_segments(self) -> bool:
        """Whether its result is that of its segments, which are clips of their own."""
        return self.same_as == self.clip_id


def segment_id(clip_id: str, number: int) -> str:
    """The id of a segment of a clip, from 0; sorts by its number."""
    return f"{clip_id}.{number:04d}"


def whole_id(clip_id: str) -> str:
    """The id of the whole clip, given that of a segment or its own."""
    return clip_id.partition(".")[0]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How one clip ended. `reason` is a short stable word for every state but done; `detail` is for people.

    num_frames: sampled frames decoded. num_examples: rows written. num_examples_dropped: rows made and not written,
    since the clip decoded too badly. attempts: tries of this clip, 1 or more.
    decode_integrity: 1.0 where every frame of the container was decoded, distinct and uncorrupted; None if unknown.
    """

    clip_id: str
    path: str
    state: State
    reason: str | None = None
    stage: str | None = None
    detail: str | None = None
    num_frames: int = 0
    num_faceless_frames: int = 0
    num_examples: int = 0
    num_examples_dropped: int = 0
    num_boxes_clamped: int = 0
    attempts: int = 1
    seconds: float = 0.0
    decoder: str | None = None
    decoder_reason: str | None = None
    decode_integrity: float | None = None

    def __post_init__(self) -> None:
        if self.state is not State.DONE and not self.reason:
            raise ValueError(f"clip {self.path}: state {self.state} needs a reason")


def _field(name: str, kind: pa.DataType, meaning: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"meaning": meaning})


def _schema(content: str, fields: Iterable[pa.Field]) -> pa.Schema:
    fields = list(fields)
    # Readers that know Parquet but not Arrow see the file's key-value metadata and nothing of a column's.
    columns = {field.name: (field.metadata or {})[b"meaning"].decode() for field in fields}
    metadata = {"schema_version": str(SCHEMA_VERSION), "content": content, "columns": json.dumps(columns)}
    return pa.schema(fields, metadata=metadata)


_BOX = pa.struct([pa.field(name, pa.int32(), nullable=False) for name in ("x_min", "y_min", "x_max", "y_max")])
_PROBABILITIES = pa.struct([pa.field(name, pa.float32(), nullable=False) for name in EMOTIONS])

_FACE_FIELDS = (
    _field("clip_id", pa.string(), "stable id of the clip, 20 hexadecimal digits"),
    _field("frame_index", pa.int64(), "number of the frame in presentation order, from 0"),
    _field("pts_seconds", pa.float64(), "presentation time of the frame in its file, seconds"),
    _field("face_index", pa.int32(), "0 for the largest face of the frame, 1 for the next"),
    _field("box", _BOX, "face in the full upright frame: xyxy, integer pixels, half-open, clamped to the frame"),
    _field("face_score", pa.float32(), "the detector's score, higher is surer; 0 where boxes were given"),
)

EXAMPLE_SCHEMA = _schema(
    "one row per face of a sampled frame",
    (
        *_FACE_FIELDS,
        _field("frame_width", pa.int32(), "width of the upright frame, pixels"),
        _field("frame_height", pa.int32(), "height of the upright frame, pixels"),
        _field("face_jpeg", pa.binary(), "the box squashed to a square, encoded RGB image (JPEG, or PNG if set)"),
        _field("context_jpeg", pa.binary(), "the frame with the face zeroed, squashed to a square, encoded RGB image"),
        _field("label", pa.string(), "true emotion, or null", nullable=True),
        _field("split", pa.string(), "train, validation or test, or null", nullable=True),
    ),
)

_MEAN_EMOTION = "the most probable emotion of the mean: a model's guess, or null"
_SHARES = "share of the sampled faces whose most probable emotion it is (frames are sampled evenly, so: of the time)"
_CHANGES = "times a face's emotion differs from the one before it in the same track"
_ENTROPY = "mean entropy of the faces' probabilities, nats: 0 is sure, 1.946 (ln 7) knows nothing"
_AGREEMENT = "share of the faces whose most probable emotion is the most probable of the mean"

FRAME_SCHEMA = _schema(
    "one row per face of a scored frame",
    (
        *_FACE_FIELDS,
        _field("track_index", pa.int32(), "which person of the clip, from 0 in order of appearance"),
        _field("probabilities", _PROBABILITIES, "softmax over the seven emotions, at the checkpoint's temperature"),
        _field("emotion", pa.string(), "the most probable emotion: a model's guess, or null", nullable=True),
        _field("reason", pa.string(), "abstained where emotion is null, else null", nullable=True),
        _field("entropy", pa.float32(), "entropy of the probabilities, nats: 0 is sure, 1.946 (ln 7) knows nothing"),
    ),
)

TRACK_SCHEMA = _schema(
    "one row per person of a scored clip",
    (
        _field("clip_id", pa.string(), "stable id of the clip, 20 hexadecimal digits"),
        _field("track_index", pa.int32(), "which person of the clip, from 0 in order of appearance"),
        _field("first_pts_seconds", pa.float64(), "presentation time of the track's first face, seconds"),
        _field("last_pts_seconds", pa.float64(), "presentation time of the track's last face, seconds"),
        _field("num_faces", pa.int64(), "faces of the track, one a frame"),
        _field("probabilities", _PROBABILITIES, "mean of the faces' probabilities over the track"),
        _field("emotion", pa.string(), _MEAN_EMOTION, nullable=True),
        _field("reason", pa.string(), "abstained where emotion is null, else null", nullable=True),
        _field("emotion_shares", _PROBABILITIES, _SHARES),
        _field("num_changes", pa.int64(), _CHANGES),
        _field("mean_entropy", pa.float32(), _ENTROPY),
        _field("agreement", pa.float32(), _AGREEMENT),
    ),
)

CLIP_LABEL_SCHEMA = _schema(
    "one row per scored clip: its label, or why it has none",
    (
        _field("clip_id", pa.string(), "stable id of the clip, 20 hexadecimal digits"),
        _field("path", pa.string(), "path relative to the input root"),
        _field("content_id", pa.string(), "the store's etag, or the MD5 of the bytes"),
        _field("state", pa.string(), "done, no_face or quarantined"),
        _field("reason", pa.string(), "why there is no emotion, null where there is one", nullable=True),
        _field(
            "same_as",
            pa.string(),
            "clip_id of the clip with the same bytes that was scored, or null; its frames and tracks are this clip's",
            nullable=True,
        ),
        _field("num_frames", pa.int64(), "sampled frames decoded"),
        _field("num_faces", pa.int64(), "faces scored, over all frames"),
        _field("num_tracks", pa.int64(), "persons, as far as the boxes tell"),
        _field(
            "probabilities", _PROBABILITIES, "mean of the faces' probabilities over the clip, or null", nullable=True
        ),
        _field("emotion", pa.string(), _MEAN_EMOTION, nullable=True),
        _field("emotion_shares", _PROBABILITIES, _SHARES, nullable=True),
        _field("num_changes", pa.int64(), f"{_CHANGES}, over all tracks", nullable=True),
        _field("mean_entropy", pa.float32(), _ENTROPY, nullable=True),
        _field("agreement", pa.float32(), _AGREEMENT, nullable=True),
    ),
)

THUMBNAIL_SCHEMA = _schema(
    "small pictures of frames of some scored clips, for report.html",
    (
        *_FACE_FIELDS[:3],
        _field("frame_width", pa.int32(), "width of the upright frame, pixels"),
        _field("frame_height", pa.int32(), "height of the upright frame, pixels"),
        _field("jpeg", pa.binary(), "the frame, its longer side 176 px; shows faces unless they were blurred"),
    ),
)

CLIP_SCHEMA = _schema(
    "one row per input clip: the plan",
    (
        _field("clip_id", pa.string(), "stable id of the clip, 20 hexadecimal digits"),
        _field("path", pa.string(), "path relative to the input root"),
        _field("url", pa.string(), "where the bytes are read"),
        _field("size_bytes", pa.int64(), "size of the file, bytes"),
        _field("content_id", pa.string(), "the store's etag, or the MD5 of the bytes"),
        _field("label", pa.string(), "true emotion, or null", nullable=True),
        _field("split", pa.string(), "train, validation or test, or null", nullable=True),
        _field("start_pts_seconds", pa.float64(), "start of the range, seconds, or null", nullable=True),
        _field("end_pts_seconds", pa.float64(), "end of the range (exclusive), seconds, or null", nullable=True),
        _field("same_as", pa.string(), "clip_id of a clip with the same bytes, or null", nullable=True),
    ),
)

OUTCOME_SCHEMA = _schema(
    "one row per clip: how it ended",
    (
        _field("clip_id", pa.string(), "stable id of the clip, 20 hexadecimal digits"),
        _field("path", pa.string(), "path relative to the input root"),
        _field("state", pa.string(), "done, no_face, quarantined or retryable"),
        _field("reason", pa.string(), "short stable word, null when done", nullable=True),
        _field("stage", pa.string(), "where it ended, or null", nullable=True),
        _field("detail", pa.string(), "for people, or null", nullable=True),
        _field("num_frames", pa.int64(), "sampled frames decoded"),
        _field("num_faceless_frames", pa.int64(), "frames without a face"),
        _field("num_examples", pa.int64(), "rows written"),
        _field("num_examples_dropped", pa.int64(), "examples made and then dropped with their clip"),
        _field("num_boxes_clamped", pa.int64(), "boxes that passed the frame's edge"),
        _field("attempts", pa.int32(), "tries of this clip"),
        _field("seconds", pa.float64(), "wall time of the clip"),
        _field("decoder", pa.string(), "what made the frames, or null", nullable=True),
        _field("decoder_reason", pa.string(), "why that one, or null", nullable=True),
        _field("decode_integrity", pa.float64(), "1 where every frame is sound, null if unknown", nullable=True),
    ),
)


def table_of(records: Iterable[Any], schema: pa.Schema) -> pa.Table:
    """Records as an Arrow table of exactly `schema`; an empty list gives an empty table with the same columns."""
    rows = [asdict(record) for record in records]
    for row in rows:
        for name in ("probabilities", "emotion_shares"):
            if row.get(name) is not None:
                row[name] = dict(zip(EMOTIONS, row[name], strict=True))
    return pa.Table.from_pylist(rows, schema=schema)


def clip_of(row: Mapping[str, Any]) -> Clip:
    """The Clip of one row of a table of `CLIP_SCHEMA`."""
    return Clip(**row)


def clip_table(clips: Sequence[Clip] | pa.Table) -> pa.Table:
    """Clips as a table of CLIP_SCHEMA; of a table that has more columns, these."""
    if isinstance(clips, Clips):
        return clips.table
    if not isinstance(clips, Sequence):
        return clips.select(CLIP_SCHEMA.names)
    return pa.table({name: [getattr(clip, name) for clip in clips] for name in CLIP_SCHEMA.names}, schema=CLIP_SCHEMA)


class Clips(Sequence[Clip]):
    """Clips as a tuple of them reads and compares; each is made when it is asked for: a Clip takes 1 KB, a row 0.2 KB.

    table: rows of CLIP_SCHEMA; further columns are left out.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = clip_table(table)

    def __len__(self) -> int:
        return self.table.num_rows

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> Clips: ...
    def __getitem__(self, index: int | slice) -> Clip | Clips:
        rows = range(len(self))[index]
        if isinstance(rows, range):
            return Clips(self.table[rows.start : rows.stop] if rows.step == 1 else self.table.take(list(rows)))
        return clip_of(self.table.slice(rows, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Clip]:
        for batch in self.table.to_batches(max_chunksize=ROWS_AT_ONCE):
            yield from map(clip_of, batch.to_pylist())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Clips):
            return self.table.equals(other.table)
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]


def outcome_of(row: Mapping[str, Any]) -> Outcome:
    """The Outcome of a row of JSON, as in outcomes.jsonl and in ledger entries."""
    return Outcome(**{**row, "state": State(row["state"])})
