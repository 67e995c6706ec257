"""Fewer looks: what detection costs, and which faces it finds, where not all of each frame is searched.

On every frame of the clips, which is where detection costs most. What int8 finds in whole frames is what there is to
find. Beside it: whole frames now and then with boxes interpolated between (`--detect-every`), and whole frames now and
then with the surroundings of the last faces searched between, as images of their own or as windows of the frame's own
pyramid (`--whole-every`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.config import BenchmarkConfig
from benchmarks.tables import table
from benchmarks.timing import one_thread, seconds_of
from pipeline.faces.detector import build_detector
from pipeline.faces.follow import Follower, Nearby
from pipeline.faces.spec import detector_spec
from pipeline.preprocess.examples import located
from pipeline.records.clips import Clip
from pipeline.records.faces import Box, Face, iou
from pipeline.runtime.console import log_status
from pipeline.sandbox.supervisor import Sandbox
from pipeline.storage.remote import local_path
from pipeline.video.frames import Frame, Sampling
from pipeline.video.open import open_clip

Find = Callable[[np.ndarray], list[Face]]
MAX_FRAMES = 48  # of a clip
GAPS = (2, 3, 4, 6, 8)
# A region's sides are multiples of this, so that few sizes are met: the network is planned for each.
REGION_STEP_PX = 64
IOUS = (0.5, 0.9)


def measure(clips: Sequence[Clip], _folder: Path, *, config: BenchmarkConfig) -> dict[str, Any]:
    """Every way on the first frames of each clip, on one thread."""
    del config
    videos = first_frames(clips)
    with one_thread():
        detector = build_detector("dlib-cnn", precision="int8", upsample=0, device="cpu")
        for video in videos:
            detector.detect_faces([video[0].image])  # also loads, plans and compiles

        def find(image: np.ndarray) -> list[Face]:
            return detector.detect_faces([image])[0]

        ways: dict[str, Callable[[list[Frame]], list[list[Face]]]] = {
            "every frame": partial(interpolated, find, every=1)
        }
        ways |= {f"--detect-every {gap}": partial(interpolated, find, every=gap) for gap in GAPS}
        ways |= {f"regions, whole every {gap}": partial(in_regions, find, every=gap) for gap in GAPS}
        nearby = detector_spec("dlib-cnn").nearby
        assert nearby is not None
        ways |= {f"--whole-every {gap}": partial(followed, nearby(detector), every=gap) for gap in GAPS}
        rows, whole = [], []
        for name, way in ways.items():
            log_status(f"    {name}")
            seconds, found = 0.0, []
            for video in videos:
                faces: list[list[Face]] = []
                seconds += seconds_of(lambda video=video, faces=faces, way=way: faces.extend(way(video)))[0]
                found += faces
            whole = whole or found
            rows.append({"way": name, "ms": 1000 * seconds / len(found), **compared(whole, found)})
    return {"num_clips": len(videos), "num_frames": len(whole), "num_faces": sum(map(len, whole)), "ways": rows}


def first_frames(clips: Sequence[Clip]) -> list[list[Frame]]:
    """The first `MAX_FRAMES` frames of each clip, which decodes."""
    with Sandbox(build_first_frames, {}) as sandbox:
        return [[Frame(**item) for item in sandbox.run(local_path(clip.url))[0]] for clip in clips]


def build_first_frames() -> Callable[..., Generator[Any, None, None]]:
    """The sandboxed child's work: a path to the first frames of its clip."""

    def work(path: str, stage: Callable[[str], None]) -> Generator[Any, None, None]:
        stage("decode")
        for frame in open_clip(Path(path), Sampling(frames_per_clip=None, every_frame=True)):
            yield {each.name: getattr(frame, each.name) for each in fields(frame)}
            if frame.frame_index + 1 >= MAX_FRAMES:
                return

    return work


def interpolated(find: Find, frames: list[Frame], *, every: int) -> list[list[Face]]:
    """The faces of each frame as a run with `--detect-every` has them."""
    looked = located(frames, lambda images: [find(image) for image in images], detect_every=every, batch_px=1)
    return [faces for _, faces in looked]


