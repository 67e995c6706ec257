"""Parts of `benchmarks/gpu.py`: Dlib's CNN, what feeds it and what follows it."""

from __future__ import annotations

import queue
import statistics
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

from benchmarks.config import GpuOptions
from benchmarks.detect import net_macs
from benchmarks.parity import matched
from benchmarks.tables import table
from benchmarks.timing import seconds_of
from pipeline.faces.crops import crop_face, make_context
from pipeline.faces.detector import build_detector
from pipeline.records.faces import iou
from pipeline.synthetic.corpus import draw_frames, make_corpus
from pipeline.video.frames import Sampling
from pipeline.video.open import open_clip

ROUNDS = 3
PRECISIONS = ("fp32", "bf16")
SAME_FACE_IOU = 0.9


def parity(options: GpuOptions, _: Mapping[str, Any]) -> dict[str, Any]:
    """The device's faces beside the CPU's in fp32, on the same frames: found again, least IoU, most score between."""
    frames = _frames(options)
    expected = build_detector("dlib-cnn", precision="fp32", device="cpu").detect_faces(frames)
    found = {}
    for precision in PRECISIONS:
        faces = build_detector("dlib-cnn", precision=precision, device=options.device).detect_faces(frames)
        pairs = [pair for theirs, ours in zip(expected, faces, strict=True) for pair in matched(theirs, ours)]
        overlaps = [iou(theirs.box, ours.box) for theirs, ours in pairs]
        found[precision] = {
            "num_expected": sum(map(len, expected)),
            "num_found": sum(map(len, faces)),
            "num_same": sum(overlap >= SAME_FACE_IOU for overlap in overlaps),
            "num_equal": sum(theirs.box == ours.box for theirs, ours in pairs),
            "least_iou": min(overlaps, default=None),
            "most_score_difference": max((abs(theirs.score - ours.score) for theirs, ours in pairs), default=None),
        }
    return {"num_frames": len(frames), **found}


def speed(options: GpuOptions, before: Mapping[str, Any]) -> dict[str, Any]:
    """Frames a second by size of frame and of batch, and the share of the device's fastest matrix product."""
    sizes = ((320, 180),) if options.small else ((712, 400), (1280, 720), (1920, 1080))
    batches = (1, 2) if options.small else (1, 8, 32)
    frames = _frames(options)
    rows = []
    for precision in PRECISIONS:
        detector = build_detector("dlib-cnn", precision=precision, device=options.device)
        peak = before.get("matmul", {}).get(precision)
        for width, height in sizes:
            for batch in batches:
                images = [_sized(frames[number % len(frames)], width, height) for number in range(batch)]
                detector.detect_faces(images)  # The plan, and cuDNN's choice of kernels.
                seconds = _median_seconds(lambda images=images, found=detector: found.detect_faces(images))
                rate = batch / seconds
                flops = 2 * net_macs(height=height, width=width) * rate
                rows.append(
                    {
                        "precision": precision,
                        "frame": f"{width}x{height}",
                        "batch": batch,
                        "frames_per_second": rate,
                        "share_of_peak": flops / 1e9 / peak if peak else None,
                    }
                )
    return {"rows": rows}


def decoding(options: GpuOptions, _: Mapping[str, Any]) -> dict[str, Any]:
    """Frames a second of one decoding thread, of detection, and of both with the one beside the other."""
    corpus = options.folder / "corpus"
    make_corpus(corpus, clips_per_class=(3, 0, 0))
    clips = sorted((corpus / "train").rglob("*.mp4"))[: 2 if options.small else 8]
    clips = [clip for clip in clips if clip.stat().st_size > 20_000]  # The corpus has a broken one.
    detector = build_detector("dlib-cnn", precision="auto", device=options.device)

    def decoded() -> Iterator[list[np.ndarray]]:
        for clip in clips:
            with open_clip(clip, Sampling(frames_per_clip=8)) as opened:
                yield [frame.image for frame in opened]

    kept = list(decoded())
    detector.detect_faces(kept[0])
    num_frames = sum(map(len, kept))

    def detect_all(batches: Iterator[list[np.ndarray]]) -> None:
        for images in batches:
            detector.detect_faces(images)

    ways: dict[str, Callable[[], Any]] = {
        "decoding": lambda: list(decoded()),
        "detection": lambda: detect_all(iter(kept)),
        "one after the other": lambda: detect_all(decoded()),
        "side by side": lambda: detect_all(_ahead(decoded())),
    }
    return {"num_frames": num_frames, "rates": {name: num_frames / _median_seconds(way) for name, way in ways.items()}}


