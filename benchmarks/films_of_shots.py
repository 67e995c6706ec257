"""Films cut from pieces of real clips: how many of their cuts are found, and what is called one that is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import av
import numpy as np
from PIL import Image

from pipeline.runtime.console import log_status
from pipeline.video.shots import CutFinder, small_picture

WIDTH, HEIGHT = 256, 144
NUM_PIECES, MIN_FRAMES, MAX_FRAMES = 8, 12, 40
KINDS = ("plain", "jump", "flash", "dark")
# A cut is found where one is told so near.
NEAR = 1


def shots_found(clips: Sequence[Sequence[np.ndarray]], *, num_films: int, seed: int) -> dict[str, Any]:
    """What ours finds, and PySceneDetect's detectors where it is installed, in films of NUM_PIECES pieces.

    Films are of four kinds: plain cuts between clips, jump cuts within one, flashes of a frame besides, and dark ones.
    """
    small = [[np.asarray(Image.fromarray(each).resize((WIDTH, HEIGHT))) for each in frames] for frames in clips]
    small = [frames for frames in small if len(frames) > MAX_FRAMES]
    finders: dict[str, Callable[[Sequence[np.ndarray]], list[int]]] = {"ours": _ours, **_of_scenedetect()}
    counts = {name: {"found": 0, "missed": 0, "wrong": 0} for name in finders}
    kinds = {kind: {"cuts": 0, **dict.fromkeys(finders, 0)} for kind in KINDS}
    num_cuts = 0
    for kind, frames, cuts in _films(small, num_films=num_films, seed=seed):
        num_cuts += len(cuts)
        kinds[kind]["cuts"] += len(cuts)
        for name, find in finders.items():
            told = find(frames)
            found = sum(any(abs(cut - each) <= NEAR for each in told) for cut in cuts)
            kinds[kind][name] += found
            wrong = sum(all(abs(cut - each) > NEAR for cut in cuts) for each in told)
            for part, value in (("found", found), ("missed", len(cuts) - found), ("wrong", wrong)):
                counts[name][part] += value
    return {"num_films": num_films, "num_cuts": num_cuts, "finders": counts, "found_by_kind": kinds}


def _films(
    clips: Sequence[Sequence[np.ndarray]], *, num_films: int, seed: int
) -> Iterator[tuple[str, list[np.ndarray], list[int]]]:
    random = np.random.default_rng(seed)
    for number in range(num_films):
        kind = KINDS[number % len(KINDS)]
        frames, cuts, last = list[np.ndarray](), list[int](), -1
        own = int(random.integers(len(clips)))
        for _ in range(NUM_PIECES):
            while kind != "jump" and (own := int(random.integers(len(clips)))) == last:
                pass
            clip, length = clips[own], int(random.integers(MIN_FRAMES, MAX_FRAMES))
            start = int(random.integers(len(clip) - length))
            if frames and np.abs(frames[-1].astype(int) - clip[start]).mean() > 2:  # else nobody sees a cut
                cuts.append(len(frames))
            frames += clip[start : start + length]
            last = own
        if kind == "flash":
            for place in range(10, len(frames) - 10, 37):
                frames[place] = np.full_like(frames[place], 250)
        if kind == "dark":
            frames = [(each // 6).astype(np.uint8) for each in frames]
        yield kind, frames, cuts


def _ours(frames: Sequence[np.ndarray]) -> list[int]:
    finder = CutFinder()
    for number, frame in enumerate(frames):
        picture = small_picture(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
        if picture is not None:
            finder.add(number, picture)
    return finder.cuts()


def _of_scenedetect() -> dict[str, Callable[[Sequence[np.ndarray]], list[int]]]:
    try:
        from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode  # pyright: ignore
    except ImportError as error:
        log_status(f"PySceneDetect is left out ({error}): pip install scenedetect, or the extra [peers]")
        return {}

    def told(build: Callable[..., Any], frames: Sequence[np.ndarray]) -> list[int]:
        detector, cuts = build(min_scene_len=2), []
        for number, frame in enumerate(frames):
            cuts += detector.process_frame(FrameTimecode(number, 25.0), np.ascontiguousarray(frame[:, :, ::-1]))
        cuts += detector.post_process(FrameTimecode(len(frames), 25.0))
        return [each.frame_num if hasattr(each, "frame_num") else each.get_frames() for each in cuts]

    return {
        "PySceneDetect's ContentDetector": lambda frames: told(ContentDetector, frames),
        "PySceneDetect's AdaptiveDetector": lambda frames: told(AdaptiveDetector, frames),
    }
