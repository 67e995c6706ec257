"""The script that one would write today for the same work: decord, dlib's CNN, a pool of processes, crops as files.

`preprocess` is measured against it: same frames, same detector, same crops. It has no ledger, no sandbox and no resume;
a clip that aborts decord makes it wait for ever. It runs as a file, so that its workers hold only what it imports:
`python -P baseline.py --output FOLDER --weights FILE CLIP ...`, one line of JSON a clip.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import time
from pathlib import Path
from typing import Any

import decord
import dlib
import numpy as np
from PIL import Image

FACE_PX = 224


def baseline_script(
    clips: list[str], output: str, *, weights: str, num_frames: int, num_processes: int
) -> list[dict[str, Any]]:
    """Face crops and masked contexts of `num_frames` frames of each clip, as files in `output`; a row for each clip."""
    Path(output).mkdir(parents=True, exist_ok=True)
    tasks = [(clip, str(Path(output) / f"{number:06d}"), num_frames) for number, clip in enumerate(clips)]
    with multiprocessing.Pool(num_processes, initializer=load_detector, initargs=(weights,)) as pool:
        return pool.starmap(process_clip, tasks, chunksize=1)


def load_detector(weights: str) -> None:
    """Load the model once for each process of the pool."""
    global detector  # noqa: PLW0603 - as pools have it
    detector = dlib.cnn_face_detection_model_v1(weights)  # pyright: ignore[reportAttributeAccessIssue]


def process_clip(clip: str, stem: str, num_frames: int) -> dict[str, Any]:
    """Decode, detect, crop and write one clip."""
    started = time.time()
    reader = decord.VideoReader(clip, ctx=decord.cpu(0), num_threads=1)
    num = len(reader)
    indexes = [(2 * i + 1) * num // (2 * num_frames) for i in range(num_frames)] if num > num_frames else range(num)
    boxes = {}
    for index, frame in zip(indexes, reader.get_batch(list(indexes)).asnumpy(), strict=True):
        found = [each.rect for each in detector(frame, 0)]
        if not found:
            continue
        face = max(found, key=lambda rectangle: rectangle.area())
        left, top = max(face.left(), 0), max(face.top(), 0)
        right, bottom = min(face.right() + 1, frame.shape[1]), min(face.bottom() + 1, frame.shape[0])
        context = np.array(frame)
        context[top:bottom, left:right] = 0
        for name, pixels in (("face", frame[top:bottom, left:right]), ("context", context)):
            image = Image.fromarray(pixels).resize((FACE_PX, FACE_PX), Image.Resampling.BILINEAR)
            image.save(f"{stem}-{index}-{name}.jpg", quality=95, subsampling=0)
        boxes[index] = (left, top, right, bottom)
    return {
        "clip": clip,
        "worker": os.getpid(),
        "started": started,
        "ended": time.time(),
        "cpu_seconds": time.process_time(),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "boxes": boxes,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", nargs="+")
    parser.add_argument("--output", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--num-frames", type=int, default=8)
    parser.add_argument("--num-processes", type=int, default=os.cpu_count())
    given = parser.parse_args()
    rows = baseline_script(
        given.clips,
        given.output,
        weights=given.weights,
        num_frames=given.num_frames,
        num_processes=given.num_processes,
    )
    for row in rows:
        print(json.dumps(row))