def crops(options: GpuOptions, _: Mapping[str, Any]) -> dict[str, Any]:
    """Milliseconds of one core for a face's crop and its masked context, at the paper's 224 px."""
    frame = next(iter(_made(1)))
    image, box = _sized(frame.image, 712, 400), frame.box
    calls = 5 if options.small else 50

    def cut() -> None:
        for _ in range(calls):
            crop_face(image, box)
            make_context(image, box)

    return {"milliseconds": 1000 * _median_seconds(cut) / calls}


def tables(parts: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """A table for each of these parts that ran."""
    made = []
    if "parity" in parts:
        part = parts["parity"]
        rows = [
            [
                precision,
                str(part[precision]["num_expected"]),
                *(str(part[precision][name]) for name in ("num_found", "num_same", "num_equal")),
                "-" if part[precision]["least_iou"] is None else f"{part[precision]['least_iou']:.3f}",
                "-" if part[precision]["least_iou"] is None else f"{part[precision]['most_score_difference']:.1e}",
            ]
            for precision in PRECISIONS
        ]
        columns = ("precision", "CPU's faces", "found", "IoU 0.9", "equal boxes", "least IoU", "score differs by")
        made.append(table(f"Faces of {part['num_frames']} frames beside the CPU's in fp32", columns, rows))
    if "detection" in parts:
        rows = [
            [
                f"{row['precision']} {row['frame']}",
                str(row["batch"]),
                f"{row['frames_per_second']:.1f}",
                "-" if row["share_of_peak"] is None else f"{row['share_of_peak']:.0%}",
            ]
            for row in parts["detection"]["rows"]
        ]
        made.append(table("Detection", ("arithmetic, frame", "batch", "frames/s", "of the fastest product"), rows))
    if "decoding" in parts:
        rows = [[name, f"{rate:.1f}"] for name, rate in parts["decoding"]["rates"].items()]
        made.append(table(f"{parts['decoding']['num_frames']} frames of 712x400", ("way", "frames/s"), rows))
    if "crops" in parts:
        made.append(table("Crops", ("a face", "ms"), [["face and context", f"{parts['crops']['milliseconds']:.2f}"]]))
    return made


def _ahead(batches: Iterator[list[np.ndarray]]) -> Iterator[list[np.ndarray]]:
    """The same batches, the next one made by a thread while the last is used."""
    made: queue.Queue[list[np.ndarray] | None] = queue.Queue(maxsize=2)

    def make() -> None:
        try:
            for batch in batches:
                made.put(batch)
        finally:
            made.put(None)

    threading.Thread(target=make, daemon=True).start()
    while (batch := made.get()) is not None:
        yield batch


def _made(frames_per_pair: int) -> Iterator[Any]:
    return draw_frames("train", frames_per_pair=frames_per_pair, num_people=3, places_per_scene=1)


def _frames(options: GpuOptions) -> list[np.ndarray]:
    """Drawn frames with a face each; few of them and small, or 21 as they are."""
    if not options.small:
        return [frame.image for frame in _made(1)]
    return [_sized(frame.image, 534, 300) for frame, _ in zip(_made(1), range(2), strict=False)]


def _sized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def _median_seconds(call: Callable[[], Any]) -> float:
    return statistics.median(seconds_of(call)[1] for _ in range(ROUNDS))