def followed(nearby: Nearby, frames: list[Frame], *, every: int) -> list[list[Face]]:
    """The faces of each frame as a run with `--whole-every` has them."""
    follower = Follower(nearby, every=every)
    return [follower.find(frame.image) for frame in frames]


def in_regions(find: Find, frames: list[Frame], *, every: int) -> list[list[Face]]:
    """The faces of each frame, found in the whole of each `every`-th one, and around those of the frame before in the
    others."""
    found: list[list[Face]] = []
    for number, frame in enumerate(frames):
        if number % every == 0:
            found.append(find(frame.image))
            continue
        faces: list[Face] = []
        for region in regions_of([face.box for face in found[-1]], frame.image.shape[:2]):
            inside = frame.image[region.y_min : region.y_max, region.x_min : region.x_max]
            faces += [
                Face(box=_moved(face.box, region), score=face.score) for face in find(np.ascontiguousarray(inside))
            ]
        found.append(faces)
    return found


def regions_of(boxes: Sequence[Box], shape: tuple[int, int]) -> list[Box]:
    """Where to look for these faces again in a frame of (height, width): each with as much around it as it is wide and
    high; those that overlap as one."""
    left = [_around(box, shape) for box in boxes]
    done: list[Box] = []
    while left:
        region = left.pop()
        other = next((each for each in left if iou(each, region) > 0), None)
        if other is None:
            done.append(region)
            continue
        left.remove(other)
        sides = (min(region.x_min, other.x_min), min(region.y_min, other.y_min))
        left.append(Box(*sides, max(region.x_max, other.x_max), max(region.y_max, other.y_max)))
    return done


def _around(box: Box, shape: tuple[int, int]) -> Box:
    sides = []
    for low, high, most in ((box.x_min, box.x_max, shape[1]), (box.y_min, box.y_max, shape[0])):
        size = min(most, -(-3 * (high - low) // REGION_STEP_PX) * REGION_STEP_PX)
        start = min(max(0, (low + high - size) // 2), most - size)
        sides.append((start, start + size))
    (x_min, x_max), (y_min, y_max) = sides
    return Box(x_min, y_min, x_max, y_max)


def _moved(box: Box, region: Box) -> Box:
    x, y = region.x_min, region.y_min
    return Box(box.x_min + x, box.y_min + y, box.x_max + x, box.y_max + y)


def compared(whole: Sequence[Sequence[Face]], found: Sequence[Sequence[Face]]) -> dict[str, Any]:
    """How many of the faces of whole frames were found, by how far the boxes agree; and how many others were."""
    pairs = list(zip(whole, found, strict=True))

    def num_in(faces: Iterator[tuple[Face, Sequence[Face]]], least: float) -> int:
        return sum(any(iou(face.box, other.box) >= least for other in others) for face, others in faces)

    hits = {str(least): num_in(((face, b) for a, b in pairs for face in a), least) for least in IOUS}
    num_found = sum(map(len, found))
    return {"found": hits, "others": num_found - num_in(((face, a) for a, b in pairs for face in b), IOUS[0])}


def tables(part: Mapping[str, Any]) -> list[Table]:
    """A row a way: what a frame costs, the share of the faces that it finds, and what it finds beside them."""
    first = part["ways"][0]["ms"]
    rows = [
        [
            row["way"],
            f"{row['ms']:.1f}",
            f"{first / row['ms']:.2f}",
            *(f"{100 * row['found'][str(least)] / max(1, part['num_faces']):.1f}" for least in IOUS),
            str(row["others"]),
        ]
        for row in part["ways"]
    ]
    columns = ("way", "ms a frame", "times as fast", *(f"found, %, IoU {least}" for least in IOUS), "others")
    title = f"Fewer looks: {part['num_faces']} faces in {part['num_frames']} frames of {part['num_clips']} clips"
    return [table(title, columns, rows)]
