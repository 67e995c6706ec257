"""Labels as a folder of face images that `datasets.load_dataset` reads."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.table import split_of
from pipeline.labels.corrections import read_corrections, said_of, standing
from pipeline.labels.source import Labels
from pipeline.labels.videos import VideoMissingError, Videos
from pipeline.records.corrections import Correction, Said
from pipeline.records.vocabulary import SPLITS
from pipeline.runtime.console import log_status

FACE_PX = 224
CLIPS_A_FILE = 64
FRACTIONS = (0.7, 0.1, 0.2)
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_FEATURES: dict[str, Any] = {
    "image": {"_type": "Image"},
    "clip": {"dtype": "string", "_type": "Value"},
    "clip_id": {"dtype": "string", "_type": "Value"},
    "person": {"dtype": "int32", "_type": "Value"},
    "second": {"dtype": "float64", "_type": "Value"},
    "box": {"feature": {"dtype": "int32", "_type": "Value"}, "length": 4, "_type": "List"},
}


def schema_for(classes: Sequence[str]) -> pa.Schema:
    """The columns of the files, with the features that `datasets` reads. classes: of the model."""
    label = {"names": list(classes), "_type": "ClassLabel"}
    shares = {"feature": {"dtype": "float32", "_type": "Value"}, "length": len(classes), "_type": "List"}
    features = {**_FEATURES, "emotion": label, "corrected": label, "probabilities": shares}
    columns = [
        ("image", IMAGE),
        ("emotion", pa.int64()),
        ("corrected", pa.int64()),
        ("probabilities", pa.list_(pa.float32(), len(classes))),
        ("clip", pa.string()),
        ("clip_id", pa.string()),
        ("person", pa.int32()),
        ("second", pa.float64()),
        ("box", pa.list_(pa.int32(), 4)),
    ]
    ordered = {name: features[name] for name, _ in columns}
    return pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": ordered}})})


def face_sets(
    labels: Labels, chosen: dict[str, Any], videos: Videos, *, every: float, blur: bool
) -> Iterator[tuple[str, Any]]:
    """The files of the folder by name, each with what makes it: Parquet files of each split, then the card.

    One face a person and moment of `every` seconds. A clip whose video cannot be read is reported and left out.
    """
    said: dict[str, list[Correction]] = {}
    for each in standing(read_corrections(labels.storages)):
        said.setdefault(each.clip_id, []).append(each)
    clips = [clip for clip, _, _ in labels.labelled(**chosen)]
    split = {clip["clip_id"]: split_of(clip["original"], FRACTIONS) for clip in clips}
    order = sorted(clips, key=lambda clip: (SPLITS.index(split[clip["clip_id"]]), clip["path"], clip["clip_id"]))
    counts: Counter[str] = Counter()
    for name, group in groupby(order, key=lambda clip: split[clip["clip_id"]]):
        own = list(group)
        counts[name] = len(own)
        for number, start in enumerate(range(0, len(own), CLIPS_A_FILE)):
            some = own[start : start + CLIPS_A_FILE]
            yield (
                f"data/{name}-{number:05d}.parquet",
                lambda some=some: _file_of(labels, some, videos, said, every=every, blur=blur),
            )
    yield "README.md", lambda: _card(labels, counts, every=every, blur=blur)


def _file_of(
    labels: Labels,
    clips: list[dict[str, Any]],
    videos: Videos,
    said: dict[str, list[Correction]],
    *,
    every: float,
    blur: bool,
) -> bytes:
    rows = []
    for clip in clips:
        try:
            rows += list(_rows_of(labels, clip, videos, said.get(clip["clip_id"], []), every=every, blur=blur))
        except VideoMissingError as error:
            log_status(f"left out: {error}")
    buffer = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist(rows, schema=schema_for(labels.classes)), buffer, compression="zstd", row_group_size=256
    )
    return buffer.getvalue()


def _rows_of(
    labels: Labels, clip: dict[str, Any], videos: Videos, said: list[Correction], *, every: float, blur: bool
) -> Iterator[dict[str, Any]]:
    first: dict[tuple[int, int], dict[str, Any]] = {}
    for row in labels.faces(clip).to_pylist():
        first.setdefault((row["track_index"], int(row["pts_seconds"] / every + 1e-9)), row)
    chosen = sorted(first.values(), key=lambda row: (row["pts_seconds"], row["track_index"]))
    boxes = [[row["box"][side] for side in ("x_min", "y_min", "x_max", "y_max")] for row in chosen]
    wanted = [(row["pts_seconds"], box) for row, box in zip(chosen, boxes, strict=True)]
    videos.require_scored(clip)
    images = videos.ask_many("crops", clip, wanted=wanted, px=FACE_PX, blur=blur)
    for row, box, image in zip(chosen, boxes, images, strict=True):
        correction = said_of(said, track_index=row["track_index"], pts_seconds=row["pts_seconds"])
        if correction is not None and correction.said == Said.NOT_A_FACE:
            continue
        label = None if correction is None else correction.label
        yield {
            "image": {"bytes": image, "path": None},
            "emotion": None if row["emotion"] is None else labels.classes.index(row["emotion"]),
            "corrected": labels.classes.index(label) if label in labels.classes else None,
            "probabilities": [row["probabilities"][name] for name in labels.classes],
            "clip": clip["path"],
            "clip_id": clip["clip_id"],
            "person": row["track_index"] + 1,
            "second": row["pts_seconds"],
            "box": box,
        }


def _card(labels: Labels, counts: Counter[str], *, every: float, blur: bool) -> bytes:
    files = "\n".join(
        f"  - split: {name}\n    path: data/{name}-*.parquet" for name in SPLITS if counts[name]
    )  # YAML of the card, which load_dataset reads.
    shown = "A face is 6 × 6 colours (blurred)." if blur else "Faces of people are shown: treat them as personal data."
    return f"""---
configs:
- config_name: default
  data_files:
{files}
task_categories:
- image-classification
---

# Faces with a model's guess of their emotion

Faces of {sum(counts.values())} clips, one a person and {every:g} s, as 224 px JPEG. {shown}

- `emotion`: the most probable of {len(labels.classes)} by model {labels.model}: a model's guess from pixels, not what a
  person feels.
- `corrected`: what an annotator said of the face, where one did. Faces that an annotator called none are left out.
- `probabilities`: in the order {", ".join(labels.classes)}.
- `clip`, `clip_id`, `person`, `second`, `box` (x_min, y_min, x_max, y_max in pixels of the frame): where it is from.

All faces of a clip are in one split, which a hash of the clip decides
({", ".join(f"{name} {counts[name]} clips" for name in SPLITS)}).
""".encode()
