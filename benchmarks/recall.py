"""Recall: how many faces of a size each detector finds, and what a frame costs it.

Faces of the clips' middle frames are those that two detectors of other kinds agree on, looking hard; their frames are
then made so small (or up to twice as large) that the face has a size.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

from benchmarks.clips import middle_frames
from benchmarks.config import BenchmarkConfig
from benchmarks.detect import FRAME_HEIGHT, FRAME_WIDTH
from benchmarks.parity import seen
from benchmarks.tables import table
from benchmarks.timing import one_thread, seconds_of
from pipeline.faces.detector import build_detector
from pipeline.faces.spec import Detector
from pipeline.records.clips import Clip
from pipeline.records.faces import Box, Face, iou
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.console import log_status

SIZES = (15, 20, 30, 40, 60, 80, 120)  # The smaller side of a face's box, pixels.
LOOKS = (("dlib-cnn", 1), ("centerface", 0))  # Two that agree on a face make it one.
CONTENDERS = (  # (detector, precision, upsample)
    ("dlib-cnn", "fp32", 0),
    ("dlib-cnn", "bf16", 0),
    ("dlib-cnn", "int8", 0),
    ("dlib-cnn", "fp32", 1),
    ("dlib-hog", "fp32", 0),
    ("dlib-hog", "fp32", 1),
    ("centerface", "fp32", 0),
    ("centerface-half", "fp32", 0),
    ("centerface-third", "fp32", 0),
)
# A box is a face's where they overlap so much; detectors differ in where a face ends.
LEAST_IOU = 0.35
MAX_ENLARGED = 2


def measure(clips: Sequence[Clip], _folder: Path, *, config: BenchmarkConfig) -> dict[str, Any]:
    """Every detector that is installed, on one thread, on the middle frame of each clip at every size of its faces."""
    frames = middle_frames(clips)
    with one_thread():
        faces = agreed_faces(frames)
        rows = []
        for name, precision, upsample in CONTENDERS:
            try:
                detector = build_detector(name, precision=precision, upsample=upsample, device="cpu")
            except UsageError as error:  # The extra is not installed, or the processor lacks it.
                log_status(f"    {name} is left out: {error}")
                continue
            log_status(f"    {name}, {precision}, upsample {upsample}")
            rows.append(
                {
                    "detector": name,
                    "precision": precision,
                    "upsample": upsample,
                    "ms": _milliseconds(detector, frames, rounds=config.rounds),
                    "found": {str(size): _num_found(detector, faces, size=size) for size in SIZES},
                }
            )
    num_faces = {str(size): sum(1 for _ in _at(faces, size=size)) for size in SIZES}
    return {"num_clips": len(clips), "num_faces": num_faces, "detectors": rows}


def agreed_faces(frames: Sequence[np.ndarray]) -> list[tuple[np.ndarray, Box]]:
    """Each face on which all of `LOOKS` that are installed agree, with its frame; the box is the first one's."""
    looks = []
    for name, upsample in LOOKS:
        try:
            looks.append(build_detector(name, precision="fp32", upsample=upsample, device="cpu"))
        except UsageError as error:
            log_status(f"    {name} is not asked where faces are: {error}")
    found = []
    for frame in frames:
        first, *others = (look.detect_faces([frame])[0] for look in looks)
        found += [(frame, face.box) for face in first if all(_has(other, face.box) for other in others)]
    return found


def resized(frame: np.ndarray, box: Box, *, size: int) -> tuple[np.ndarray, Box] | None:
    """A frame (H, W, 3) and the box in it, so large that the smaller side of the box has `size` pixels; None where that
    would be more than `MAX_ENLARGED` times what it is."""
    height, width = frame.shape[:2]
    scale = size / min(box.x_max - box.x_min, box.y_max - box.y_min)
    if scale > MAX_ENLARGED:
        return None
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    image = Image.fromarray(frame).resize((round(width * scale), round(height * scale)), how)
    sides = (box.x_min * scale, box.y_min * scale, box.x_max * scale, box.y_max * scale)
    return np.asarray(image), Box(*map(round, sides))


def _at(faces: Sequence[tuple[np.ndarray, Box]], *, size: int) -> Iterator[tuple[np.ndarray, Box]]:
    return filter(None, (resized(frame, box, size=size) for frame, box in faces))


def _num_found(detector: Detector, faces: Sequence[tuple[np.ndarray, Box]], *, size: int) -> int:
    return sum(_has(detector.detect_faces([frame])[0], box) for frame, box in _at(faces, size=size))


def _has(faces: Sequence[Face], box: Box) -> bool:
    return any(iou(face.box, box) >= LEAST_IOU for face in faces)


def _milliseconds(detector: Detector, frames: Sequence[np.ndarray], *, rounds: int) -> float:
    """CPU time of one frame of CAER's size, the median over frames and rounds."""
    size = (FRAME_WIDTH, FRAME_HEIGHT)
    images = [seen(frame, size=size, is_grey=False) for frame in frames[:5]]
    detector.detect_faces(images[:1])  # also loads, plans and compiles
    taken = [seconds_of(partial(detector.detect_faces, [image]))[0] for _ in range(rounds) for image in images]
    return 1000 * statistics.median(taken)


def tables(part: Mapping[str, Any]) -> list[Table]:
    """A row each detector: what a frame costs, and the faces found at every size."""
    rows = [
        [
            f"{row['detector']} {row['precision']}" + " upsample 1" * row["upsample"],
            f"{row['ms']:.0f}",
            *(str(row["found"][size]) for size in part["num_faces"]),
        ]
        for row in part["detectors"]
    ]
    columns = ("detector", "ms a frame", *(f"{size} px, of {num}" for size, num in part["num_faces"].items()))
    return [table(f"Recall: faces of {part['num_clips']} clips by size", columns, rows)]
