"""Parity: our boxes and scores beside those of dlib's own run of the same network, on frames of the clips."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

from benchmarks.clips import middle_frames
from benchmarks.config import BenchmarkConfig
from benchmarks.tables import table
from benchmarks.timing import one_thread
from pipeline.faces.detector import build_detector
from pipeline.faces.processor import cpu_has_bf16_convolutions, cpu_has_int8
from pipeline.records.clips import Clip
from pipeline.records.faces import Face, iou
from pipeline.runtime.console import log_status

CASES = (  # (width and height in pixels, or None for the clip's own; whether grey; upsample)
    (None, False, 0),
    (None, False, 1),
    ((712, 400), False, 0),
    ((712, 400), True, 0),
    ((401, 225), False, 0),
    ((401, 225), False, 1),
    ((401, 225), True, 1),
    ((270, 480), False, 0),
    ((270, 480), False, 1),
)
# dlib takes 7.5 s for each 1e6 pixels at upsample 0, and four times that at 1.
MAX_PX_UPSAMPLED = 640 * 480
PRECISIONS = (
    "fp32",
    *(["bf16"] if cpu_has_bf16_convolutions() else []),
    *(["int8"] if cpu_has_int8() else []),
)


def measure(clips: Sequence[Clip], _folder: Path, *, config: BenchmarkConfig) -> dict[str, Any]:  # noqa: ARG001
    """The middle frame of each clip, by each of `CASES`."""
    frames = middle_frames(clips)
    rows = []
    with one_thread():
        for size, is_grey, upsample in CASES:
            log_status(f"    {_size(size)}, {'grey' if is_grey else 'colour'}, upsample {upsample}")
            images = [seen(frame, size=size, is_grey=is_grey) for frame in frames]
            if upsample and size is None:
                images = [image for image in images if image.shape[0] * image.shape[1] <= MAX_PX_UPSAMPLED]
            rows.append(
                {"size": _size(size), "grey": is_grey, "upsample": upsample, **compared(images, upsample=upsample)}
            )
    return {"num_clips": len(clips), "cases": rows}


def seen(frame: np.ndarray, *, size: tuple[int, int] | None, is_grey: bool) -> np.ndarray:
    """A frame (H, W, 3) at another size (width, height), and as (H, W) where grey."""
    image = Image.fromarray(frame)
    if size is not None:
        image = image.resize(size, Image.Resampling.BILINEAR)
    return np.array(image.convert("L") if is_grey else image)


def compared(images: Iterable[np.ndarray], *, upsample: int) -> dict[str, Any]:
    """dlib's faces in the images and ours in each precision: found, boxes equal, IoU, differences of scores."""
    reference = build_detector("dlib-cnn-reference", upsample=upsample)
    ours = {
        precision: build_detector("dlib-cnn", upsample=upsample, precision=precision, device="cpu")
        for precision in PRECISIONS
    }
    num_images = num_faces = 0
    pairs: dict[str, list[tuple[Face, Face]]] = {precision: [] for precision in PRECISIONS}
    num_found = dict.fromkeys(PRECISIONS, 0)
    for image in images:
        (expected,) = reference.detect_faces([image])
        num_images += 1
        num_faces += len(expected)
        for precision, detector in ours.items():
            (found,) = detector.detect_faces([image])
            num_found[precision] += len(found)
            pairs[precision] += matched(expected, found)
    return {
        "num_images": num_images,
        "num_faces": num_faces,
        "ours": {
            precision: {
                "num_found": num_found[precision],
                "num_matched": len(found),
                "num_equal": sum(theirs.box == mine.box for theirs, mine in found),
                "least_iou": min((iou(theirs.box, mine.box) for theirs, mine in found), default=None),
                "most_score_difference": max((abs(theirs.score - mine.score) for theirs, mine in found), default=None),
            }
            for precision, found in pairs.items()
        },
    }


def matched(expected: Sequence[Face], found: Sequence[Face]) -> list[tuple[Face, Face]]:
    """Each expected face with the found one that it overlaps most, where there is one."""
    left = list(found)
    pairs = []
    for face in expected:
        best = max(left, key=lambda other: iou(face.box, other.box), default=None)
        if best is not None and iou(face.box, best.box) > 0:
            left.remove(best)
            pairs.append((face, best))
    return pairs


def _size(size: tuple[int, int] | None) -> str:
    return "own" if size is None else f"{size[0]}x{size[1]}"


def tables(part: Mapping[str, Any]) -> list[Table]:
    """The cases, a row each."""

    def shown(ours: Mapping[str, Any]) -> list[str]:
        difference = ours["most_score_difference"]
        return [f"{ours['num_matched']} / {ours['num_equal']}", "-" if difference is None else f"{difference:.1e}"]

    rows = [
        [
            f"{row['size']} {'grey' if row['grey'] else 'colour'}",
            str(row["upsample"]),
            str(row["num_images"]),
            str(row["num_faces"]),
            *(text for ours in row["ours"].values() for text in shown(ours)),
        ]
        for row in part["cases"]
    ]
    found = (column for precision in part["cases"][0]["ours"] for column in (f"{precision} found / equal", "score ±"))
    columns = ("frames", "upsample", "num", "dlib's faces", *found)
    return [table(f"Parity: the middle frames of {part['num_clips']} clips, beside dlib's own run", columns, rows)]
