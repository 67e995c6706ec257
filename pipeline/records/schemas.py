"""What flows through the pipeline: small frozen records, and the Arrow schemas in which they rest.

A `Clip` becomes sampled frames, a frame becomes `Face`s, a face becomes an `Example` (for training) or a
`Prediction` (for labels), and every clip ends as exactly one `Outcome`. All images are RGB uint8 HWC; all boxes are
xyxy integer pixels, half-open, in the full upright frame.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from pipeline.records.vocabulary import EMOTIONS, SCHEMA_VERSION


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
